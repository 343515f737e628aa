"""From the file of a stranger to the pixels that a job starts from. Knows nothing of models.

Only PNG, JPEG and WebP are tried, whatever else Pillow could read, and the size that a file states is checked before a
pixel of it is decoded. The rules are those that a viewer follows: turned as its EXIF orientation says, transparency on
white, the first frame of an animation. Colour profiles are ignored, as in diffusers.
"""

import io
import warnings
from typing import Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fluxpool_worker.engine.generator import InputsError

FORMATS: Final = ("PNG", "JPEG", "WEBP")
MAX_PICTURE_PIXELS: Final = 50_000_000
"""The largest photographs of telephones; decoding one takes about half a gigabyte of host memory."""

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
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8)).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    see_through = picture.convert("RGBA")
    flat = Image.new("RGB", see_through.size, "white")
    flat.paste(see_through, mask=see_through.getchannel("A"))
    return flat
