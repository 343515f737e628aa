"""A preview of an image as a small WebP file."""

import io
from typing import Final

from PIL import Image

from fluxpool_contract.messages import MAX_PREVIEW_BYTES
from fluxpool_worker.engine.generator import Pixels
from fluxpool_worker.marks import DigitalSourceType, creator_tool, xmp_packet

SIDE_PIXELS: Final = 256
"""The longer side."""
_QUALITIES: Final = (75, 40, 5)
"""The first one makes 5 to 15 KiB of a picture; noise alone needs another."""


def encode_preview(pixels: Pixels, *, source_type: DigitalSourceType) -> bytes | None:
    """The file, at most `MAX_PREVIEW_BYTES`, that says in XMP what it shows; None when it cannot be so small."""
    height, width = pixels.shape[:2]
    scale = SIDE_PIXELS / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    xmp = xmp_packet(source_type=source_type, creator=creator_tool(None)).encode()
    for quality in _QUALITIES:
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=2, xmp=xmp)
        if file.tell() <= MAX_PREVIEW_BYTES:
            return file.getvalue()
    return None
