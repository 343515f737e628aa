"""Reads from Kafka what it holds about one task: its records on all topics, and whether groups have consumed them.

Owns which topics and groups are read; joins none. Knows nothing of how it is shown.
"""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from fluxpool_cli.kafka.target import KafkaTarget
from fluxpool_cli.progress_bar import Bar
from fluxpool_cli.trace.events import EventKind, TaskEvents, TopicRole, TraceEvent
from fluxpool_contract.kafka import retry_group
from fluxpool_transport.kafka import TopicError, find_ranges, scan
from fluxpool_transport.lag import GroupLag, LagReader, PartitionLag, StalePartition

CLOCKS_APART: Final = timedelta(hours=1)
"""More than the clocks of gateways and producers differ; records older than an id by this are not about it."""
_MADE_BY_GATEWAY: Final = 7
_LATEST_RECORD_TIME: Final = datetime(9999, 1, 1, tzinfo=UTC)


class RecordState(StrEnum):
    """What a consumer group has done with a record."""

    PENDING = "pending"
    IN_FLIGHT = "in-flight"
    DONE = "done"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """What a consumer group has done with one record of the task."""

    topic: str
    partition: int
    offset: int
    group: str
    state: RecordState
    ahead_records: int | None = None
    """Records of the partition before a waiting one that are not committed."""
    worker: str | None = None
    started_at: datetime | None = None
    crashes: int = 0
    problem: str = ""

    def document(self) -> dict[str, Any]:
        """For machines; what does not apply is left out."""
        started_at = None if self.started_at is None else self.started_at.isoformat().replace("+00:00", "Z")
        known = {**asdict(self), "started_at": started_at, "crashes": self.crashes or None}
        return {name: value for name, value in known.items() if value not in (None, "")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """The life of one task."""

    request_id: str
    events: tuple[TraceEvent, ...]
    """By time."""
    consumption: tuple[Consumption, ...]
    """Of the records on task and retry topics, in the same order."""
    missing_topics: tuple[str, ...]


def reading_start(request_id: str) -> datetime | None:
    """From when on records can be about this task: for an id of the gateway's (UUIDv7) a while before it was made.

    None for any other id: from the beginning.
    """
    try:
        made = uuid.UUID(request_id)
    except ValueError:
        return None
    seconds = (made.int >> 80) / 1000
    by_gateway = made.version == _MADE_BY_GATEWAY and str(made) == request_id
    if not by_gateway or seconds >= _LATEST_RECORD_TIME.timestamp():
        return None
    return datetime.fromtimestamp(seconds, UTC) - CLOCKS_APART


def roles_of(target: KafkaTarget) -> dict[str, TopicRole]:
    """Every topic that may hold records about a task."""
    topics = target.topics
    return {
        **dict.fromkeys([topics.tasks, topics.tasks_vip, *target.groups().values()], TopicRole.TASKS),
        **dict.fromkeys(topics.retry, TopicRole.RETRY),
        topics.control: TopicRole.CONTROL,
        topics.progress: TopicRole.PROGRESS,
        topics.dead_letters: TopicRole.DEAD_LETTERS,
        topics.results: TopicRole.RESULTS,
    }


async def read_trace(target: KafkaTarget, request_id: str, *, since: datetime | None, bar: Bar) -> Trace:
    """All that the topics hold about the task now; with `since`, in records written from then on.

    Raises `TopicError` when none of the topics exists or one cannot be read, `KafkaUnavailableError`, `KafkaError`.
    """
    roles = roles_of(target)
    found = await find_ranges(target.kafka, list(roles), since=since)
    missing = tuple(topic for topic, ranges in found.items() if ranges is None)
    if len(missing) == len(found):
        raise TopicError(f"none of the topics {', '.join(missing)} exists; set FLUXPOOL_TOPICS_TASKS and so on")
    ranges = [item for parts in found.values() for item in parts or ()]
    bar.set_total(sum(item.offsets for item in ranges))
    events = TaskEvents(request_id)
    async with aclosing(scan(target.kafka, ranges, on_progress=bar.advance)) as batches:
        async for records in batches:
            for record in records:
                events.add(record, roles[record.topic])
    ordered = events.in_order()
    return Trace(
        request_id=request_id,
        events=ordered,
        consumption=await _consumption(target, ordered, roles),
        missing_topics=missing,
    )


async def _consumption(
    target: KafkaTarget, events: Sequence[TraceEvent], roles: Mapping[str, TopicRole]
) -> tuple[Consumption, ...]:
    work = [event for event in events if event.kind in _WORK]
    topics = {event.topic for event in work}
    serving = [(group, topic) for group, topic in target.groups().items() if topic in topics]
    # A pool keeps the offsets of its retry topics in one group, named after its first lane, which is not known here.
    relaying = [
        (retry_group(group), topic) for topic in target.topics.retry if topic in topics for group in target.groups()
    ]
    async with LagReader(target.kafka) as reader:
        found = await _read(reader, [item for item in serving if roles[item[1]] is TopicRole.TASKS])
        found_retries = await _read(reader, relaying)
    lags = found + [lag for topic in target.topics.retry for lag in _of_pools(found_retries, topic)]
    return tuple(_consumption_of(event, lag) for event in work for lag in lags if lag.topic == event.topic)


async def _read(reader: LagReader, pairs: Sequence[tuple[str, str]]) -> list[GroupLag]:
    """The lag of each group on its topic; one call reads a group on one topic."""
    found: list[GroupLag] = []
    remaining = list(pairs)
    while remaining:
        asked = dict(remaining)
        found += (await reader.read(asked)).values()
        remaining = [pair for pair in remaining if pair not in asked.items()]
    return found


def _of_pools(lags: Sequence[GroupLag], topic: str) -> Sequence[GroupLag]:
    """The groups that have offsets on the topic; the first one when none has."""
    found = [lag for lag in lags if lag.topic == topic]
    active = [lag for lag in found if any(item.committed_offset is not None for item in lag.readable_partitions)]
    return active or found[:1]


_WORK: Final = frozenset({EventKind.SENT, EventKind.BACK, EventKind.REPLAYED, EventKind.RETRY})


def _consumption_of(event: TraceEvent, lag: GroupLag) -> Consumption:
    def found(state: RecordState, **known: Any) -> Consumption:
        return Consumption(
            topic=event.topic,
            partition=event.partition,
            offset=event.offset,
            group=lag.group,
            state=state,
            **known,
        )

    match next((item for item in lag.partitions if item.partition == event.partition), None):
        case None:
            return found(RecordState.UNKNOWN, problem=lag.problem or "the group's offsets could not be read")
        case StalePartition(reason=reason):
            return found(RecordState.UNKNOWN, problem=reason)
        case PartitionLag() as partition:
            entry = partition.in_flight.get(event.offset)
            if entry is not None:
                started_at = datetime.fromtimestamp(entry.started_at, UTC)
                return found(RecordState.IN_FLIGHT, worker=entry.worker, started_at=started_at, crashes=entry.crashes)
            if event.offset < partition.next_offset:
                return found(RecordState.DONE)
            return found(RecordState.PENDING, ahead_records=event.offset - partition.next_offset)
