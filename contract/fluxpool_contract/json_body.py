"""Bodies that should be JSON: strips the byte order mark and names other encodings; lines of JSON Lines. Pure.

A JSON parser says "expected value at line 1 column 1" for UTF-16, gzip and Latin-1 alike; `why_not_json` names them.
"""

import re
from typing import Final

UTF8_BOM: Final = b"\xef\xbb\xbf"

_SCHEMA_REGISTRY_PREFIX: Final = re.compile(rb"\x00.{4}\s*[{\[]", re.DOTALL)
_HIGH: Final = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW: Final = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_LONE_SURROGATE: Final = re.compile(_HIGH + rb"(?!" + _LOW + rb")|(?<!" + _HIGH + rb")" + _LOW)

# The longer ones first: the mark of UTF-32 begins with that of UTF-16.
_ENCODING_MARKS: Final = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_COMPRESSION_MARKS: Final = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xff\x06\x00\x00sNaPpY": "snappy",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x78\x01": "zlib",
    b"\x78\x9c": "zlib",
    b"\x78\xda": "zlib",
}


_LINE_ENDS: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""JSON has them as they are, and many readers of lines end a line there: `str.splitlines`, httpx."""


def json_line(document: str) -> bytes:
    """A document as a line of JSON Lines, in which no character but the last one ends a line."""
    return document.translate(_LINE_ENDS).encode() + b"\n"


def without_bom(body: bytes) -> bytes:
    """The body without the byte order mark of UTF-8, which RFC 8259 section 8.1 allows to ignore."""
    return body.removeprefix(UTF8_BOM)


def why_not_json(body: bytes) -> str | None:
    """What the body is instead of JSON, with the remedy; None when nothing better than the parser's words is known."""
    encoding = _encoding(body)
    if encoding is not None:
        return f"is encoded as {encoding}; send JSON in UTF-8"
    compression = next((name for mark, name in _COMPRESSION_MARKS.items() if body.startswith(mark)), None)
    if compression is not None:
        return f"is compressed with {compression}; send the JSON itself, uncompressed"
    if _SCHEMA_REGISTRY_PREFIX.match(body):
        return "begins with the five bytes of a schema registry's serializer; send plain JSON without them"
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return f"has the byte 0x{body[error.start]:02x} at position {error.start}, which is not UTF-8; send UTF-8"
    if _LONE_SURROGATE.search(body):
        return "has half of a surrogate pair in an escape such as \\ud83d; write both halves, or the character itself"
    return None


def _encoding(body: bytes) -> str | None:
    for mark, name in _ENCODING_MARKS.items():
        if body.startswith(mark):
            return name
    # Without a mark: JSON begins with an ASCII character, so the zero bytes tell (RFC 4627 section 3).
    match [byte == 0 for byte in body[:4]]:
        case [True, True, True, False] | [False, True, True, True]:
            return "UTF-32"
        case [True, False, True, False] | [False, True, False, True]:
            return "UTF-16"
        case _:
            return None
