"""Record batches of foreign or faulty producers, and damaged ones, as bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from aiokafka.record.legacy_records import _LegacyRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
_BASE_OFFSET = slice(0, 8)
_CRC_BEGIN, _CRC_END = 17, 21


class RawName(str):
    """A header name that has these bytes on the wire, for producers that encode names."""

    __slots__ = ("wire",)
    wire: bytes

    def __new__(cls, wire: bytes) -> Self:
        """Take the bytes."""
        name = super().__new__(cls, wire.decode("latin-1"))
        name.wire = wire
        return name

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        """Give the bytes."""
        del encoding, errors
        return self.wire


def batch(
    values: Sequence[bytes],
    *,
    base_offset: int = 0,
    codec: str = "none",
    odd_names: Sequence[int] = (),
    transactional_producer: int | None = None,
) -> bytes:
    """A batch of the newest format; the records with these indexes have a header name in Latin-1."""
    builder = _DefaultRecordBatchBuilderPy(
        magic=2,
        compression_type=CODECS[codec],
        is_transactional=transactional_producer is not None,
        producer_id=-1 if transactional_producer is None else transactional_producer,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=2**31,
    )
    for index, value in enumerate(values):
        headers = [(RawName(b"caf\xe9"), b"1")] if index in odd_names else [("plain", b"1")]
        builder.append(offset=index, timestamp=1000 + index, key=b"key", value=value, headers=headers)
    built = bytearray(builder.build())
    built[_BASE_OFFSET] = base_offset.to_bytes(8, "big")
    return bytes(built)


def legacy_batch(values: Sequence[bytes], *, codec: str = "none") -> bytes:
    """A batch of format 1, as topics from before Kafka 0.11 hold them."""
    builder = _LegacyRecordBatchBuilderPy(magic=1, compression_type=CODECS[codec], batch_size=2**31)
    for index, value in enumerate(values):
        builder.append(index, timestamp=1000 + index, key=b"key", value=value)
    return bytes(builder.build())


def with_wrong_crc(whole: bytes) -> bytes:
    """The batch with one bit of its checksum turned."""
    return whole[:_CRC_BEGIN] + bytes([whole[_CRC_BEGIN] ^ 1]) + whole[_CRC_BEGIN + 1 :]


def with_right_crc(changed: bytes) -> bytes:
    """The batch with the checksum of its present content, so that brokers accept it."""
    checksum: int = calc_crc32c(changed[_CRC_END:])
    return changed[:_CRC_BEGIN] + checksum.to_bytes(4, "big") + changed[_CRC_END:]


def damage_on_disk(log: Path, what: bytes, *, by: bytes) -> None:
    """Overwrite a position in a partition's log, like a failing disk; the broker continues to run."""
    content = log.read_bytes()
    position = content.index(what)
    with log.open("r+b") as file:
        file.seek(position)
        file.write(by)
