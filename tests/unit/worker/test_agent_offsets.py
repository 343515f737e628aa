"""Commit points and the ledger: no interleaving commits past unfinished work or lowers an offset."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fluxpool_contract.kafka.ledger import MAX_METADATA_BYTES, LedgerEntry, decode_ledger, encode_ledger
from fluxpool_worker.agent.consumer.offsets import PartitionOffsets


def entry(task: str = "t", *, crashes: int = 0, released: bool = False) -> LedgerEntry:
    return LedgerEntry(task=task, worker="pod", started_at=1_700_000_000, crashes=crashes, released=released)


def test_nothing_is_committed_before_anything_was_started() -> None:
    assert PartitionOffsets().commit_point() is None


def test_the_commit_point_is_the_lowest_offset_in_flight() -> None:
    offsets = PartitionOffsets()
    for offset in (5, 6, 9):
        offsets.start(offset)
    offsets.finish(6)
    assert offsets.commit_point() == 5
    offsets.finish(5)
    assert offsets.commit_point() == 9
    offsets.finish(9)
    assert offsets.commit_point() == 10


def test_a_record_that_was_started_is_not_accepted_again() -> None:
    offsets = PartitionOffsets()
    offsets.start(5)
    offsets.start(6)
    offsets.finish(5)
    assert [offset for offset in range(4, 9) if offsets.accepts(offset)] == [7, 8]
    with pytest.raises(ValueError, match="started before"):
        offsets.start(6)


def test_deleted_records_are_skipped_unless_something_is_in_flight() -> None:
    offsets = PartitionOffsets()
    assert offsets.seek_past_gap(8)
    assert (offsets.commit_point(), offsets.accepts(7), offsets.accepts(8)) == (8, False, True)
    assert not offsets.seek_past_gap(8)
    offsets.start(9)
    assert not offsets.seek_past_gap(12)
    assert offsets.commit_point() == 9


def test_offsets_below_the_committed_one_are_not_skipped_again() -> None:
    offsets = PartitionOffsets()
    offsets.advance_to_committed(8)
    assert not offsets.seek_past_gap(8)
    assert offsets.commit_point() is None
    assert offsets.seek_past_gap(9)
    assert offsets.commit_point() == 9


def test_the_ledger_is_part_of_the_commit_and_a_release_can_be_withdrawn() -> None:
    offsets = PartitionOffsets()
    offsets.start(7)
    assert decode_ledger(offsets.metadata()) == {}
    offsets.record(7, entry("seven"))
    offsets.release(permanently=False)
    assert decode_ledger(offsets.metadata()) == {7: entry("seven", released=True)}
    offsets.resume()
    assert decode_ledger(offsets.metadata()) == {7: entry("seven")}
    offsets.finish(7)
    assert offsets.metadata() == encode_ledger({})


def test_the_committed_offset_can_be_committed_again_before_anything_is_started() -> None:
    offsets = PartitionOffsets()
    offsets.recommits = True
    assert offsets.commit_point() is None
    offsets.advance_to_committed(8)
    assert offsets.commit_point() == 8
    assert offsets.accepts(3), "a recreated topic begins below the committed offset"
    offsets.start(9)
    offsets.finish(9)
    assert offsets.commit_point() == 10


def test_an_abandoned_task_is_not_resumed_after_a_rebalance() -> None:
    offsets = PartitionOffsets()
    for offset in (7, 8):
        offsets.start(offset)
        offsets.record(offset, entry(str(offset)))
    offsets.release(7)
    offsets.release(permanently=False)
    offsets.resume()
    assert decode_ledger(offsets.metadata()) == {7: entry("7", released=True), 8: entry("8")}


def test_a_released_ledger_has_the_form_that_other_versions_read() -> None:
    text = encode_ledger({12: entry("req", crashes=2, released=True)})
    assert json.loads(text) == {
        "v": 1,
        "tasks": {"12": {"task": "req", "crashes": 2, "pod": "pod", "started_at": 1_700_000_000, "released": True}},
    }


@given(st.dictionaries(st.integers(0, 2**62), st.builds(entry, st.text(max_size=400)), max_size=40))
def test_an_encoded_ledger_fits_the_broker_and_keeps_its_lowest_offsets(entries: dict[int, LedgerEntry]) -> None:
    text = encode_ledger(entries)
    assert len(text.encode()) <= MAX_METADATA_BYTES
    kept = decode_ledger(text)
    assert kept == {offset: entries[offset] for offset in sorted(entries)[: len(kept)]}


@pytest.mark.parametrize(
    "metadata", [None, "", "a consumer's own text", "{}", '{"tasks": 1}', '{"tasks": {"x": {}}}', "[]"]
)
def test_metadata_of_other_clients_is_an_empty_ledger(metadata: str | None) -> None:
    assert decode_ledger(metadata) == {}


class PartitionMachine(RuleBasedStateMachine):
    """Random records, finished in any order, and rebalances that deliver everything uncommitted again."""

    @initialize(first=st.integers(0, 5))
    def begin(self, first: int) -> None:
        self.offsets = PartitionOffsets()
        self.committed = first
        self.log_end = first
        self.position = first
        self.finished: set[int] = set()
        self.existing: set[int] = set()

    @rule(gap=st.integers(0, 2))
    def produce(self, gap: int) -> None:
        self.existing.add(self.log_end + gap)
        self.log_end += gap + 1

    @rule()
    def hand_out_next(self) -> None:
        for offset in sorted(offset for offset in self.existing if offset >= self.position)[:1]:
            self.position = offset + 1
            if self.offsets.accepts(offset):
                assert offset not in self.finished, "a finished task was started again"
                self.offsets.start(offset)

    @rule()
    def delete_records_that_were_not_done(self) -> None:
        log_start = self.log_end - 1
        if log_start > self.committed and not self.offsets.in_flight:
            self.existing = {offset for offset in self.existing if offset >= log_start}
            self.offsets.seek_past_gap(log_start)
            self.position = max(self.position, log_start)

    @rule()
    def skip_markers(self) -> None:
        if all(offset < self.position for offset in self.existing):
            self.position = self.log_end
        self.offsets.seek_past_gap(self.position)

    @precondition(lambda self: self.offsets.in_flight)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(sorted(self.offsets.in_flight)))
        self.offsets.finish(offset)
        self.finished.add(offset)

    @rule()
    def commit(self) -> None:
        commit_point = self.offsets.commit_point()
        if commit_point is not None:
            assert commit_point >= self.committed, "an offset was lowered"
            self.committed = commit_point

    @rule()
    def keep_the_partition_through_a_rebalance(self) -> None:
        self.offsets.release(permanently=False)
        self.commit()
        self.offsets.resume()
        self.position = self.committed

    @rule()
    def lose_the_partition_and_get_it_back(self) -> None:
        self.finished = {offset for offset in self.finished if offset < self.committed}
        self.offsets = PartitionOffsets()
        self.position = self.committed

    @invariant()
    def the_committed_offset_never_passes_unfinished_work(self) -> None:
        if hasattr(self, "existing"):
            assert all(offset in self.finished for offset in self.existing if offset < self.committed)


TestPartitionMachine = PartitionMachine.TestCase
