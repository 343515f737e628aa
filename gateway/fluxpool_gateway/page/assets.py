"""The page's scripts, styles and icon: files of the package, each below an address that holds the hash of its bytes.

So browsers keep them for good, and a new release has new addresses. Compressed once, when they are first asked for.
"""

import functools
import gzip
import hashlib
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Final

from fastapi import APIRouter, Header, Response
from fastapi import Path as InPath

from fluxpool_gateway.http.problem import ProblemCode, ProblemError

FOLDER: Final = Path(__file__).with_name("static")
HTMX: Final = "htmx-2.0.11.min.js"
HTMX_SHA256: Final = "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
"""Of `dist/htmx.min.js` in the release 2.0.11 of htmx.org, 0BSD."""
MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS: Final = {
    "cache-control": "public, max-age=31536000, immutable",
    "vary": "accept-encoding",
    "x-content-type-options": "nosniff",
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Asset:
    """One file."""

    name: str
    media_type: str
    content: bytes = field(repr=False)
    compressed: bytes = field(repr=False)
    digest: str
    """Part of its address."""


@functools.cache
def assets() -> dict[str, Asset]:
    """All files by their names; about 70 KiB, read once."""
    return {file.name: _read(file) for file in FOLDER.iterdir() if file.suffix in MEDIA_TYPES}


def _read(file: Path) -> Asset:
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Asset(file.name, MEDIA_TYPES[file.suffix], content, gzip.compress(content, 9, mtime=0), digest)


def asset_path(name: str) -> str:
    """The path of a file below the root."""
    return f"ui/static/{assets()[name].digest}/{name}"


@router.get("/ui/static/{digest}/{asset}")
async def get_asset(
    digest: Annotated[str, InPath()], asset: Annotated[str, InPath()], accept_encoding: Annotated[str, Header()] = ""
) -> Response:
    """One file; 404 for bytes that this release does not have."""
    found = assets().get(asset)
    if found is None or found.digest != digest:
        raise ProblemError(ProblemCode.NOT_FOUND, "this release has no such file; reload the page")
    if "gzip" in accept_encoding:
        headers = {**_HEADERS, "content-encoding": "gzip"}
        return Response(found.compressed, HTTPStatus.OK, headers=headers, media_type=found.media_type)
    return Response(found.content, HTTPStatus.OK, headers=_HEADERS, media_type=found.media_type)
