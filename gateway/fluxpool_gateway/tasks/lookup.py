"""Finds a task by its id, so that 404 is only answered when the task certainly was never accepted.

The store first, then what this process accepted itself, then the barrier (`projection.barrier`) and the store again.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import OffsetSpec

from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import REQUEST_ID
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, unavailable
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.projection.barrier import BarrierNotReachedError, ProjectionBarrier
from fluxpool_gateway.projection.projected_records import task_topics
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.task_state import Position, RecordRef, TaskKey, TaskState, TaskStatus
from fluxpool_gateway.store.task_store import LogPosition
from fluxpool_transport.kafka import KafkaMetadata, KafkaUnavailableError, TopicMetadata, explain

MAX_RECENT_TASKS: Final = 50_000
"""About 15 MB."""
MAX_RECENT_SECONDS: Final = 60.0

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RecentTask:
    """One accepted request."""

    key: TaskKey
    accepted_at: datetime
    priority: str
    group_id: str | None
    place: RecordRef
    """Where its record lies in Kafka."""
    expires_at_seconds: float


class RecentTasks:
    """What this process accepted in the last minute: answers a poll that is quicker than the projection.

    A cache: bounded in count and age, lost with the process, asked only after the store.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self._clock = clock
        self._tasks: OrderedDict[TaskKey, RecentTask] = OrderedDict()

    def add(
        self, key: TaskKey, *, accepted_at: datetime, priority: str, group_id: str | None, place: RecordRef
    ) -> None:
        """Remember a request whose record the broker has acknowledged."""
        tasks = self._tasks
        expires_at_seconds = self._clock() + MAX_RECENT_SECONDS
        tasks.setdefault(key, RecentTask(key, accepted_at, priority, group_id, place, expires_at_seconds))
        if len(tasks) > MAX_RECENT_TASKS:
            tasks.popitem(last=False)

    def get(self, key: TaskKey) -> RecentTask | None:
        """The request; None when it was dropped or never accepted here."""
        task = self._tasks.get(key)
        if task is not None and task.expires_at_seconds <= self._clock():
            del self._tasks[key]
            return None
        return task


class TaskTopicEnds:
    """End offsets of the task topics, as the brokers know them now."""

    def __init__(self, metadata: KafkaMetadata, topics: TopicNames) -> None:
        self._metadata = metadata
        self._topics = task_topics(topics)

    async def read(self) -> Mapping[Position, LogPosition]:
        """The end of every partition; what was acknowledged before this call lies before it.

        Raises `KafkaUnavailableError` when it cannot be read of every partition.
        """
        # Read for every round: a task may lie in a partition that was just added.
        described = await self._describe()
        partitions = [(topic, number) for topic, layout in described.items() for number in layout.partitions]
        # Read-committed, as the projector reads: the barrier cannot wait for records of an open transaction.
        offsets = await self._metadata.offsets(partitions, OffsetSpec.latest())
        # Once more, after the offsets: when a topic was recreated meanwhile, the new id comes with an end that it may
        # never reach, and there is no answer. With the id from before, 404 would be answered for its tasks.
        described = await self._describe()
        ends: dict[Position, LogPosition] = {}
        for (topic, number), end in offsets.items():
            if not isinstance(end, int):
                reason = explain(end) if isinstance(end, KafkaException) else "its leader did not answer in time"
                raise KafkaUnavailableError(f"topic {topic}, partition {number} cannot be read: {reason}")
            ends[topic, number] = LogPosition(end, described[topic].topic_id)
        return ends

    async def _describe(self) -> Mapping[str, TopicMetadata]:
        described: dict[str, TopicMetadata] = {}
        for topic, answer in (await self._metadata.topics(self._topics)).items():
            if isinstance(answer, KafkaException):
                raise KafkaUnavailableError(f"topic {topic} cannot be read: {explain(answer)}")
            described[topic] = answer
        return described


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLookup:
    """Finds tasks by their id, for a caller who may know of them."""

    store: TaskStoreReader
    recent: RecentTasks
    barrier: ProjectionBarrier

    async def find(self, request_id: str, caller: Caller) -> TaskState | RecentTask:
        """The task.

        Raises `ProblemError`: 404 when it certainly was never accepted, or is of another tenant, which must look alike;
        410 when it was deleted; 503 while that cannot be known.
        """
        if not REQUEST_ID.fullmatch(request_id):
            raise _not_found(request_id)
        try:
            tenant = caller.sees_only
            # Without authentication all that is accepted is of one tenant, and the caller's.
            found = await self.store.find(request_id, tenant=tenant) or self.recent.get(
                TaskKey(request_id, caller.tenant)
            )
            if found is None:
                await self.barrier.passed()
                found = await self.store.find(request_id, tenant=tenant)
        except BarrierNotReachedError as error:
            raise _unknown(f"whether there is a task {request_id} is not known yet ({error})") from error
        except StoreUnavailableError as error:
            logger.warning("task_store_unreadable", reason=str(error))
            raise _unknown("the task store cannot be read, or is being rebuilt") from error
        if found is None:
            raise _not_found(request_id)
        if isinstance(found, TaskState) and found.status is TaskStatus.DELETED:
            raise ProblemError(ProblemCode.GONE, f"task {request_id} was deleted")
        return found


def _not_found(request_id: str) -> ProblemError:
    return ProblemError(
        ProblemCode.NOT_FOUND,
        f"there is no task {request_id[:128]!r}; it was never accepted here, or its records are deleted by now",
    )


def _unknown(reason: str) -> ProblemError:
    return unavailable(ProblemCode.STORE_UNAVAILABLE, f"{reason}; retry in a moment")
