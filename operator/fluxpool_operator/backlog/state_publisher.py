"""Writes the states of pools to one Kafka cluster, in the background; scaling never waits for it.

Owns the producer and what waits for it, at most one record for each pool. Must not know what a state says.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from fluxpool_contract import header_names
from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka import KafkaCredentialsError, librdkafka_options

log = structlog.get_logger(__name__)

CountStates = Callable[[int, int], None]
"""Told how many states were written, and how many were not."""

CLIENT_ID: Final = "fluxpool-operator-states"
DELIVERY_SECONDS: Final = 10.0
"""After so long without an acknowledgement a record is given up; the heartbeat writes the state again."""
_POLL_SECONDS: Final = 0.1
_CLOSE_SECONDS: Final = 1.0
"""For the records of deleted pools, when the operator stops."""
_THREADS: Final = 4
"""Of all clusters: polls are short, and only the client of a new connection with OAUTHBEARER takes seconds."""
_HEADERS: Final = [
    (header_names.CE_SPECVERSION, b"1.0"),
    (header_names.CE_TYPE, header_names.TYPE_POOL_STATE.encode()),
    (header_names.CE_SOURCE, b"/fluxpool/operator"),
    (header_names.CONTENT_TYPE, b"application/json"),
]
# Not the loop's own executor: DNS and files of the operator must not wait behind a broker that is away.
_executor: Final = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="pool-states")


class StatePublisher:
    """The producer of one cluster; connects with the first state."""

    def __init__(self, connection: KafkaConnection, tasks: asyncio.TaskGroup, *, count: CountStates) -> None:
        self._connection = connection
        self._tasks = tasks
        self._count = count
        self._waiting: dict[tuple[str, str], bytes | None] = {}
        """Value by topic and key: a later state replaces one that was not sent yet."""
        self._sending: asyncio.Task[None] | None = None
        self._producer: Producer | None = None
        self._results: list[KafkaError | None] = []
        self._problem: str | None = None

    @property
    def is_busy(self) -> bool:
        """Whether records are on their way."""
        return self._sending is not None and not self._sending.done()

    def put(self, topic: str, *, key: str, value: bytes | None) -> None:
        """Write a record soon."""
        self._waiting[topic, key] = value
        if not self.is_busy:
            self._sending = self._tasks.create_task(self._send(), name="pool-states")

    async def close(self) -> None:
        """Give what is on its way a moment, and disconnect."""
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=_CLOSE_SECONDS)
            self._sending.cancel()
            await asyncio.wait({self._sending})
        if self._producer is not None:
            self._producer.purge()

    async def _send(self) -> None:
        while self._waiting:
            # Taken before the first await: what comes during it is the next batch.
            batch, self._waiting = self._waiting, {}
            try:
                await self._write(batch)
            except (KafkaException, KafkaCredentialsError, BufferError) as error:
                self._note(len(batch), problem=str(error) or repr(error))
            except Exception as error:
                # A defect. It must not end the task group, which has the readings of all pools.
                log.exception("pool_states_failed")
                self._note(len(batch), problem=repr(error))

    async def _write(self, batch: dict[tuple[str, str], bytes | None]) -> None:
        loop = asyncio.get_running_loop()
        if self._producer is None:
            self._producer = await loop.run_in_executor(_executor, self._open)
        producer: Producer = self._producer
        self._results = []
        for (topic, key), value in batch.items():
            try:
                producer.produce(topic, value, key, headers=_HEADERS, on_delivery=self._delivered)
            except KafkaException as error:
                # So librdkafka refuses further records of a missing topic; those of other pools have theirs.
                self._results.append(error.args[0])
        # librdkafka ends each record with a result of its own; the margin is for one that never comes.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * DELIVERY_SECONDS):
                while len(self._results) < len(batch):
                    await loop.run_in_executor(_executor, producer.poll, _POLL_SECONDS)
        refused = [error for error in self._results if error is not None]
        failed = len(batch) - len(self._results) + len(refused)
        self._note(failed, written=len(batch) - failed, problem=refused[0].str() if refused else "no result came")

    def _open(self) -> Producer:
        return Producer(
            {
                **librdkafka_options(self._connection, client_id=CLIENT_ID),
                "message.timeout.ms": round(DELIVERY_SECONDS * 1000),
                # In order also when a batch is sent again: a state must not come after the end of its pool.
                "max.in.flight.requests.per.connection": 1,
                # A broker would create it without compaction.
                "allow.auto.create.topics": False,
                "log_level": 0,
            }
        )

    def _delivered(self, error: KafkaError | None, _message: object) -> None:
        # In a thread that polls: appending is all that is safe there.
        self._results.append(error)

    def _note(self, failed: int, *, problem: str, written: int = 0) -> None:
        self._count(written, failed)
        problem_now = problem if failed else None
        if (problem_now is None) != (self._problem is None):
            if problem_now is not None:
                log.warning(
                    "pool_states_not_written",
                    problem=problem_now,
                    bootstrap_servers=self._connection.bootstrap_servers,
                    remedy="create the topic and grant WRITE; gateways do not know what starts until then",
                )
            else:
                log.info("pool_states_written", bootstrap_servers=self._connection.bootstrap_servers)
        self._problem = problem_now
