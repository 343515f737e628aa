"""How the log of one partition was read within one assignment, and what that says of records nobody will see.

Pure: offsets come in as they are seen, decisions go out. Knows nothing of Kafka, tasks or commits.
"""

from dataclasses import dataclass, field


@dataclass(slots=True)
class FetchGaps:
    """Offsets that were passed over in one partition's log.

    Most are transaction markers, aborted records or what compaction took: only where the log now begins tells whether
    records are lost.
    """

    gaps: list[range] = field(default_factory=list)
    """Passed over, and not explained yet; to be explained only once the reading is settled."""
    has_start: bool = False
    """Whether it is known where this assignment should begin; nobody can say before what its first offset passed."""
    reached: int | None = None
    """One past the last record seen in this assignment, or the position; None before the first."""
    _first: int | None = None
    _low_watermark: int | None = None
    _former_gaps: list[range] = field(default_factory=list)

    def begin(self) -> None:
        """There is a new assignment: the consumer goes back to what the group committed."""
        if self.has_start:
            self._former_gaps = self.gaps
        self.gaps, self.has_start, self.reached, self._first, self._low_watermark = [], False, None, None, None

    def set_start(self, low_watermark: int | None) -> None:
        """Everything below `low_watermark` is done, or in flight here; None when the group has no offset yet.

        What a former assignment passed over above it is seen again, and explained then.
        """
        self.has_start = True
        self._low_watermark = low_watermark
        seen, self.gaps = self.gaps, []
        if low_watermark is not None:
            self.gaps = [
                range(gap.start, min(gap.stop, low_watermark)) for gap in self._former_gaps if gap.start < low_watermark
            ]
        self._former_gaps = []
        if self._first is not None:
            self._pass_over(low_watermark, self._first)
        for gap in seen:
            self._pass_over(gap.start, gap.stop)

    def goes_back(self, offset: int) -> bool:
        """Whether a record or position at that offset is one that a log which only grows could not show."""
        return self.reached is not None and offset < self.reached

    def see(self, offset: int, *, next_offset: int) -> None:
        """A record at that offset, or the position: then both are the same."""
        if self._first is None:
            self._first = offset
        self._pass_over(self._low_watermark if self.reached is None else self.reached, offset)
        self.reached = next_offset

    def explain(self, asked: list[range], *, log_start: int) -> list[range]:
        """The offsets within gaps that are gone from the log, of those that are still open; they are closed now."""
        known = [gap for gap in asked if gap in self.gaps]
        self.gaps = [gap for gap in self.gaps if gap not in known]
        ranges = (lost_range(expected=gap.start, seen=gap.stop, log_start=log_start) for gap in known)
        return [lost for lost in ranges if lost]

    def _pass_over(self, expected: int | None, offset: int) -> None:
        if expected is not None and offset > (begin := max(expected, self._low_watermark or 0)):
            self.gaps.append(range(begin, offset))


def lost_range(*, expected: int, seen: int, log_start: int) -> range:
    """Offsets that were never seen and are gone from the log; empty as a rule.

    Retention, or somebody who deletes records, takes them; an upper bound, for markers have offsets too.
    """
    return range(expected, max(expected, min(seen, log_start)))
