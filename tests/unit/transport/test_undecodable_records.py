"""How consumers handle fetched bytes that the client library cannot decode."""

import inspect
from collections.abc import Sequence

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import consumer, fetcher
from aiokafka.structs import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxpool_transport.kafka import batch_decompression, undecodable_records
from fluxpool_transport.kafka.fetch_responses import FetchedBytes, TolerantFetcher
from fluxpool_transport.kafka.undecodable_records import FetchedBatches, TolerantPartitionRecords, UndecodableRecord
from kit.brokers.odd_batches import CODECS, batch, legacy_batch, with_right_crc, with_wrong_crc

PARTITION = TopicPartition("tasks", 3)
undecodable_records.install()


def records_at(position: int, fetched: FetchedBytes) -> TolerantPartitionRecords:
    """The records that aiokafka's fetcher makes of a fetch response at that position."""
    return TolerantPartitionRecords(
        PARTITION, FetchedBatches(fetched), [], position, None, None, True, fetcher.READ_COMMITTED
    )


def read(fetched: bytes, *, position: int = 0, log_end: int | None = None) -> list[ConsumerRecord]:
    """Read a fetch response at that position like a consumer."""
    return list(records_at(position, FetchedBytes(fetched, log_end)))


def outline(records: Sequence[ConsumerRecord]) -> list[tuple[int, object]]:
    """(offset, value) of each record; the reason instead of the value if it cannot be decoded."""
    return [
        (record.offset, record.problem if isinstance(record, UndecodableRecord) else record.value) for record in records
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_decodable_records_are_unchanged(codec: str) -> None:
    records = read(batch([b"one" * 50, b"two" * 50], codec=codec) + batch([b"three"], base_offset=7), position=1)

    assert outline(records) == [(1, b"two" * 50), (7, b"three")]
    assert (records[0].key, records[0].headers, records[0].timestamp) == (b"key", (("plain", b"1"),), 1001)


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4"])
def test_old_formats_are_read(codec: str) -> None:
    assert outline(read(legacy_batch([b"x" * 300], codec=codec))) == [(0, b"x" * 300)]


@pytest.mark.parametrize("codec", CODECS)
def test_a_record_with_an_undecodable_header_name_keeps_its_value(codec: str) -> None:
    records = read(batch([b"a" * 99, b"b" * 99, b"c" * 99], codec=codec, odd_names=[1]))

    assert outline(records) == [(0, b"a" * 99), (1, "the name of a header is not UTF-8"), (2, b"c" * 99)]
    odd = records[1]
    assert isinstance(odd, UndecodableRecord)
    assert odd.has_contents
    assert (odd.key, odd.value, odd.headers) == (b"key", b"b" * 99, ((r"caf\xe9", b"1"),))
    assert (odd.first_offset, odd.timestamp) == (1, 1001)


def test_a_batch_with_a_wrong_checksum_is_passed_as_a_whole_with_its_bytes() -> None:
    damaged = with_wrong_crc(batch([b"one", b"two"], base_offset=4))
    records = read(damaged + batch([b"three"], base_offset=6), position=4)

    assert outline(records) == [(5, "its CRC is wrong"), (6, b"three")]
    lost = records[0]
    assert isinstance(lost, UndecodableRecord)
    assert not lost.has_contents
    assert (lost.first_offset, lost.key, lost.value, lost.headers) == (4, None, damaged, ())
    assert (lost.topic, lost.partition, lost.timestamp) == ("tasks", 3, -1)


def test_a_damaged_batch_at_the_end_is_passed_as_far_as_its_header_is_plausible() -> None:
    damaged = with_wrong_crc(batch([b"one", b"two"], base_offset=4))
    assert [record.offset for record in read(damaged, position=4)] == [5]

    assert [record.offset for record in read(damaged, position=4, log_end=5)] == [4]

    implausible = damaged[:23] + (10**6).to_bytes(4, "big") + damaged[27:]
    assert [record.offset for record in read(implausible, position=4)] == [4]


@pytest.mark.parametrize(
    ("fetched", "problem"),
    [
        (b"\0" * 5, "shorter than the header"),
        (b"\0" * 8 + b"\x7f\xff\xff\xff" + b"\0" * 70, "its length is wrong"),
        (b"\0" * 8 + b"\xff\xff\xff\xff" + b"\0" * 70, "its length is wrong"),
        (batch([b"x"])[:16] + b"\x09" + batch([b"x"])[17:], "unknown format (magic 9)"),
    ],
    ids=["too short", "longer than what came", "negative length", "unknown magic"],
)
def test_bytes_that_are_no_batch_are_skipped_by_one_offset(fetched: bytes, problem: str) -> None:
    (lost,) = read(fetched, position=9)

    assert (lost.offset, lost.first_offset, lost.value) == (9, 9, fetched)
    assert problem in lost.problem


def test_a_batch_truncated_by_the_fetch_limit_is_read_by_the_next_fetch() -> None:
    assert outline(read(batch([b"one"]) + batch([b"two"], base_offset=1)[:-3])) == [(0, b"one")]


def test_a_batch_that_would_become_too_large_is_passed_with_its_compressed_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_decompression, "MAX_BATCH_BYTES", 100_000)
    bomb = batch([b"0" * 60_000, b"0" * 60_000], codec="gzip")
    records = read(bomb + batch([b"healthy"], base_offset=2))

    assert outline(records) == [(1, "gzip: the batch would become larger than 100000 bytes"), (2, b"healthy")]
    assert (records[0].value, records[0].timestamp) == (bomb, 1001)


