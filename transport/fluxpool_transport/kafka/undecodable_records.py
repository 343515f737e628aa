r"""Makes every aiokafka consumer return records that it cannot decode as `UndecodableRecord`s, instead of failing.

Owns what a consumer does with fetched bytes once `install()` was called, which `kafka.clients` does. aiokafka raises at
a missing codec, a wrong CRC or a header name that is not UTF-8, again at every poll, so that the partition is lost to
its consumer. Here `getone` and `getmany` return an `UndecodableRecord` in its place, in order, and continue behind it;
they never raise for the contents of a record. Its `offset` is the last one that it covers: commit or seek to
`offset + 1`. There are two kinds:

- `has_contents`: key, value and headers are those of the record; header names that are not UTF-8 are escaped
  (`caf\xe9`). A reader that only shows or filters records needs no case of its own.
- otherwise nothing of the records from `first_offset` to `offset` is known: `value` holds the batch's bytes as they
  were fetched, still compressed, or None; there is no key and no header. It is no valid JSON.

Knows nothing of tasks or dead letters: what to do with such a record is the reader's decision.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiokafka import TopicPartition
from aiokafka.consumer import consumer, fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.record.util import decode_varint_py
from aiokafka.structs import ConsumerRecord
from prometheus_client import Counter

from fluxpool_transport.kafka import batch_decompression
from fluxpool_transport.kafka.batch_decompression import BatchDecompressionError
from fluxpool_transport.kafka.fetch_responses import FetchedBytes, TolerantFetcher

MAX_BATCH_RECORDS: Final = 100_000
"""Producers put 10,000 into a batch at most by default. A lane takes a few at a time and decodes the batch again for
each few, so that what a batch costs grows with the square: millions of empty records fit into 1 MiB of gzip."""
MAX_SALVAGED_RECORDS: Final = 10_000
"""Records of one batch that are decoded in Python, at about 20 us each: the event loop waits meanwhile."""

_LOG_OVERHEAD: Final = 12
"""Base offset and length, in front of every batch."""
_LENGTH_OFFSET: Final = 8
_MAGIC_OFFSET: Final = 16
_NEWEST_MAGIC: Final = 2
_HEADER_BYTES: Final = 61
"""Of a batch of the newest format."""
_LEGACY_HEADER_BYTES: Final = 26
_COUNT_OFFSET: Final = 57
_LAST_DELTA_OFFSET: Final = 23
_MAX_TIMESTAMP_OFFSET: Final = 35
_BEYOND_BATCH: Final = "a record's offset is beyond its batch"
_MAX_GAP_OFFSETS: Final = 1000
"""Between what was asked for and a damaged batch; markers of transactions leave gaps of one or two."""

UNDECODABLE: Final = Counter(
    "fluxpool_records_undecodable",
    "Records, or batches of them, that could not be decoded, by topic.",
    ["topic"],
    registry=None,
)
"""Of all consumers of the process; registered by the program that serves metrics."""

log = structlog.get_logger(__name__)


@dataclass
class UndecodableRecord(ConsumerRecord):  # type: ignore[misc]  # aiokafka is untyped
    """Replaces one record, or several of one batch; see the module's description."""

    problem: str
    """Why it could not be decoded."""
    first_offset: int
    """The first offset that it covers; `offset` is the last."""
    has_contents: bool
    """Whether key, value and headers are the record's own."""


def install() -> None:
    """Make all aiokafka consumers of this process tolerant; again is no change."""
    batch_decompression.install()
    consumer.Fetcher = TolerantFetcher
    fetcher.MemoryRecords = FetchedBatches
    fetcher.PartitionRecords = TolerantPartitionRecords


class FetchedBatches:
    """The bytes of one partition in an answer to a fetch, cut into batches; replaces `MemoryRecords`."""

    def __init__(self, fetched: FetchedBytes) -> None:
        self._fetched, self.log_end, self.problem = fetched

    def has_next(self) -> bool:
        """Whether there is anything, intact or damaged."""
        return bool(self._fetched or self.problem)

    def size_in_bytes(self) -> int:
        """What was fetched."""
        return len(self._fetched)

    def __iter__(self) -> Iterator[bytes]:
        """Each batch; bytes that make no batch come last and whole.

        Brokers cut the last batch where the limit of the fetch lies. It is left out, but not when it is the first:
        brokers send that one whole, so its length is wrong (KIP-74).
        """
        position = 0
        while len(self._fetched) - position >= _LOG_OVERHEAD:
            length = _integer(self._fetched, position + _LENGTH_OFFSET, 4)
            end = position + _LOG_OVERHEAD + length
            if length < _LEGACY_HEADER_BYTES - _LOG_OVERHEAD:
                break
            if end > len(self._fetched):
                if position:
                    return
                break
            yield self._fetched[position:end]
            position = end
        if position < len(self._fetched) and (not position or len(self._fetched) - position >= _LOG_OVERHEAD):
            yield self._fetched[position:]


class TolerantPartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # aiokafka is untyped
    """The records of one partition in an answer to a fetch; replaces `PartitionRecords`."""

    _records: FetchedBatches
    next_fetch_offset: int

    def _unpack_records(self) -> Iterator[ConsumerRecord]:
        began_at = self.next_fetch_offset
        if self._records.problem is not None:
            yield self._lost(None, self._records.problem, last=began_at)
        batches = list(self._records)
        for index, fetched in enumerate(batches):
            following = batches[index + 1] if index + 1 < len(batches) else None
            yield from self._unpack_batch(fetched, following)
        if self.next_fetch_offset == began_at and batches:
            # Nothing moved the position: aiokafka would fetch the same bytes again without end.
            yield self._lost(batches[0], "its offsets are before the requested ones", last=began_at)

    def _unpack_batch(self, fetched: bytes, following: bytes | None) -> Iterator[ConsumerRecord]:
        try:
            batch = _open(fetched)
            if self._check_crcs and not batch.validate_crc():
                raise ValueError("its CRC is wrong")
            if self._records.log_end is not None and batch.next_offset > self._records.log_end:
                raise ValueError("its offsets lie beyond the end of the log")
            if (count := _record_count(fetched)) > MAX_BATCH_RECORDS:
                raise ValueError(f"it has {count} records; at most {MAX_BATCH_RECORDS} are read")
            is_passed = self._is_control_or_aborted(batch)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises is about these bytes
            last = _last_offset(fetched, following, position=self.next_fetch_offset, log_end=self._records.log_end)
            yield self._lost(fetched, _explain(error), last=last)
            return
        if not is_passed:
            yield from self._decode(batch, fetched)
        # Compaction may have removed the last record, so the batch's own end counts. `max`: a damaged base offset must
        # not move the position back, or the consumer reads the same records in a loop.
        self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)

    def _is_control_or_aborted(self, batch: Any) -> bool:
        """Whether the batch is hidden from readers: transaction markers and aborted records."""
        if self._isolation_level == fetcher.READ_COMMITTED and batch.producer_id is not None:
            self._consume_aborted_up_to(batch.base_offset)
            if batch.is_control_batch and self._contains_abort_marker(batch):
                self._aborted_producers.discard(batch.producer_id)
            if batch.is_transactional and batch.producer_id in self._aborted_producers:
                return True
        return bool(batch.is_control_batch)

    def _decode(self, batch: Any, fetched: bytes) -> Iterator[ConsumerRecord]:
        try:
            for record in batch:
                if record.offset >= batch.next_offset:
                    raise ValueError(_BEYOND_BATCH)
                if record.offset >= self.next_fetch_offset:
                    self.next_fetch_offset = record.offset + 1
                    yield self._consumer_record(self._tp, record)
        except BatchDecompressionError as error:
            if self.next_fetch_offset < batch.next_offset:
                yield self._lost(fetched, _explain(error), last=batch.next_offset - 1, is_whole=True)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises is about these bytes
            yield from self._salvage(fetched, _explain(error), end=batch.next_offset)

    def _salvage(self, fetched: bytes, problem: str, *, end: int) -> Iterator[ConsumerRecord]:
        """Decode the rest of a batch with lenient header names; one record covers what that cannot read."""
        try:
            for record in _lenient_records(fetched):
                if record.offset >= end:
                    raise ValueError(_BEYOND_BATCH)
                if record.offset < self.next_fetch_offset:
                    continue
                self.next_fetch_offset = record.offset + 1
                headers = [(_escaped(name), value) for name, value in record.headers]
                if headers == record.headers:
                    yield self._consumer_record(self._tp, record)
                else:
                    yield self._with_contents(record, headers)
        except Exception as error:  # noqa: BLE001 - whatever a decoder raises is about these bytes
            problem = _explain(error)
        if self.next_fetch_offset < end:
            yield self._lost(fetched, problem, last=end - 1, is_whole=True)

    def _with_contents(self, record: Any, headers: list[tuple[str, bytes | None]]) -> UndecodableRecord:
        found = lost_records(
            self._tp,
            first=record.offset,
            last=record.offset,
            problem="the name of a header is not UTF-8",
            fetched=record.value,
        )
        found.key, found.headers, found.has_contents = record.key, tuple(headers), True
        found.timestamp, found.timestamp_type = record.timestamp, record.timestamp_type
        found.serialized_key_size = -1 if record.key is None else len(record.key)
        return self._report(found)

    def _lost(self, fetched: bytes | None, problem: str, *, last: int, is_whole: bool = False) -> UndecodableRecord:
        """`is_whole`: its checksum is right, and its header can be believed."""
        first, self.next_fetch_offset = self.next_fetch_offset, last + 1
        record = lost_records(self._tp, first=first, last=last, problem=problem, fetched=fetched)
        if is_whole and fetched is not None and fetched[_MAGIC_OFFSET] == _NEWEST_MAGIC:
            record.timestamp = _integer(fetched, _MAX_TIMESTAMP_OFFSET, 8)
        return self._report(record)

    @staticmethod
    def _report(record: UndecodableRecord) -> UndecodableRecord:
        UNDECODABLE.labels(record.topic).inc()
        log.warning(
            "record_undecodable",
            topic=record.topic,
            partition=record.partition,
            first_offset=record.first_offset,
            offset=record.offset,
            problem=record.problem,
        )
        return record


