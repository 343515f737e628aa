"""Decompression of record batches within a bound, for every codec of Kafka.

Owns the codecs that aiokafka's consumers use once `install()` was called. Knows nothing of records. A producer decides
how large a batch becomes: 1 MiB of gzip can hold 1 GiB, so no decoder here ever writes more than `MAX_BATCH_BYTES`.
"""

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import cramjam
from aiokafka.record import default_records, legacy_records

from fluxpool_contract.kafka import MAX_MESSAGE_BYTES

MAX_BATCH_BYTES: Final = 32 * MAX_MESSAGE_BYTES
"""Producers that fill a batch of the topics' limit with similar tasks reach a ratio of about 20."""

_FIRST_GUESS_RATIO: Final = 16
_LEAST_BUFFER_BYTES: Final = 64 * 1024
_GZIP_WINDOW_BITS: Final = 31
_GZIP_MAGIC: Final = b"\x1f\x8b"
_XERIAL_MAGIC: Final = b"\x82SNAPPY\0"
"""Of the framing that Java clients put around snappy; two versions and its blocks follow, each with its length."""
_XERIAL_HEADER_BYTES: Final = 16

Buffer = bytes | bytearray | memoryview
Decompress = Callable[[Buffer], bytes]


class BatchDecompressionError(Exception):
    """A batch cannot be decompressed, or would become too large; the message names the codec and the reason."""


def gunzip(payload: Buffer) -> bytes:
    """Decompress gzip, also of several members; raises `BatchDecompressionError`."""
    rest, pieces, room = bytes(payload), [], MAX_BATCH_BYTES
    while True:
        decoder = zlib.decompressobj(wbits=_GZIP_WINDOW_BITS)
        try:
            piece = decoder.decompress(rest, room + 1)
        except zlib.error as error:
            raise BatchDecompressionError(f"gzip: {error}") from None
        room -= len(piece)
        if room < 0:
            raise _too_large("gzip")
        if not decoder.eof:
            raise BatchDecompressionError("gzip: the data is cut short")
        pieces.append(piece)
        rest = decoder.unused_data
        if not rest.startswith(_GZIP_MAGIC):
            return b"".join(pieces)


def unsnap(payload: Buffer) -> bytes:
    """Decompress snappy, plain or in xerial's framing; raises `BatchDecompressionError`."""
    data = bytes(payload)
    pieces, room = [], MAX_BATCH_BYTES
    for block in _xerial_blocks(data) if data.startswith(_XERIAL_MAGIC) else [data]:
        try:
            size = cramjam.snappy.decompress_raw_len(block)
            room -= size
            if room < 0:
                raise _too_large("snappy")
            piece = bytearray(size)
            cramjam.snappy.decompress_raw_into(block, piece)
        except cramjam.DecompressionError as error:
            raise BatchDecompressionError(f"snappy: {error}") from None
        pieces.append(piece)
    return b"".join(pieces)


def unlz4(payload: Buffer) -> bytes:
    """Decompress an LZ4 frame; raises `BatchDecompressionError`."""
    return _into_growing_buffer("lz4", cramjam.lz4.decompress_into, payload)


def unzstd(payload: Buffer) -> bytes:
    """Decompress a zstd frame; raises `BatchDecompressionError`."""
    return _into_growing_buffer("zstd", cramjam.zstd.decompress_into, payload)


def install() -> None:
    """Make aiokafka's consumers of this process decompress by these functions; again is no change.

    aiokafka has no setting for a bound. Its record classes, in C and in Python, look the codecs up in their modules.
    """
    bounded: dict[str, Decompress] = {
        "gzip_decode": gunzip,
        "snappy_decode": unsnap,
        "lz4_decode": unlz4,
        "zstd_decode": unzstd,
    }
    classes = (default_records.DefaultRecordBatch, legacy_records.LegacyRecordBatch)
    for module in (default_records, legacy_records, *(sys.modules[found.__module__] for found in classes)):
        for name in bounded.keys() & vars(module).keys():
            setattr(module, name, bounded[name])


def _into_growing_buffer(codec: str, decompress_into: Callable[[bytes, bytearray], int], payload: Buffer) -> bytes:
    # The size is in frame headers at best, which a producer may have made up.
    data = bytes(payload)
    size = max(_LEAST_BUFFER_BYTES, _FIRST_GUESS_RATIO * len(data))
    while True:
        size = min(size, MAX_BATCH_BYTES)
        buffer = bytearray(size)
        try:
            written = decompress_into(data, buffer)
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error) and "too small" not in str(error):
                raise BatchDecompressionError(f"{codec}: {error}") from None
            if size == MAX_BATCH_BYTES:
                raise _too_large(codec) from None
            size *= 8
        else:
            return bytes(memoryview(buffer)[:written])


def _xerial_blocks(data: bytes) -> Iterator[bytes]:
    position = _XERIAL_HEADER_BYTES
    while position < len(data):
        try:
            (size,) = struct.unpack_from(">i", data, position)
        except struct.error:
            raise BatchDecompressionError("snappy: the length of a block is cut short") from None
        position += 4
        if not 0 <= size <= len(data) - position:
            raise BatchDecompressionError(f"snappy: a block of {size} bytes does not lie within the batch")
        yield data[position : position + size]
        position += size


def _too_large(codec: str) -> BatchDecompressionError:
    return BatchDecompressionError(f"{codec}: the batch would become larger than {MAX_BATCH_BYTES} bytes")
