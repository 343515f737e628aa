"""Retry topics: how long a task waits in each, which pool takes it back, its headers, and its pool's offsets. Pure.

A retry topic has one fixed delay, so the records of a partition are due in roughly the order of their offsets. Pools
may share retry topics: a record names the lane topic it came from, and only the pool that serves that topic takes it
back, with offsets in a consumer group of its own. Records are relayed when they are due, whatever their order: the
offsets that were relayed ahead of the committed one are listed in its metadata, and the topic id tells a topic from one
that was created again with its name.
"""

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from fluxpool_contract import header_names as names
from fluxpool_contract.kafka.ledger import offset_metadata
from fluxpool_contract.messages.headers import Envelope, RawHeaders, format_time, parse_time

DELAY_PATTERN: Final = r"^[1-9][0-9]{0,5}(ms|s|m|h)$"
"""How a delay is written: `500ms`, `15s`, `2m`, `1h`."""
DELAYS_BY_PLACE_SECONDS: Final = (15.0, 120.0, 900.0)
"""For topics whose name does not end in a delay: the first, the second, and all further ones."""
MAX_JITTER: Final = 0.2
"""Share of its delay that a task may wait longer, so that tasks that failed together do not return together."""

MAX_RELAYED_AHEAD: Final = 256
"""Offsets in one text; a broker takes 4 KiB (`offset.metadata.max.bytes`)."""

_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SUFFIX: Final = re.compile(r"(?:^|[._-])([1-9][0-9]{0,5})(ms|s|m|h)$")


def parse_delay(text: str) -> float:
    """Seconds of a text such as `15s`; raises `ValueError` when it has another form."""
    if re.fullmatch(DELAY_PATTERN, text) is None:
        raise ValueError(f"{text!r} must be a whole number and ms, s, m or h, such as 15s or 2m")
    return _delay_of(text, 0)


def retry_delays_seconds(topics: Sequence[str], configured: Sequence[str] = ()) -> tuple[float, ...]:
    """The delay of each retry topic: as configured, else the end of its name (`-2m`), else by its place."""
    if configured:
        return tuple(map(parse_delay, configured))
    return tuple(_delay_of(topic, place) for place, topic in enumerate(topics))


def due_at(now: datetime, delay_seconds: float, *, jitter: float) -> datetime:
    """When a task that is written to a retry topic now is due; `jitter` is a random number from 0 to 1."""
    return now + timedelta(seconds=delay_seconds * (1 + MAX_JITTER * jitter))


def retry_group(first_lane_group: str) -> str:
    """The consumer group in which a pool keeps its offsets of all its retry topics. It never has members."""
    return f"{first_lane_group}-retry"


def strays_group(retry_topic: str) -> str:
    """The consumer group that all pools share for records of a retry topic that name no origin: one pool takes each."""
    return f"{retry_topic}-strays"


def former_scheduler_group(retry_topic: str) -> str:
    """The group, shared by all pools, in which releases up to 0.1 kept the offsets of a retry topic."""
    return f"{retry_topic}-scheduler"


def origin_topic(headers: RawHeaders) -> str | None:
    """The lane topic that a record of a retry topic came from; None when no header names one."""
    text = _header_text(headers, names.ORIGIN_TOPIC)
    return text or None


def not_before_seconds(headers: RawHeaders) -> float | None:
    """The not-before header of a record of a retry topic, seconds since 1970; None without a readable one."""
    if (text := _header_text(headers, names.NOT_BEFORE)) is None:
        return None
    try:
        return parse_time(text).timestamp()
    except ValueError:
        return None


def due_seconds(*, arrived_seconds: float, not_before_seconds: float | None, delay_seconds: float) -> float:
    """When a record of a retry topic is due, seconds since 1970: at its not-before time, else after the delay.

    It is never later than the delay with all its jitter after the record arrived. `arrived_seconds` is the record's
    timestamp, but no later than when it was read: neither a foreign header nor a foreign clock keeps a task waiting
    for ever.
    """
    if not_before_seconds is None:
        return arrived_seconds + delay_seconds
    return min(not_before_seconds, arrived_seconds + delay_seconds * (1 + MAX_JITTER))


def retry_headers(
    original: RawHeaders,
    envelope: Envelope,
    *,
    attempt: int,
    crashes: int,
    first_seen: datetime,
    not_before: datetime,
    origin: tuple[str, int, int],
    error: tuple[str, str],
) -> list[tuple[str, bytes]]:
    """Headers of a task on its way to a retry topic: its own, with counts and history updated.

    `attempt` is the one to come. `origin` (topic, partition, offset) is where the task was taken now. An earlier origin
    in the envelope counts only when it names the same topic: a retried task always comes back to the topic it was taken
    from, so any other name was written by another client. `error` is class and code.
    """
    topic, partition, offset = origin
    if envelope.origin_topic == topic and envelope.origin_partition is not None and envelope.origin_offset is not None:
        partition, offset = envelope.origin_partition, envelope.origin_offset
    return _replaced(
        original,
        {
            names.ATTEMPT: str(attempt),
            names.CRASHES: str(crashes),
            names.FIRST_SEEN: format_time(first_seen),
            names.NOT_BEFORE: format_time(not_before),
            names.ORIGIN_TOPIC: topic,
            names.ORIGIN_PARTITION: str(partition),
            names.ORIGIN_OFFSET: str(offset),
            names.ERROR_CLASS: error[0],
            names.ERROR_CODE: error[1],
        },
    )


def due_headers(original: RawHeaders) -> list[tuple[str, bytes]]:
    """Headers of a task that returns from a retry topic, without its not-before time."""
    return _replaced(original, {names.NOT_BEFORE: None})


def retry_offset_text(*, commit_offset: int, relayed: Iterable[int], topic_id: str | None) -> str:
    """The metadata for `commit_offset`; at most the first `MAX_RELAYED_AHEAD` relayed offsets."""
    ahead = sorted(offset - commit_offset for offset in relayed if offset > commit_offset)[:MAX_RELAYED_AHEAD]
    fields = {"topic": topic_id, **({"relayed": ahead} if ahead else {})}
    return json.dumps(fields, separators=(",", ":"), sort_keys=True)


def relayed_ahead(text: str, commit_offset: int) -> frozenset[int]:
    """Offsets that were relayed ahead of the committed one; none when the text is another client's."""
    ahead = offset_metadata(text).get("relayed")
    if not isinstance(ahead, list):
        return frozenset()
    return frozenset(commit_offset + item for item in ahead[:MAX_RELAYED_AHEAD] if isinstance(item, int) and item >= 0)


def _replaced(original: RawHeaders, values: dict[str, str | None]) -> list[tuple[str, bytes]]:
    kept = [(name, value or b"") for name, value in original if name not in values]
    return kept + [(name, value.encode()) for name, value in values.items() if value is not None]


def _header_text(headers: RawHeaders, wanted: str) -> str | None:
    """The last value of a header; None when there is none, or it is no text."""
    for name, value in reversed(list(headers)):
        if name == wanted and value is not None:
            try:
                return value.decode()
            except UnicodeDecodeError:
                return None
    return None


def _delay_of(topic: str, place: int) -> float:
    suffix = _SUFFIX.search(topic)
    if suffix is not None:
        return int(suffix[1]) * _UNIT_SECONDS[suffix[2]]
    return DELAYS_BY_PLACE_SECONDS[min(place, len(DELAYS_BY_PLACE_SECONDS) - 1)]
