"""A PNG file from 8-bit RGB pixels, its rows compressed by several threads at once.

A client waits for its file, and compressing takes longer than decoding the latents. A deflate stream may be cut where
an empty stored block aligns it to bytes (RFC 1951, section 3.2.4), so strips of rows are compressed side by side and
joined, as pigz does; every reader of PNG reads the result. The strips follow from the image alone: the same pixels give
the same file on every machine.
"""

import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_EIGHT_BIT_RGB: Final = (8, 2, 0, 0, 0)
"""Bit depth, colour type, and the only methods there are of compression, filter and interlace (section 11.2.1)."""
_UP: Final = 2
"""Each byte less the one above it (section 9.2): as small as the other fixed filters, and the cheapest to compute."""
_ZLIB_HEADER: Final = b"\x78\x01"
"""RFC 1950: deflate with a window of 32 KiB, the fastest level."""
_STRIP_ROWS: Final = 128
"""Eight strips at 1024 rows; each costs 5 bytes, and no match reaches across its borders."""
_THREADS: Final = 8


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """The PNG file of `pixels` (height, width, 3); losslessly, and without metadata."""
    height, width, _ = pixels.shape
    rows = _filtered_rows(pixels)
    strips = [rows[top : top + _STRIP_ROWS] for top in range(0, height, _STRIP_ROWS)]
    # zlib releases the interpreter's lock.
    with ThreadPoolExecutor(min(_THREADS, len(strips)), thread_name_prefix="png") as threads:
        checksum = threads.submit(zlib.adler32, rows.data)
        flushes = [zlib.Z_SYNC_FLUSH] * (len(strips) - 1) + [zlib.Z_FINISH]
        compressed = b"".join(threads.map(_deflate, strips, flushes))
    header = struct.pack("!II5B", width, height, *_EIGHT_BIT_RGB)
    stream = _ZLIB_HEADER + compressed + struct.pack("!I", checksum.result())
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", stream) + _chunk(b"IEND", b"")


def _filtered_rows(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows as PNG compresses them: the filter's number, then the filtered bytes."""
    height, width, channels = pixels.shape
    flat = pixels.reshape(height, width * channels)
    rows = np.empty((height, 1 + width * channels), np.uint8)
    rows[:, 0] = _UP
    # What is above the first row counts as zero. Differences wrap around, as the specification wants.
    rows[0, 1:] = flat[0]
    np.subtract(flat[1:], flat[:-1], out=rows[1:, 1:])
    return rows


def _deflate(strip: NDArray[np.uint8], flush: int) -> bytes:
    """A part of a raw deflate stream. Runs alone are matched: of filtered rows, longer matches gain nothing."""
    stream = zlib.compressobj(level=1, wbits=-zlib.MAX_WBITS, memLevel=9, strategy=zlib.Z_RLE)
    return stream.compress(strip.data) + stream.flush(flush)


def _chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk (section 5.3): its length, its kind, its body, and the checksum of the last two."""
    return struct.pack("!I", len(body)) + kind + body + struct.pack("!I", zlib.crc32(body, zlib.crc32(kind)))
