"""Where the gateway is and with which key, from arguments or the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx

from fluxpool_client.steps import MAX_RESPONSE_BYTES, Outgoing, is_http_url

URL_VARIABLE: Final = "FLUXPOOL_URL"
API_KEY_VARIABLE: Final = "FLUXPOOL_API_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8000"
LIMITS: Final = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""Each wait has a connection: with the limit of httpx (100) the next one would fail, as would every other call."""


@dataclass(frozen=True, slots=True)
class Connection:
    """What every request of a client has."""

    url: str
    """Without a slash at the end."""
    headers: Mapping[str, str]
    timeout_seconds: float

    def request(self, http: httpx.Client | httpx.AsyncClient, outgoing: Outgoing) -> httpx.Request:
        """The request to send."""
        seconds = min(self.timeout_seconds, outgoing.timeout_seconds)
        timeout = httpx.Timeout(seconds, read=seconds + outgoing.wait_seconds)
        if outgoing.is_signed:
            return http.build_request(outgoing.method, outgoing.path, timeout=timeout)
        return http.build_request(
            outgoing.method,
            self.url + outgoing.path,
            headers={**self.headers, **outgoing.headers},
            content=outgoing.body,
            timeout=timeout,
        )

    def response_seconds(self, outgoing: Outgoing) -> float:
        """How long a whole response may take: one that comes byte by byte has no other end."""
        seconds = min(self.timeout_seconds, outgoing.timeout_seconds) + outgoing.wait_seconds
        return seconds * (1 + outgoing.max_bytes // MAX_RESPONSE_BYTES)

    @property
    def uses_proxies(self) -> bool:
        """Whether a proxy of the environment may be asked: none knows the addresses of this machine."""
        return httpx.URL(self.url).host not in {"127.0.0.1", "::1", "localhost"}


def connection_of(
    url: str | None, api_key: str | None, *, timeout_seconds: float, environment: Mapping[str, str] = os.environ
) -> Connection:
    """The connection; what is not given comes from the environment. Raises `ValueError`, which never shows the key."""
    url = url or environment.get(URL_VARIABLE) or DEFAULT_URL
    api_key = api_key or environment.get(API_KEY_VARIABLE)
    if not is_http_url(url) or "?" in url or "#" in url:
        raise ValueError(f"url: {url!r} must begin with http:// or https:// and name a host: {DEFAULT_URL}")
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise ValueError("api_key: must be printable ASCII without blanks or line ends")
    return Connection(url.rstrip("/"), {"authorization": f"Bearer {api_key}"} if api_key else {}, timeout_seconds)
