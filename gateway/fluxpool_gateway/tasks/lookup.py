"""Finding a task so that "there is none" is only said when it is certain.

The store first, then what this process accepted itself, then the barrier and the store once more.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Final, TypeVar

import structlog
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import OffsetSpec

from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import REQUEST_ID
from fluxpool_gateway.http.problem import Problem, ProblemCode, ProblemError
from fluxpool_gateway.projection.barrier import BarrierNotReachedError, ProjectionBarrier
from fluxpool_gateway.projection.projected_records import task_topics
from fluxpool_gateway.projection.topics import TopicLayout, read_layouts
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.task_state import TaskState
from fluxpool_gateway.store.task_store import Heartbeat, LogPosition, Position, Quarantine
from fluxpool_gateway.tasks.recent_tasks import RecentTask, RecentTasks
from fluxpool_transport.kafka import KafkaAdmin, KafkaUnavailableError

T = TypeVar("T")

RETRY_AFTER_SECONDS: Final = 1
_READER_THREADS: Final = 4
_REQUEST_SECONDS: Final = 2.0

logger = structlog.stdlib.get_logger(__name__)


class AsyncTaskStore:
    """The store's reader for an event loop; close it at the end."""

    def __init__(self, reader: TaskStoreReader) -> None:
        self._reader = reader
        self._executor = ThreadPoolExecutor(max_workers=_READER_THREADS, thread_name_prefix="task-store")

    async def find(self, request_id: str) -> TaskState | None:
        """The task with this id as far as it is projected."""
        return await self._run(lambda: self._reader.find(request_id))

    async def positions(self) -> Mapping[Position, LogPosition]:
        """How far the projector is."""
        return await self._run(self._reader.positions)

    async def quarantine(self) -> Quarantine:
        """The records that the projector passed over."""
        return await self._run(self._reader.quarantine)

    async def heartbeat(self) -> Heartbeat | None:
        """What the projector last said of itself."""
        return await self._run(self._reader.heartbeat)

    def close(self) -> None:
        """End the threads and the connections."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._reader.close()

    async def _run(self, read: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, read)


class TaskTopicEnds:
    """Where the task topics end now, as the brokers say."""

    def __init__(self, admin: KafkaAdmin, topics: TopicNames) -> None:
        self._admin = admin
        self._topics = task_topics(topics)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="topic-metadata")

    async def read(self) -> Mapping[Position, LogPosition]:
        """The end of every partition; what lies before it was there when this was called.

        Raises `KafkaException` or `KafkaUnavailableError` when it cannot be read of every partition.
        """
        positions = await asyncio.get_running_loop().run_in_executor(self._executor, self._partitions)
        futures = self._admin.client.list_offsets(
            {TopicPartition(topic, partition): OffsetSpec.latest() for topic, partition in positions},
            # As the projector reads: what an open transaction hides cannot be waited for.
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_REQUEST_SECONDS,
        )
        answers = await self._admin.settle(futures)
        # Asked last: when a topic was made again meanwhile, the new id comes with an end that it may never reach, and
        # the question is not answered. The other way round, "no such task" would be said of its tasks.
        layouts = await read_layouts(self._admin, self._topics)
        ends: dict[Position, LogPosition] = {}
        for position, answer in answers.items():
            if isinstance(answer, BaseException):
                raise answer
            layout = layouts[position.topic]
            if not isinstance(layout, TopicLayout):
                raise KafkaUnavailableError(f"topic {position.topic} cannot be read: {layout}")
            ends[position.topic, position.partition] = LogPosition(answer.offset, layout.topic_id)
        return ends

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _partitions(self) -> list[Position]:
        """Read for every round: a task may lie in a partition that was just added."""
        positions: list[Position] = []
        for topic in self._topics:
            metadata = self._admin.client.list_topics(topic, _REQUEST_SECONDS).topics[topic]
            if metadata.error is not None:
                raise KafkaUnavailableError(f"topic {topic} cannot be read: {metadata.error.str()}")
            positions += [(topic, partition) for partition in metadata.partitions]
        return positions


class TaskLookup:
    """Finds tasks by their id."""

    def __init__(self, *, store: AsyncTaskStore, recent: RecentTasks, barrier: ProjectionBarrier) -> None:
        self._store = store
        self._recent = recent
        self._barrier = barrier

    async def find(self, request_id: str) -> TaskState | RecentTask:
        """The task.

        Raises `ProblemError`: 404 when it certainly was never accepted, 503 while that cannot be known.
        """
        if not REQUEST_ID.fullmatch(request_id):
            raise ProblemError(_not_found(request_id))
        try:
            found = await self._store.find(request_id) or self._recent.get(request_id)
            if found is None:
                await self._barrier.passed()
                found = await self._store.find(request_id)
        except BarrierNotReachedError as error:
            raise ProblemError(_unknown(f"whether there is a task {request_id} is not known yet ({error})")) from error
        except StoreUnavailableError as error:
            logger.warning("task_store_unreadable", reason=str(error))
            raise ProblemError(_unknown("the task store cannot be read, or is being rebuilt")) from error
        if found is None:
            raise ProblemError(_not_found(request_id))
        return found


def _not_found(request_id: str) -> Problem:
    return Problem(
        status=HTTPStatus.NOT_FOUND,
        code=ProblemCode.NOT_FOUND,
        detail=f"there is no task {request_id[:128]!r}; it was never accepted here, or its records are deleted by now",
    )


def _unknown(reason: str) -> Problem:
    return Problem(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code=ProblemCode.STORE_UNAVAILABLE,
        detail=f"{reason}; ask again in a moment",
        headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
    )