def lost_records(
    partition: TopicPartition, *, first: int, last: int, problem: str, fetched: bytes | None = None
) -> UndecodableRecord:
    """Covers records of which at best the bytes of their batch can be read."""
    return UndecodableRecord(
        topic=partition.topic,
        partition=partition.partition,
        offset=last,
        timestamp=-1,
        timestamp_type=0,
        key=None,
        value=fetched,
        checksum=None,
        serialized_key_size=-1,
        serialized_value_size=-1 if fetched is None else len(fetched),
        headers=(),
        problem=problem,
        first_offset=first,
        has_contents=False,
    )


class _LenientBytes(bytearray):
    """Text in it is read whatever its encoding: the only thing that the decoder in Python asks of a slice."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _LenientBytes(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:
        return super().decode(encoding, errors)


def _lenient_records(fetched: bytes) -> Iterator[Any]:
    """The records of a batch, with surrogates in header names for bytes that are not UTF-8."""
    if fetched[_MAGIC_OFFSET] != _NEWEST_MAGIC:
        raise ValueError("its records cannot be read")
    if (count := _record_count(fetched)) > MAX_SALVAGED_RECORDS:
        raise ValueError(f"one of its {count} records cannot be read")
    batch = _DefaultRecordBatchPy(fetched)
    batch._maybe_uncompress()  # noqa: SLF001
    plain = batch._buffer  # noqa: SLF001
    batch._buffer = _LenientBytes(plain)  # noqa: SLF001
    for _ in range(count):
        # Not the decoder in C, which is the default: it does not look where the buffer ends, and crashes.
        yield batch._read_msg(lambda _buffer, position: decode_varint_py(plain, position))  # noqa: SLF001


def _open(fetched: bytes) -> Any:
    """A batch of any format; raises `ValueError` for bytes that make none."""
    if len(fetched) < _LEGACY_HEADER_BYTES:
        raise ValueError("it is shorter than the header of a batch")
    if len(fetched) != _LOG_OVERHEAD + _integer(fetched, _LENGTH_OFFSET, 4):
        raise ValueError("its length is wrong")
    magic = fetched[_MAGIC_OFFSET]
    if magic > _NEWEST_MAGIC:
        raise ValueError(f"it has an unknown format (magic {magic})")
    if magic < _NEWEST_MAGIC:
        return LegacyRecordBatch(fetched, magic)
    if len(fetched) < _HEADER_BYTES:
        raise ValueError("it is shorter than the header of a batch")
    return DefaultRecordBatch(fetched)


def _last_offset(fetched: bytes, following: bytes | None, *, position: int, log_end: int | None) -> int:
    """The last offset that is certainly of a damaged batch: intact records may follow. At least `position`."""
    if following is not None:
        next_base = _integer(following, 0, 8)
        if _is_whole(following) and position < next_base < (log_end or next_base + 1):
            return next_base - 1
    if len(fetched) >= _HEADER_BYTES and fetched[_MAGIC_OFFSET] == _NEWEST_MAGIC:
        base, delta = _integer(fetched, 0, 8), _integer(fetched, _LAST_DELTA_OFFSET, 4)
        # Damage would not change both fields alike. In a compacted batch they differ: it is skipped offset by offset.
        is_plausible = delta + 1 == _record_count(fetched) and (log_end is None or base + delta < log_end)
        if is_plausible and base - _MAX_GAP_OFFSETS <= position <= base + delta:
            return base + delta
    return position


def _record_count(fetched: bytes) -> int:
    """What the header says; old formats do not."""
    return _integer(fetched, _COUNT_OFFSET, 4) if fetched[_MAGIC_OFFSET] == _NEWEST_MAGIC else 0


def _is_whole(fetched: bytes) -> bool:
    try:
        return bool(_open(fetched).validate_crc())
    except Exception:  # noqa: BLE001 - whatever a decoder raises is about these bytes
        return False


def _integer(data: bytes, position: int, size: int) -> int:
    return int.from_bytes(data[position : position + size], "big", signed=True)


def _escaped(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _explain(error: Exception) -> str:
    if isinstance(error, CorruptRecordException | UnsupportedCodecError):
        return str(error.args[0]) if error.args else type(error).__name__
    return str(error) or type(error).__name__
