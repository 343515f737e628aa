"""Thumbnails: small WebP files of images, made on request.

They are not stored: one that is made while its task is deleted would outlive it. Clients keep them, as their address
never has other bytes. Knows nothing of HTTP and of the object store.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from io import BytesIO
from typing import Final

THUMBNAIL_TYPE: Final = "image/webp"
MAX_PIXELS: Final = 4096 * 4096
"""Four times the largest image of a task: 48 MB when decoded."""
AT_ONCE: Final = 2
"""In one process: each takes some 50 ms of a core for a megapixel, and holds the image as file and as pixels."""
_MAX_XMP_BYTES: Final = 64 * 1024
_QUALITY: Final = 80
_FORMATS: Final = ("PNG", "JPEG", "WEBP")


class ThumbnailSize(IntEnum):
    """Pixels of the longer side; the second is for screens with two pixels to a point."""

    SMALL = 256
    LARGE = 512


class UnreadableImageError(Exception):
    """There is no thumbnail of an image; the message continues a sentence about it."""


class Thumbnails:
    """Makes thumbnails beside the event loop, a few at once."""

    def __init__(self) -> None:
        """Its threads start with the first thumbnail."""
        self._places = asyncio.Semaphore(AT_ONCE)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="thumbnail")

    async def make(self, read: Callable[[], Awaitable[bytes]], size: ThumbnailSize) -> bytes:
        """The thumbnail of the file that `read` returns; it is called when there is a place, which bounds memory.

        Raises `UnreadableImageError`, and what `read` does.
        """
        async with self._places:
            payload = await read()
            return await asyncio.get_running_loop().run_in_executor(self._threads, thumbnail_of, payload, size)


def thumbnail_of(payload: bytes, size: ThumbnailSize) -> bytes:
    """A WebP file of a PNG, JPEG or WebP one, not larger than that, with its XMP: it says that a model made the image.

    Raises `UnreadableImageError`. What is stored at the address of an image may be any bytes.
    """
    # Here alone: it takes 50 ms of the start of a gateway.
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(BytesIO(payload), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(f"has {image.width} x {image.height} pixels, too many for a thumbnail")
            xmp = image.info.get("xmp")
            image.thumbnail((size, size))
            mode = "RGBA" if image.has_transparency_data else "RGB"
            small = image if image.mode == mode else image.convert(mode)
            written = BytesIO()
            # An empty one is none: Pillow would take that of the image otherwise, however large.
            kept = xmp if isinstance(xmp, bytes) and len(xmp) <= _MAX_XMP_BYTES else b""
            small.save(written, "WEBP", quality=_QUALITY, xmp=kept, exif=b"", icc_profile=b"")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError("has too many pixels for a thumbnail") from error
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error) as error:
        # What Pillow's decoders raise for damaged files is not documented.
        raise UnreadableImageError("is damaged, or is no PNG, JPEG or WebP file") from error
    return written.getvalue()