def test_a_batch_of_too_many_records_is_passed_as_a_whole() -> None:
    many = undecodable_records.MAX_BATCH_RECORDS + 1
    (lost,) = read(batch([b""] * many, codec="gzip"))

    assert (lost.first_offset, lost.offset) == (0, many - 1)
    assert lost.problem == f"it has {many} records; at most {many - 1} are read"


def test_a_batch_of_many_records_is_not_decoded_in_python() -> None:
    many = undecodable_records.MAX_SALVAGED_RECORDS + 1
    (first, lost) = read(batch([b""] * many, odd_names=[1]))

    assert (first.offset, lost.first_offset, lost.offset) == (0, 1, many - 1)


def test_a_base_offset_before_the_position_does_not_stop_the_consumer() -> None:
    (lost,) = read(batch([b"old"], base_offset=2), position=50)

    assert (lost.offset, lost.problem) == (50, "its offsets are before the requested ones")


@given(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            lambda whole, at, byte: whole[: at % len(whole)] + bytes([byte]) + whole[at % len(whole) + 1 :],
            st.sampled_from([batch([b"one", b"two"], codec=codec) for codec in CODECS] + [legacy_batch([b"x"])]),
            st.integers(0, 400),
            st.integers(0, 255),
        ),
    ),
    st.integers(0, 2**40),
    st.none() | st.integers(0, 2**40),
)
def test_any_bytes_become_records_with_growing_offsets(fetched: bytes, position: int, log_end: int | None) -> None:
    records = records_at(position, FetchedBytes(fetched, log_end))
    offsets = [record.offset for record in records]

    assert offsets == sorted(set(offsets))
    assert all(offset >= position for offset in offsets)
    assert records.next_fetch_offset > position or not fetched


def test_offsets_beyond_the_end_of_the_log_are_not_trusted() -> None:
    astray = batch([b"one"], base_offset=10**9)

    assert outline(read(astray, position=3, log_end=5)) == [(3, "its offsets lie beyond the end of the log")]
    assert outline(read(with_wrong_crc(batch([b"one"], base_offset=3)) + astray, position=3, log_end=5)) == [
        (3, "its CRC is wrong"),
        (4, "its offsets lie beyond the end of the log"),
    ]


def test_an_offset_that_the_broker_cannot_read_is_passed_without_bytes() -> None:
    (lost,) = records_at(7, FetchedBytes(b"", problem="the broker cannot read it from its log"))

    assert (lost.offset, lost.first_offset, lost.value, lost.has_contents) == (7, 7, None, False)


def test_aborted_records_are_never_dead_letters() -> None:
    odd = batch([b"aborted"], odd_names=[0], transactional_producer=5)
    records = TolerantPartitionRecords(
        PARTITION, FetchedBatches(FetchedBytes(odd)), [(5, 0)], 0, None, None, True, fetcher.READ_COMMITTED
    )
    assert list(records) == []
    assert records.next_fetch_offset == 1
    assert outline(read(odd)) == [(0, "the name of a header is not UTF-8")]


@settings(deadline=None)
@given(st.integers(61, 400), st.binary(min_size=1, max_size=12), st.booleans())
def test_a_damaged_batch_keeps_the_records_before_the_damage(at: int, written: bytes, is_odd: bool) -> None:
    whole = batch([b"first" * 9, b"second" * 9, b"third" * 9], odd_names=[1] if is_odd else [])
    at = 61 + at % (len(whole) - 61)
    changed = with_right_crc((whole[:at] + written + whole[at + len(written) :])[: len(whole)])

    records = read(changed)

    offsets = [record.offset for record in records]
    assert offsets == sorted(set(offsets))
    assert sum(1 for record in records if isinstance(record, UndecodableRecord) and not record.has_contents) <= 1
    assert outline(read(changed + batch([b"behind"], base_offset=3)))[-1] == (3, b"behind")


def test_the_replaced_parts_of_aiokafka_are_those_that_its_fetcher_uses() -> None:
    source = inspect.getsource(fetcher.Fetcher)
    assert "records = MemoryRecords(part_data[-1])" in source
    assert "if records.has_next():" in source
    assert "PartitionRecords(" in source
    assert "response = await self._client.send(node_id, request)" in source
    assert "self._fetcher = Fetcher(" in inspect.getsource(consumer.AIOKafkaConsumer)
    assert consumer.Fetcher is TolerantFetcher
    assert fetcher.MemoryRecords is FetchedBatches
    assert fetcher.PartitionRecords is TolerantPartitionRecords
