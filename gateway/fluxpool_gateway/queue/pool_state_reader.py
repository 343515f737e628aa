"""Reads the topic with the states of pools, in every server process and without a consumer group.

Owns the client. Without the topic, the right to read it, or an operator, waits are explained by what Kafka tells alone.
"""

import asyncio
import time
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_gateway.queue.pool_history import HISTORY_SECONDS
from fluxpool_gateway.queue.pool_states import PoolStates
from fluxpool_transport.kafka import (
    KafkaCredentialsError,
    KafkaMetadata,
    KafkaUnavailableError,
    TopicMetadata,
    aiokafka_options,
    explain,
    stop_consumer,
)
from fluxpool_transport.process import Backoff

CLIENT_ID: Final = "fluxpool-gateway-pools"
BACK_SECONDS: Final = HISTORY_SECONDS
"""How far back reading begins: as far as decisions are shown, some 120 heartbeats of each pool. Where the topic was
compacted meanwhile, the latest state of each is there all the same."""
POLL_MILLISECONDS: Final = 1000
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 30.0
"""The topic may be created long after the gateway started."""

logger = structlog.stdlib.get_logger(__name__)


class PoolStateReader:
    """The reader of one process: give `run()` a task."""

    def __init__(self, connection: KafkaConnection, topic: str, *, metadata: KafkaMetadata, states: PoolStates) -> None:
        self._connection = connection
        self._topic = topic
        self._metadata = metadata
        self._states = states
        self._problem: str | None = "not read yet"

    async def run(self) -> None:
        """Read until cancelled, through outages."""
        backoff = Backoff(initial_seconds=FIRST_PAUSE_SECONDS, maximum_seconds=LONGEST_PAUSE_SECONDS)
        while True:
            try:
                # Asked for apart: a consumer that names a missing topic would have some brokers create it.
                described = (await self._metadata.topics((self._topic,)))[self._topic]
                if isinstance(described, TopicMetadata):
                    await self._read(backoff)
                else:
                    self._note(explain(described))
            except (KafkaError, KafkaUnavailableError, KafkaCredentialsError) as error:
                self._note(str(error) or type(error).__name__)
            except Exception as error:  # estimates are not worth the process
                logger.exception("pool_states_failed")
                self._note(repr(error))
            await backoff.sleep()

    async def _read(self, backoff: Backoff) -> None:
        consumer = AIOKafkaConsumer(
            self._topic,
            **aiokafka_options(self._connection, client_id=CLIENT_ID),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=POLL_MILLISECONDS,
        )
        try:
            await consumer.start()
            since_ms = int((time.time() - BACK_SECONDS) * 1000)
            # Before the next question: what is written between the two answers is neither older nor behind the end.
            ends = await consumer.end_offsets(consumer.assignment())
            starts = await consumer.offsets_for_times(dict.fromkeys(consumer.assignment(), since_ms))
            for partition, start in starts.items():
                # None: every record is older.
                consumer.seek(partition, ends[partition] if start is None else start.offset)
            self._note(None)
            backoff.reset()
            while True:
                for records in (await consumer.getmany(timeout_ms=POLL_MILLISECONDS)).values():
                    for record in records:
                        self._states.take(record.key, record.value, written_at=record.timestamp / 1000)
                # Between batches of a long log others are answered.
                await asyncio.sleep(0)
        finally:
            await stop_consumer(consumer)

    def _note(self, problem: str | None) -> None:
        if (problem is None) != (self._problem is None):
            logger.info("pool_states_reading", topic=self._topic, problem=problem)
        self._problem = problem
