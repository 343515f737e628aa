"""One attempt of a delivery: an HTTP request to an address that was checked, and what came back.

Owns what an endpoint may do to us: it is connected to by the very address that was checked, whatever its name means a
moment later; no proxy, redirect, cookie or compressed body is followed or decoded; little of an answer is read, and
after `TIMEOUT_SECONDS` the attempt has ended whatever it did.
"""

import asyncio
import email.utils
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import urlsplit

import httpcore
import structlog

from fluxpool_gateway.webhooks.dispatch.addresses import Network, is_address, refusal_of

TIMEOUT_SECONDS: Final = 15.0
"""Of an attempt as a whole, from the resolver to the answer."""
ANSWER_BYTES: Final = 2048
"""Of an answer's body, for the log."""
ANSWER_SECONDS: Final = 2.0
"""For that part of the body: the status has decided already."""
MAX_RETRY_AFTER_MS: Final = 24 * 3600 * 1000
_MAX_REASON_CHARACTERS: Final = 300
_RETRY_STATUSES: Final = frozenset({429, 503})
_USER_AGENT: Final = b"Fluxpool-Webhooks/1"

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host; raises `OSError`."""

logger = structlog.stdlib.get_logger(__name__)


class AttemptError(StrEnum):
    """Why an attempt failed, or none was made."""

    ADDRESS_REFUSED = "address_refused"
    """The host is at no address that webhooks are sent to."""
    DNS = "dns"
    """The host has no address."""
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    """The connection ended before an answer."""
    PROTOCOL = "protocol"
    """What came is not HTTP."""
    REDIRECT = "redirect"
    """3xx: redirects are not followed."""
    STATUS = "status"
    """Another one than 2xx."""
    TOO_OLD = "too_old"
    """Nothing was answered for three days."""
    DISABLED = "disabled"
    """The endpoint was disabled before it was told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one."""

    at_ms: int
    latency_ms: int
    status: int | None = None
    error: AttemptError | None = None
    reason: str | None = None
    """The error in words."""
    answer: str = ""
    """The beginning of the answer's body."""
    retry_after_ms: int | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the endpoint has the message."""
        return self.error is None

    def row(self) -> dict[str, Any]:
        """What is kept of it."""
        return {
            "at_ms": self.at_ms,
            "latency_ms": self.latency_ms,
            "status": self.status,
            "error": self.error,
            "reason": self.reason,
            "answer": self.answer,
        }


class AddressRefusedError(Exception):
    """No address of the host may be sent to; the message names one."""


class _DnsError(Exception):
    """The host has no address."""


_EXPECTED: Final = (
    OSError,
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    AddressRefusedError,
    _DnsError,
)


class _GuardedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked. Everything else, TLS among it, is the wrapped backend's."""

    def __init__(self, resolve: Resolve, allowed: Collection[Network]) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._opened: list[httpcore.AsyncNetworkStream] = []
        self._network: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that answers, of those that may be."""
        host = host.removeprefix("[").removesuffix("]")
        try:
            addresses = [host] if is_address(host) else await self._resolve(host, port)
        except OSError as error:
            raise _DnsError(f"{host} has no address ({error.strerror or error})") from error
        refusals = {address: refusal_of(address, self._allowed) for address in addresses}
        permitted = [address for address in dict.fromkeys(addresses) if refusals[address] is None]
        if not permitted:
            if not addresses:
                raise _DnsError(f"{host} has no address")
            raise AddressRefusedError(f"{host}: {refusals[addresses[0]]}; allow its network in the gateway's settings")
        failure: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in permitted:
            try:
                stream = await self._network.connect_tcp(
                    address, port, (timeout or TIMEOUT_SECONDS) / len(permitted), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                self._opened.append(stream)
                return stream
        assert failure is not None  # noqa: S101 - there was an address
        raise failure

    async def close(self) -> None:
        """Close what was opened: a TLS handshake that is canceled leaves its connection open (httpcore 1.0)."""
        for stream in self._opened:
            with suppress(OSError, httpcore.NetworkError):
                await stream.aclose()


class Sender:
    """Makes attempts, any number at once."""

    def __init__(
        self,
        *,
        allowed: Collection[Network] = (),
        allow_http: bool = False,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        """`allowed` are networks that are sent to although they are not public."""
        self._schemes = {b"https", b"http"} if allow_http else {b"https"}
        self._resolve = resolve or resolve_in_thread
        self._allowed = allowed
        self._tls = tls or ssl.create_default_context()
        self._timeout_seconds = timeout_seconds

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> Attempt:
        """POST a message once; raises nothing but what cancels it."""
        at_ms, began = time.time_ns() // 1_000_000, time.monotonic()
        outcome: dict[str, Any]
        try:
            async with asyncio.timeout(self._timeout_seconds):
                outcome = await self._post(url, headers, body)
        except Exception as error:
            # An endpoint may cause any error of the libraries below: none may end the other deliveries.
            outcome = {"error": _word_for(error), "reason": _reason(error, self._timeout_seconds)}
            if not isinstance(error, _EXPECTED):
                logger.exception("webhook_attempt_failed")
        return Attempt(at_ms=at_ms, latency_ms=round(1000 * (time.monotonic() - began)), **outcome)

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
        target = httpcore.URL(url)
        if target.scheme not in self._schemes:
            # It was allowed when the endpoint was created.
            raise AddressRefusedError("http:// is not allowed by the gateway's settings; use https://")
        # One connection for each attempt: one that was kept may have been closed by the endpoint in this moment.
        network = _GuardedNetwork(self._resolve, self._allowed)
        try:
            async with (
                httpcore.AsyncHTTPConnection(target.origin, ssl_context=self._tls, network_backend=network) as line,
                line.stream(
                    "POST",
                    target,
                    headers=_header_list(target, headers),
                    content=body,
                    extensions=_tls_name(target.host.decode("ascii")),
                ) as response,
            ):
                answer = await _beginning(response)
                named = {name.lower(): value for name, value in response.headers}
                return _outcome(response.status, answer, named.get(b"retry-after"))
        finally:
            await network.close()


def _tls_name(host: str) -> dict[str, str]:
    """A name that ends in a dot is the same without, and certificates have that (RFC 6066 section 3)."""
    return {"sni_hostname": host.removesuffix(".")} if host.endswith(".") else {}


def _header_list(target: httpcore.URL, headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    host = urlsplit(bytes(target)).netloc
    fixed = [
        (b"host", host),
        (b"content-type", b"application/json"),
        (b"user-agent", _USER_AGENT),
        (b"accept-encoding", b"identity"),
        (b"connection", b"close"),
    ]
    return fixed + [(name.encode(), value.encode()) for name, value in headers.items()]


async def _beginning(response: httpcore.Response) -> bytes:
    """The first bytes of the body, as far as they come in time; they are decoded by nothing."""
    answer = b""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            async for part in response.aiter_stream():
                answer += part[: ANSWER_BYTES - len(answer)]
                if len(answer) == ANSWER_BYTES:
                    break
    except (TimeoutError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
        pass
    return answer


def _outcome(status: int, answer: bytes, retry_after: bytes | None) -> dict[str, Any]:
    outcome: dict[str, Any] = {"status": status, "answer": _text(answer)}
    if 200 <= status < 300:
        return outcome
    if 300 <= status < 400:
        reason = f"it answered {status}, a redirect, which is not followed; change the URL"
        return outcome | {"error": AttemptError.REDIRECT, "reason": reason}
    retry_after_ms = _milliseconds(retry_after) if status in _RETRY_STATUSES and retry_after else None
    return outcome | {
        "error": AttemptError.STATUS,
        "reason": f"it answered {status}",
        "retry_after_ms": retry_after_ms,
    }


def _text(answer: bytes) -> str:
    # PostgreSQL's text has no NUL.
    return answer.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _milliseconds(retry_after: bytes) -> int | None:
    """The delay that a `Retry-After` asks for, in seconds or as a date (RFC 9110 section 10.2.3)."""
    text = retry_after.decode("ascii", errors="replace").strip()
    if text.isascii() and text.isdigit():
        # The first digits: more than these ask for a century, and Python reads no number of thousands of them.
        return min(1000 * int(text[:10]), MAX_RETRY_AFTER_MS)
    try:
        at = email.utils.parsedate_to_datetime(text)
        delay_ms = round(1000 * (at.timestamp() - time.time()))
    except (ValueError, OverflowError):
        return None
    return min(max(0, delay_ms), MAX_RETRY_AFTER_MS)


def _word_for(error: Exception) -> AttemptError:
    match error:
        case TimeoutError() | httpcore.TimeoutException():
            return AttemptError.TIMEOUT
        case AddressRefusedError():
            return AttemptError.ADDRESS_REFUSED
        case _DnsError():
            return AttemptError.DNS
        case httpcore.ConnectError():
            return AttemptError.TLS if isinstance(_root(error), ssl.SSLError) else AttemptError.CONNECT
        case httpcore.RemoteProtocolError():
            return AttemptError.CLOSED if "disconnected" in str(error).lower() else AttemptError.PROTOCOL
        case httpcore.NetworkError():
            return AttemptError.CLOSED
        case _:
            return AttemptError.PROTOCOL


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: Exception, timeout_seconds: float) -> str:
    if isinstance(error, TimeoutError | httpcore.TimeoutException):
        return f"it did not answer within {timeout_seconds:g} s"
    text = str(error) or str(_root(error)) or type(error).__name__
    return "".join(character if character.isprintable() else " " for character in text)[:_MAX_REASON_CHARACTERS]


async def resolve_in_thread(host: str, port: int) -> Sequence[str]:
    """The system's resolver.

    Each lookup has a thread of its own: a name server that never answers holds one for half a minute, and in a pool
    some such names would hold up the lookups of all others. There are no more of them than attempts under way.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[str]] = loop.create_future()

    def give(addresses: Sequence[str], error: OSError | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(addresses)
        else:
            answer.set_exception(error)

    def look_up() -> None:
        addresses: Sequence[str] = ()
        failure: OSError | None = None
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [str(entry[4][0]) for entry in found]
        except UnicodeError as error:
            failure = OSError(str(error))
        except OSError as error:
            failure = error
        try:
            loop.call_soon_threadsafe(give, addresses, failure)
        except RuntimeError:
            # The loop was closed: nothing waits.
            return

    threading.Thread(target=look_up, name="webhook-resolver", daemon=True).start()
    return await answer
