"""From the file of a stranger to the pixels that a job starts from. Knows nothing of models.

Only PNG, JPEG and WebP are tried, whatever else Pillow could read. The size that a file states and the scans that a
JPEG has are checked before a pixel is decoded: together they bound the memory and the time of decoding. The rules are
those that a viewer follows: turned as its EXIF orientation says, transparency on white, the first frame of an
animation. Colour profiles are ignored, as in diffusers.
"""

import io
import re
import warnings
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fluxpool_worker.engine.generator import InputsError

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MAX_PICTURE_PIXELS: Final = 50_000_000
"""The largest photographs of telephones; decoding one takes up to 420 MiB of host memory and three seconds."""
MAX_JPEG_SCANS: Final = 100
"""Encoders write about ten. A scan of 50 bytes visits every block of a picture: 45 ms at 50 million pixels."""

_JPEG_START: Final = b"\xff\xd8"
_JPEG_MARKER: Final = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd8])", re.DOTALL)
"""Markers of segments and the end. The others (JPEG B.1.1.3) are within a scan's data or have no content."""
_START_OF_SCAN: Final = 0xDA
_END_OF_IMAGE: Final = 0xD9
_ORIENTATION: Final = 0x0112
"""The EXIF tag."""
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REMEDY: Final = "send a PNG, JPEG or WebP file"


def read_picture(file: bytes, *, width: int, height: int) -> Image.Image:
    """The picture in RGB, cropped at its centre to the shape of width x height and resized to it (Lanczos).

    Raises `InputsError`.
    """
    try:
        # What Pillow warns of is the stranger's business, and would be no JSON in the engine's log.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(file), formats=FORMATS) as opened:
            if opened.width * opened.height > MAX_PICTURE_PIXELS:
                raise _too_large(f"{opened.width}x{opened.height} pixels")
            if _jpeg_scans(file) > MAX_JPEG_SCANS:
                raise InputsError(
                    f"image: has more than {MAX_JPEG_SCANS} scans; save it with fewer, or as a baseline JPEG"
                )
            opened.load()
            picture = _flattened(_turned(opened))
    except InputsError:
        raise
    except Image.DecompressionBombError:  # raised before its size can be asked for
        raise _too_large("too many pixels") from None
    except UnidentifiedImageError:
        raise InputsError(f"image: is no PNG, JPEG or WebP file; {_REMEDY}") from None
    except Exception as error:  # a stranger's bytes: Pillow raises whatever its parsers meet
        raise InputsError(f"image: cannot be decoded ({type(error).__name__}); {_REMEDY} that is whole") from error
    return ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)


def _too_large(size: str) -> InputsError:
    return InputsError(f"image: has {size}; at most {MAX_PICTURE_PIXELS:,} pixels are allowed; scale it down")


def _jpeg_scans(file: bytes) -> int:
    """How many scans a decoder would read, at most one above the limit; 0 of other formats.

    Thumbnails, which are content of segments, and what cameras append after the end (films, further pictures) do not
    count. Bytes between segments are skipped, as libjpeg does.
    """
    scans, place = 0, len(_JPEG_START)
    if not file.startswith(_JPEG_START):
        return 0
    while scans <= MAX_JPEG_SCANS and (marker := _JPEG_MARKER.search(file, place)):
        kind = marker[1][0]
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        place = marker.end() + int.from_bytes(file[marker.end() : marker.end() + 2])
    return scans


def _turned(picture: Image.Image) -> Image.Image:
    try:
        orientation = picture.getexif().get(_ORIENTATION)
    except Exception:  # noqa: BLE001 - as above; damaged EXIF is no reason to refuse the pixels
        return picture
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return picture if turn is None else picture.transpose(turn)


def _flattened(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # 16 bits of grey, of which Pillow's own conversion would cut all above 255 off.
        levels = np.asarray(picture)
        grey = np.where(levels == picture.info.get("transparency"), 255, levels >> 8)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    # `convert` copies in any case, and a copy of the largest is 200 MB.
    see_through = picture if picture.mode == "RGBA" else picture.convert("RGBA")
    flat = Image.new("RGB", see_through.size, "white")
    flat.paste(see_through, mask=see_through)
    return flat
