"""The states of the pools that serve this gateway's lanes, as their operator last wrote them.

Owns which state belongs to which lane, until when it holds, and what was told in the last hour. `pool_state_reader`
reads the topic. Pure: time is an argument.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from pydantic import ValidationError

from fluxpool_contract.messages import PoolState
from fluxpool_gateway.queue.lanes import ServedLane
from fluxpool_gateway.queue.pool_history import HISTORY_SECONDS

MAX_STATES: Final = 64
"""Usually one a lane; a bound for a topic that others write to."""
MAX_PAST: Final = 600
"""Of a pool: an hour has 120 heartbeats, and a change every few seconds is one that flaps."""
TOLD_SECONDS: Final = 3600.0
"""How long the last state of a silent operator is reported as stale; then its pool counts as deleted."""

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedPool:
    """A pool by its latest state."""

    state: PoolState
    age_seconds: float
    """Since it was written."""

    @property
    def is_current(self) -> bool:
        """Whether it says something of now."""
        return self.age_seconds <= self.state.valid_seconds


class PoolStates:
    """The pools of one gateway, in one of its processes."""

    def __init__(self, lanes: Sequence[ServedLane], *, wall_clock: Callable[[], float]) -> None:
        """`wall_clock` is in seconds since 1970."""
        self._served = frozenset((lane.topic, lane.group) for lane in lanes)
        self._wall_clock = wall_clock
        self._written: dict[bytes, tuple[PoolState, float]] = {}
        """By the key of the record: the state, and when it was written."""
        self._past: dict[bytes, deque[tuple[float, PoolState]]] = {}
        """The same of the last hour, the oldest first."""

    def take(self, key: bytes | None, value: bytes | None, *, written_at: float) -> None:
        """Take in a record of the topic; `written_at` is its time in seconds since 1970."""
        if not key:
            return
        # Whatever comes replaces it: of a state that cannot be read, and of other lanes, nothing is known here.
        self._written.pop(key, None)
        if not value:
            self._past.pop(key, None)
            return
        try:
            state = PoolState.model_validate_json(value)
        except ValidationError as error:
            logger.warning("pool_state_ignored", key=key[:200].decode(errors="replace"), problems=error.error_count())
            return
        if any((lane.topic, lane.consumer_group) in self._served for lane in state.lanes):
            # Of an operator whose clock is ahead: it would be of now for as long, and hide what others write later.
            written_at = min(written_at, self._wall_clock())
            self._written[key] = state, written_at
            self._past.setdefault(key, deque(maxlen=MAX_PAST)).append((written_at, state))
            while len(self._written) > MAX_STATES:
                oldest = next(iter(self._written))
                del self._written[oldest]
                self._past.pop(oldest, None)

    def past_of_lane(self, lane: ServedLane) -> Sequence[tuple[float, PoolState]]:
        """What its operator told of the pool that serves a lane in the last hour, and when; the oldest first."""
        key = self._key_of(lane)
        since = self._wall_clock() - HISTORY_SECONDS
        return () if key is None else [told for told in self._past.get(key, ()) if told[0] >= since]

    def models_of(self, topic: str) -> Sequence[frozenset[str]]:
        """The model of each pool that serves a topic, by its checkpoint and its family, as far as they are known."""
        return [
            frozenset(filter(None, (state.model, state.model_family)))
            for state, _ in self._written.values()
            if any(lane.topic == topic for lane in state.lanes)
        ]

    def of_lane(self, lane: ServedLane) -> ReportedPool | None:
        """The pool that serves a lane; None while no operator has told of one, as in local mode."""
        key = self._key_of(lane)
        if key is None:
            return None
        state, written_at = self._written[key]
        age_seconds = max(0.0, self._wall_clock() - written_at)
        return ReportedPool(state=state, age_seconds=age_seconds) if age_seconds <= TOLD_SECONDS else None

    def _key_of(self, lane: ServedLane) -> bytes | None:
        """Key of the record that was written last of a pool that serves the lane."""
        found = [
            (written_at, number, key)
            for number, (key, (state, written_at)) in enumerate(self._written.items())
            if any((served.topic, served.consumer_group) == (lane.topic, lane.group) for served in state.lanes)
        ]
        # Of several of one time the one that came last.
        return max(found)[2] if found else None
