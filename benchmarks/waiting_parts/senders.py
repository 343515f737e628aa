"""Senders for `waiting.py`: the gateway's producer with the partition chosen by load, round robin, or by key hash.

Knows nothing of the workers.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, assert_never

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.messages.decoding import work_of_task
from fluxpool_contract.messages.derived import new_request_id
from fluxpool_gateway.tasks.producer import TaskProducer
from fluxpool_transport.kafka.clients import librdkafka_options
from fluxpool_transport.partitioner.load_aware import LoadAwarePartitioner
from fluxpool_transport.partitioner.shared_sends import SharedSends

SEND_SECONDS: Final = 60.0
"""A pause of the machine makes waits longer, but must not end the run."""
LOADS_KNOWN_SECONDS: Final = 30.0
USUAL_STEPS: Final = 28
_BY_HASH: Final = -1
"""No partition: librdkafka hashes the key."""


def task_value(number: int, work: float) -> bytes:
    """A record's value: the task with this number, of about this size."""
    steps = round(work * USUAL_STEPS)
    return json.dumps({"request_id": f"task-{number}", "prompt": "a cat", "steps": steps}).encode()


class Way(StrEnum):
    """How the partition is chosen."""

    BY_LOAD = "by load"
    ROUND_ROBIN = "round robin"
    KEY_HASH = "key hash"


@dataclass(frozen=True, slots=True)
class Sender:
    """Like one sending process: a separate producer and partitioner."""

    way: Way
    topic: str
    partitions: int
    producer: TaskProducer
    partitioner: LoadAwarePartitioner

    async def send(self, number: int, work: float) -> None:
        """Send one task and wait for the acknowledgement; raises `DeliveryError`."""
        match self.way:
            case Way.KEY_HASH:
                partition = _BY_HASH
            case Way.BY_LOAD | Way.ROUND_ROBIN:
                partition = self.partitioner.choose(self.topic, partitions=self.partitions, work=work)
            case _:
                assert_never(self.way)
        offset = await self.producer.send(
            topic=self.topic,
            partition=partition,
            key=new_request_id().encode(),
            value=task_value(number, work),
            headers=[],
        )
        self.partitioner.acknowledged(self.topic, partition=partition, offset=offset, work=work)


@asynccontextmanager
async def running_senders(
    connection: KafkaConnection,
    way: Way,
    *,
    topic: str,
    group: str,
    partitions: int,
    count: int,
    shared_folder: Path | None,
) -> AsyncIterator[Sequence[Sender]]:
    """Ready senders: those that choose by load have read the loads. With a folder they share their choices."""
    # Without a group, partitions are chosen round robin.
    groups = {group: topic} if way is Way.BY_LOAD else {}
    senders = [
        Sender(
            way,
            topic,
            partitions,
            TaskProducer(librdkafka_options(connection, client_id="waiting"), deadline_seconds=SEND_SECONDS),
            LoadAwarePartitioner(
                connection,
                groups,
                work_of=work_of_task,
                shared=None if shared_folder is None else SharedSends(shared_folder),
            ),
        )
        for _ in range(count)
    ]
    for sender in senders:
        sender.producer.start()
    reading = [asyncio.create_task(sender.partitioner.run()) for sender in senders if groups]
    try:
        async with asyncio.timeout(LOADS_KNOWN_SECONDS):
            while groups and any(  # noqa: ASYNC110 - there is no event to wait for
                sender.partitioner.round_robin_reason(topic, partitions=partitions) for sender in senders
            ):
                await asyncio.sleep(0.1)
        yield senders
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for sender in senders:
            await sender.producer.stop()
