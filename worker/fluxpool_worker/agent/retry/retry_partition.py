"""One partition of a retry topic as one pool's relay sees it: records that wait, and the offset to commit. Pure.

Knows nothing of Kafka clients or clocks. Records of other pools are passed over; a record of this pool stays pending
until it is relayed. Records are relayed when they are due, whatever their order, so one that is not due holds back the
commit and nothing else. Offsets that were relayed ahead of the commit are written beside it, for the next relay.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from fluxpool_contract.kafka import MAX_RELAYED_AHEAD, relayed_ahead, retry_offset_text

MAX_PENDING_RECORDS: Final = MAX_RELAYED_AHEAD
"""Pending and relayed-ahead records of one partition; the text beside a commit has room for all of them."""
MAX_PENDING_BYTES: Final = 4 * 1024 * 1024
"""Bounds the memory of a relay: a single larger record is still taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingRetry:
    """A record that this pool has to relay."""

    record: Any
    due_seconds: float
    """Since 1970."""
    size_bytes: int
    is_stray: bool = False
    """It names no origin, so every pool that reads the topic sees it as possibly its own."""
    is_undecodable: bool = False
    """Nothing of it can be read, so it is a dead letter."""


class RetryPartition:
    """What one relay knows of one partition."""

    def __init__(self, *, start: int, relayed: frozenset[int] = frozenset(), topic_id: str | None = None) -> None:
        """`relayed` are offsets from `start` on that were relayed before; `topic_id` is that of the topic read."""
        self.position = start
        """The next offset to see."""
        self.committed = start
        """The offset that the group has, as far as is known."""
        self.topic_id = topic_id
        self._reached = start
        self._pending: dict[int, PendingRetry] = {}
        self._relayed = {offset for offset in relayed if offset >= start}
        self._pending_bytes = 0
        self._stray_due_seconds = 0.0
        self._committed_text: str | None = None

    @property
    def is_full(self) -> bool:
        """Whether no further record should be fetched before some are relayed."""
        held = len(self._pending) + len(self._relayed)
        return held >= MAX_PENDING_RECORDS or self._pending_bytes >= MAX_PENDING_BYTES

    @property
    def commit_offset(self) -> int:
        """Every record before this offset is relayed, or another pool's."""
        return min(self._pending, default=self.position)

    @property
    def is_changed(self) -> bool:
        """Whether the group does not have the present state yet."""
        return (self.commit_offset, self.metadata()) != (self.committed, self._committed_text)

    def remember(self, former: "RetryPartition") -> None:
        """Adopt what was relayed and could not be committed, when it is certain that the log is the same."""
        if self.topic_id is not None and self.topic_id == former.topic_id:
            self._relayed |= {offset for offset in former._relayed if offset >= self.position}  # noqa: SLF001 - its own kind

    def goes_back(self, offset: int) -> bool:
        """Whether a record at that offset is one that a log which only grows could not show next."""
        return offset < self._reached

    def see(self, offset: int, pending: PendingRetry | None) -> None:
        """Take in the next record; None for one that is not this pool's."""
        self._reached = offset + 1
        if offset < self.position:
            return  # another relay of the pool got further
        self.position = offset + 1
        if pending is not None and offset not in self._relayed:
            if pending.is_stray:
                # In the order of their offsets: pools tell each other of strays by one offset, which covers all before.
                self._stray_due_seconds = max(self._stray_due_seconds, pending.due_seconds)
                pending = replace(pending, due_seconds=self._stray_due_seconds)
            self._pending[offset] = pending
            self._pending_bytes += pending.size_bytes

    def pass_over(self, offset: int) -> None:
        """There is no record before this offset that has not been seen."""
        self.position = max(self.position, offset)

    def due(self, now_seconds: float) -> list[tuple[int, PendingRetry]]:
        """Pending records that are due now, with their offsets, in the order of their offsets."""
        return [(offset, item) for offset, item in self._pending.items() if item.due_seconds <= now_seconds]

    def next_due_seconds(self) -> float | None:
        """When the next pending record is due; None when none is pending."""
        return min((item.due_seconds for item in self._pending.values()), default=None)

    def relayed(self, offset: int) -> None:
        """A pending record was relayed and acknowledged."""
        item = self._pending.pop(offset, None)
        if item is not None:
            self._pending_bytes -= item.size_bytes
            self._relayed.add(offset)

    def catch_up(self, offset: int, metadata: str) -> None:
        """The group has this offset and text. What another relay of the pool did beyond ours is adopted.

        A lower offset than ours changes nothing: ours is committed again.
        """
        for relayed in [*(known for known in self._pending if known < offset), *relayed_ahead(metadata, offset)]:
            self.relayed(relayed)
            if relayed >= self.position:
                self._relayed.add(relayed)
        self.position = max(self.position, offset)
        self.commit_done(offset, metadata)

    def commit_done(self, offset: int, metadata: str) -> None:
        """The group has what `commit_offset` and `metadata()` said."""
        self.committed, self._committed_text = offset, metadata
        low_watermark = min(self.commit_offset, offset)
        self._relayed = {known for known in self._relayed if known >= low_watermark}

    def commit_again(self) -> None:
        """Have the present state committed again, so that Kafka keeps it."""
        self._committed_text = None

    def metadata(self) -> str:
        """The text beside the committed offset."""
        return retry_offset_text(commit_offset=self.commit_offset, relayed=self._relayed, topic_id=self.topic_id)
