"""The parameters inside an image file: how they are embedded in PNG, JPEG and WebP, and how they are read back.

PNG carries the text entry `parameters` (JSON) and one further text entry for every label; JPEG and WebP carry EXIF
with the same JSON and the labels in one UserComment. It must know neither torch nor the pixel encoders: reading
them needs Pillow alone. The marks of a file are read by `image_marks`.
"""

import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any, Final

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from fluxpool_worker.marks import XMP_PNG_KEYWORD

SOFTWARE: Final = "Fluxpool"
PARAMETERS_KEY: Final = "parameters"
SOFTWARE_KEY: Final = "Software"
_NOT_LABELS: Final = frozenset({PARAMETERS_KEY, SOFTWARE_KEY, XMP_PNG_KEYWORD})

MAX_PNG_KEYWORD_BYTES: Final = 79
"""PNG specification, section 11.3.4.2."""

MAX_EXIF_BYTES: Final = 65_000
"""A JPEG segment ends at 65,533 bytes, and EXIF must fit into one."""

SHORTENED_PROMPT_CHARACTERS: Final = 2_000
"""What is kept of each prompt when EXIF would not hold all; 12 bytes each at worst, so two fit."""

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER_BYTES: Final = len(_PNG_SIGNATURE) + 25
"""The signature and the IHDR chunk, which is always first and always 25 bytes long."""

# EXIF 2.32, section 4.6.5: the first eight bytes of UserComment name its character code.
_COMMENT_ASCII: Final = b"ASCII\0\0\0"
_COMMENT_UNICODE: Final = b"UNICODE\0"


class ImageParametersError(ValueError):
    """Parameters cannot be embedded or read; the message says which and why."""


def png_entries(*, parameters: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, str]:
    """The parameters and labels as text entries of a PNG file.

    Raises `ImageParametersError` for a label that PNG or a parameter's name has no room for.
    """
    _check_labels(parameters, labels)
    return {SOFTWARE_KEY: SOFTWARE, PARAMETERS_KEY: _to_json(parameters), **labels}


def png_with_text(png: bytes, entries: Mapping[str, str]) -> bytes:
    """The PNG file with text entries, in UTF-8 (iTXt); raises `ImageParametersError` for what is no PNG file."""
    if not png.startswith(_PNG_SIGNATURE):
        raise ImageParametersError("the payload to embed parameters in is not a PNG file")
    chunks = b"".join(_text_chunk(keyword, text) for keyword, text in entries.items())
    return png[:_PNG_HEADER_BYTES] + chunks + png[_PNG_HEADER_BYTES:]


def exif_with_parameters(*, parameters: Mapping[str, Any], labels: Mapping[str, str]) -> bytes:
    """An EXIF block for JPEG or WebP; prompts too long for it are shortened and `prompts_shortened` is added.

    Raises `ImageParametersError` for a label that has a parameter's name, or when the labels alone are too long.
    """
    _check_labels(parameters, labels)
    block = _exif_block({**parameters, **labels})
    if len(block) > MAX_EXIF_BYTES:
        shortened = {**parameters, "prompts_shortened": True}
        for name in ("prompt", "negative_prompt"):
            if isinstance(shortened.get(name), str):
                shortened[name] = shortened[name][:SHORTENED_PROMPT_CHARACTERS]
        block = _exif_block({**shortened, **labels})
    if len(block) > MAX_EXIF_BYTES:
        raise ImageParametersError(f"embedded: {len(block)} bytes do not fit into EXIF; shorten the labels")
    return block


def read_parameters(payload: bytes) -> dict[str, Any]:
    """What an image file says about itself: the parameters and, under their own keys, the labels.

    Raises `ImageParametersError` when the payload is no image or carries no parameters.
    """
    try:
        with Image.open(io.BytesIO(payload)) as image:
            found = _read_png(image) if isinstance(image, PngImagePlugin.PngImageFile) else _read_exif(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageParametersError(f"the payload is not a readable image: {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ImageParametersError(f"the image's parameters are no JSON object: {error}") from error
    if found is None:
        raise ImageParametersError("the image carries no generation parameters; was it edited or converted?")
    return found


def _check_labels(parameters: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    for key, text in labels.items():
        if key in parameters or key in _NOT_LABELS:
            raise ImageParametersError(f"embedded: the key {key!r} is a parameter's own name; choose another")
        if not (key.isascii() and key.isprintable() and key == key.strip() and 0 < len(key) <= MAX_PNG_KEYWORD_BYTES):
            raise ImageParametersError(
                f"embedded: the key {key!r} must be 1 to {MAX_PNG_KEYWORD_BYTES} printable ASCII characters "
                "without surrounding spaces"
            )
        if "\0" in text:
            raise ImageParametersError(f"embedded: the value of {key!r} holds a NUL character; remove it")


def _to_json(parameters: Mapping[str, Any]) -> str:
    text = json.dumps(parameters, ensure_ascii=False, separators=(",", ":"))
    return text.encode(errors="replace").decode()  # a folder's name, and so a model's, may hold what is no UTF-8


def _text_chunk(keyword: str, text: str) -> bytes:
    """An iTXt chunk (PNG specification, section 11.3.4.5), uncompressed and without language."""
    body = b"iTXt" + keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
    return struct.pack("!I", len(body) - 4) + body + struct.pack("!I", zlib.crc32(body))


def _exif_block(entries: Mapping[str, Any]) -> bytes:
    text = _to_json(entries)
    comment = _COMMENT_ASCII + text.encode() if text.isascii() else _COMMENT_UNICODE + text.encode("utf-16-le")
    exif = Image.Exif()
    exif.endian = "<"  # the byte order of UNICODE comments follows the block's
    exif[ExifTags.Base.Software] = SOFTWARE
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
    return exif.tobytes()


def _read_png(image: PngImagePlugin.PngImageFile) -> dict[str, Any] | None:
    parameters = image.text.get(PARAMETERS_KEY)
    if parameters is None:
        return None
    labels = {key: str(text) for key, text in image.text.items() if key not in _NOT_LABELS}
    return {**json.loads(parameters), **labels}


def _read_exif(image: Image.Image) -> dict[str, Any] | None:
    exif = image.getexif()
    comment = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    if not isinstance(comment, bytes):
        return None
    code, text = comment[:8], comment[8:]
    if code == _COMMENT_ASCII:
        decoded = text.decode("ascii")
    elif code == _COMMENT_UNICODE:
        decoded = text.decode("utf-16-le" if exif.endian == "<" else "utf-16-be")
    else:
        return None
    found: dict[str, Any] = json.loads(decoded)
    return found
