"""Which offset of a partition may be committed, and the ledger beside it. Pure: no Kafka, no clock.

Records of a partition start in the order of their offsets and finish in any order. Everything below `next_offset` (one
past the last started record) is finished, except for what is in flight. The commit point is the lowest offset in
flight, else `next_offset`. Offsets need not be contiguous: markers and compaction leave gaps.
"""

from dataclasses import dataclass, field, replace

from fluxpool_contract.kafka import LedgerEntry, encode_ledger


@dataclass(slots=True)
class PartitionOffsets:
    """Progress on one assigned partition."""

    next_offset: int | None = None
    """One past the highest started offset, or what was skipped to; None until the first record came."""
    committed: int | None = None
    """What the group has committed, as far as this worker knows; None when nothing."""
    in_flight: dict[int, LedgerEntry | None] = field(default_factory=dict)
    """Started and not finished; the entry is None until the task is known well enough to be recorded."""
    inherited: dict[int, LedgerEntry] = field(default_factory=dict)
    """What the ledger said of tasks that are not started here yet: their counts go into every commit until then."""
    recorded: set[int] = field(default_factory=set)
    """Those in flight whose entry was written here and not only inherited."""
    recommits: bool = False
    """What the group has committed is committed again as it is, even though nothing was started yet."""

    def inherit(self, entries: dict[int, LedgerEntry]) -> None:
        """Take over what the ledger of a former owner says, with its crashes counted already."""
        self.inherited |= {offset: replace(entry, released=True) for offset, entry in entries.items()}
        self._drop_passed()

    def accepts(self, offset: int) -> bool:
        """Whether a record from the consumer is new: after a rebalance, finished and adopted ones come again."""
        return self.next_offset is None or offset >= self.next_offset

    def start(self, offset: int) -> LedgerEntry | None:
        """Take a record, and what was inherited for it; raises `ValueError` when it was taken before."""
        if not self.accepts(offset):
            raise ValueError(f"offset {offset} was started before; the next offset is {self.next_offset}")
        entry = self.inherited.get(offset)
        self.in_flight[offset] = entry
        self.next_offset = offset + 1
        self._drop_passed()
        return entry

    def record(self, offset: int, entry: LedgerEntry) -> None:
        """Write a task in flight into the ledger; raises `KeyError` when the offset is not in flight."""
        if offset not in self.in_flight:
            raise KeyError(offset)
        self.in_flight[offset] = entry
        self.recorded.add(offset)

    def mark_generated(self, offset: int) -> None:
        """The task's images exist: whatever kills the worker from now on, it is not this task."""
        entry = self.in_flight.get(offset)
        if entry is not None:
            self.in_flight[offset] = replace(entry, generated=True)

    def finish(self, offset: int) -> None:
        """The task has reached its end, stored and published; raises `KeyError` when the offset is not in flight."""
        del self.in_flight[offset]
        self.recorded.discard(offset)

    def release(self, offset: int | None = None, *, permanently: bool = True) -> None:
        """Mark one task in flight, or all, as released, permanently or until `resume()`; offsets stay uncommitted."""
        released = list(self.in_flight) if offset is None else [offset]
        self._set_released(released, released=True)
        if permanently:
            self.recorded.difference_update(released)

    def resume(self) -> None:
        """Take back what was not released permanently: the partition stayed here, and its tasks continue."""
        self._set_released(list(self.recorded), released=False)

    def advance_to_committed(self, committed: int) -> frozenset[int]:
        """Another member committed that offset meanwhile: what is below it is no longer this worker's.

        Returns the offsets in flight that are lost. The commit point never lies below `committed` afterwards.
        """
        lost = frozenset(offset for offset in self.in_flight if offset < committed)
        for offset in lost:
            self.finish(offset)
        self.committed = committed
        if self.next_offset is not None:
            self.next_offset = max(self.next_offset, committed)
        return lost

    def seek_past_gap(self, offset: int) -> bool:
        """Nothing is left to do below that offset; returns whether the commit point moves.

        Not while anything is in flight: its own end moves it. Never back, nor to where the group is anyway.
        """
        if self.in_flight or offset <= ((self.committed or 0) if self.next_offset is None else self.next_offset):
            return False
        self.next_offset = offset
        self._drop_passed()
        return True

    def commit_point(self) -> int | None:
        """The offset to commit: every record below it is finished. None when nothing was ever started here."""
        at_rest = self.committed if self.next_offset is None and self.recommits else self.next_offset
        return min(self.in_flight, default=at_rest)

    def metadata(self, *, topic_id: str | None = None, model_family: str | None = None) -> str:
        """The ledger, as the text committed beside the offset; it names topic and family where they are known."""
        known = {offset: entry for offset, entry in self.in_flight.items() if entry is not None}
        return encode_ledger({**self.inherited, **known}, topic_id=topic_id, model_family=model_family)

    def _drop_passed(self) -> None:
        self.inherited = {offset: entry for offset, entry in self.inherited.items() if self.accepts(offset)}

    def _set_released(self, offsets: list[int], *, released: bool) -> None:
        for offset in offsets:
            entry = self.in_flight[offset]
            if entry is not None:
                self.in_flight[offset] = replace(entry, released=released)
