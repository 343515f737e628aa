"""What a lane reports to the worker that runs it: the one direction from the consumer to its surroundings."""

from collections.abc import Collection

from aiokafka import TopicPartition

from fluxpool_contract.kafka import LedgerEntry


class LaneEvents:
    """Called from the event loop; what is no coroutine must return at once. The defaults ignore all events."""

    def on_record_waiting(self) -> None:
        """A record may be claimed."""

    def on_records_lost(self, count: int) -> None:
        """So many records were deleted from the log before a worker had started them."""

    def on_consumer_failed(self) -> None:
        """A consumer failed; another one follows."""

    def on_assigned(self, partitions: Collection[TopicPartition]) -> None:
        """The group assigned these partitions; none when the lane is no member any more."""

    async def on_revoked(self) -> None:
        """The group rebalances, or the lane leaves it: both wait until this returns."""

    def crashes_of(self, entry: LedgerEntry) -> int:
        """How many crashes an entry of a former owner's ledger means."""
        return entry.crashes
