"""What every answer carries whatever its route: the `x-request-id` and the address clients reach us by.

Knows ASGI's raw headers and nothing of tasks.
"""

import re
from collections.abc import Iterable

from fluxpool_contract.messages import REQUEST_ID, new_request_id

RawPairs = Iterable[tuple[bytes, bytes]]

CORRELATION_ID_HEADER = b"x-request-id"
_HOST = re.compile(rb"[A-Za-z0-9.:\[\]_-]{1,255}")


def correlation_id_of(offered: bytes | None) -> str:
    """The caller's own `x-request-id` when it has the form of an id, else a new one."""
    if offered is not None:
        text = offered.decode("latin-1")
        if REQUEST_ID.fullmatch(text):
            return text
    return new_request_id()


def find_header(headers: RawPairs, name: bytes) -> bytes | None:
    """The first value of a header, by its lower-case name."""
    return next((value for key, value in headers if key == name), None)


def base_url(*, public_url: str | None, scheme: str, host: bytes | None) -> str:
    """The address of the gateway as this client sees it, ending in a slash.

    Only `/` when the `Host` header is missing or holds what no host has: links are relative then.
    """
    if public_url is not None:
        return public_url
    if host is None or not _HOST.fullmatch(host):
        return "/"
    return f"{scheme}://{host.decode('ascii')}/"
