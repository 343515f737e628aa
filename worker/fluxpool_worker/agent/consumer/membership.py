"""What aiokafka has no public API for: the one module that uses its internals, pinned by tests on a real broker.

- A commit carries a long retention time, so that offsets outlive a pool that sleeps at zero (aiokafka speaks
  OffsetCommit v2 and v3, which have the field, and always sends the broker's default).
- A member that lost its generation commits no more. aiokafka would send the commit without a generation, and a broker
  accepts that for an empty group, even when it sets the offset back.
- The ledger of a partition is read where its offset is. `committed()` drops the metadata, and the library's admin
  client answers nothing at all where the coordinator answers with an error.
- The sticky assignor keeps its state on the class; every consumer gets a subclass of its own.
"""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from aiokafka.errors import CommitFailedError
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.structs import OffsetAndMetadata


def keep_offsets_for(retention: timedelta) -> None:
    """Let every commit of this process ask the broker to keep the offset for this long."""
    OffsetCommitRequest.DEFAULT_RETENTION_TIME = int(retention.total_seconds() * 1000)


def own_sticky_assignor() -> type[StickyPartitionAssignor]:
    """A sticky assignor with a state of its own."""
    return type("LaneStickyAssignor", (StickyPartitionAssignor,), {"member_assignment": None})


def has_generation(consumer: AIOKafkaConsumer) -> bool:
    """Whether the consumer is a member of its group, as far as it knows."""
    return bool(consumer._coordinator.generation >= 0)  # noqa: SLF001 - see the module's docstring


def member_id(consumer: AIOKafkaConsumer) -> object:
    """The consumer's member id; another one after the group removed it."""
    return consumer._coordinator.member_id  # noqa: SLF001 - see the module's docstring


def refuse_commits_without_generation(consumer: AIOKafkaConsumer) -> None:
    """Make every commit outside a generation fail with `CommitFailedError` before it is sent; call after `start()`."""
    coordinator = consumer._coordinator  # noqa: SLF001 - see the module's docstring
    send = coordinator._do_commit_offsets  # noqa: SLF001

    async def guarded(assignment: Any, offsets: Mapping[Any, Any]) -> None:
        # The library shields it from a caller who gives up; asyncio would then print its error as never retrieved.
        sending = asyncio.current_task()
        if sending is not None:
            sending.add_done_callback(_retrieve_error)
        # No await lies between this check and the building of the request, so a generation lost meanwhile is noticed.
        if not has_generation(consumer):
            raise CommitFailedError("the member lost its generation; its offsets are no longer its own to commit")
        await send(assignment, offsets)

    coordinator._do_commit_offsets = guarded  # noqa: SLF001


def _retrieve_error(sending: "asyncio.Task[Any]") -> None:
    if not sending.cancelled():
        sending.exception()


async def committed_with_metadata(
    consumer: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """What the group has committed, with the text beside it; partitions without a commit are absent.

    Waits for a coordinator without bound: put it under a deadline. Raises `KafkaError` when the answer is an error.
    """
    committed: dict[TopicPartition, OffsetAndMetadata] = await consumer._coordinator.fetch_committed_offsets(  # noqa: SLF001 - see the module's docstring
        list(partitions)
    )
    return committed
