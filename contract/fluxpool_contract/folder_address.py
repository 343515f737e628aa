"""A local folder as a `file:///` address and back (RFC 8089): one pair of functions, each the inverse of the other."""

from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote_to_bytes

SCHEME: Final = "file://"
_KEPT: Final = "/-._~!$&'()*+,;=:@"
"""Characters that a path of an address may hold as they are (RFC 3986, section 3.3)."""


def folder_address(folder: Path) -> str:
    """The address of an absolute folder, with a slash at its end."""
    return SCHEME + quote(str(folder), safe=_KEPT, errors="surrogateescape").rstrip("/") + "/"


def folder_of(address: str) -> Path:
    """The folder of an address; raises `ValueError` when it has a query, a fragment or `..`.

    Characters that should be percent-encoded, such as a blank, are taken as they are.
    """
    path = address.removeprefix(SCHEME)
    if path == address or not path.startswith("/"):
        raise ValueError(f"{address!r} must begin with {SCHEME}/")
    for character in "?#":
        if character in path:
            raise ValueError(f"{address!r} must write {character} as %{ord(character):02X}")
    folder = unquote_to_bytes(path).decode(errors="surrogateescape")
    if ".." in folder.split("/") or "\0" in folder:
        raise ValueError(f"{address!r} must name a folder without ..")
    return Path(folder)
