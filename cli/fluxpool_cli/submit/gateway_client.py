"""HTTP client of a gateway: submit, poll, download; every failure becomes a `CommandError`.

Owns the bounds in size and time, and which failures are worth a retry. Knows nothing of Kafka or of processes.
"""

import os
import time
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import httpx

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.state_file import running_stack
from fluxpool_cli.submit.gateway_answers import Generation, NotAGatewayError, parse_object, refusal_reason

URL_VARIABLE: Final = "FLUXPOOL_URL"
API_KEY_VARIABLE: Final = "FLUXPOOL_API_KEY"
DEFAULT_URL: Final = "http://127.0.0.1:8000"
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
"""A task's view is a few kilobytes."""
MAX_IMAGE_BYTES: Final = 512 * 1024 * 1024
"""More than an uncompressed image of the largest size."""
_MAX_RETRY_AFTER_SECONDS: Final = 30.0
_MAX_IDEMPOTENCY_KEY_CHARACTERS: Final = 255
_LAST_PORT: Final = 65_535
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


def default_gateway_url(data_dir: Path | None = None) -> str:
    """The address of the local stack's gateway, else where a gateway listens by default."""
    state = running_stack(data_dir)
    return state.gateway_url if state is not None and state.gateway_url else DEFAULT_URL


class GatewayAwayError(CommandError):
    """No gateway serves at this moment; the same request may be answered later."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        self.retry_after_seconds = retry_after_seconds
        super().__init__(ExitCode.UNREACHABLE, message)


class TimeIsOverError(GatewayAwayError):
    """The caller's own time ended a request earlier than usual, which says nothing about the gateway."""


class NotFoundError(CommandError):
    """The gateway does not know the task, or not yet."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.USAGE, message)


class GatewayClient:
    """Blocking client of one gateway; close it at the end.

    Every method raises `CommandError`: 2 for a request that was refused, 3 (`GatewayAwayError`) when the gateway does
    not serve, 4 without permission.
    """

    def __init__(self, url: str, *, timeout_seconds: float = 30.0, environment: Mapping[str, str] = os.environ) -> None:
        """Check address and key; connects with the first request."""
        self.url = _checked_url(url)
        key = environment.get(API_KEY_VARIABLE)
        if key and not (key.isascii() and key.isprintable() and " " not in key):
            raise CommandError(
                ExitCode.USAGE, f"{API_KEY_VARIABLE}: must be printable ASCII without blanks or line ends; set it again"
            )
        self._timeout_seconds = timeout_seconds
        self._http = httpx.Client(
            timeout=timeout_seconds,
            headers={"authorization": f"Bearer {key}"} if key else {},
            follow_redirects=True,
            # No proxy of the environment for addresses of this machine.
            trust_env="//127.0.0.1" not in url and "//localhost" not in url,
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Generation:
        """Send one request; returns it as accepted."""
        headers = {} if idempotency_key is None else {"idempotency-key": _checked_key(idempotency_key)}
        _, answer = self._exchange("POST", "/v1/generations", json=dict(body), headers=headers)
        return self._view(answer)

    def generation(self, request_id: str, *, within_seconds: float | None = None) -> Generation:
        """The task now; an answer that takes longer than the given seconds (at least one) raises `TimeIsOverError`."""
        _, body = self._exchange("GET", f"/v1/generations/{request_id}", within_seconds=within_seconds)
        return self._view(body, expected_id=request_id)

    def image(self, request_id: str, index: int) -> bytes:
        """The bytes of one image."""
        path = f"/v1/generations/{request_id}/images/{index}"
        response, body = self._exchange("GET", path, max_bytes=MAX_IMAGE_BYTES)
        kind = response.headers.get("content-type", "")
        if not kind.startswith("image/") or not body:
            raise GatewayAwayError(self._no_gateway(f"{path} is no image, but {kind or 'without a type'}"))
        return body

    def document(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, query: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        """The JSON object that another route answers with."""
        arguments: dict[str, Any] = {} if body is None else {"json": dict(body)}
        _, answer = self._exchange(method, path, params=dict(query or {}), **arguments)
        try:
            return parse_object(answer)
        except NotAGatewayError as error:
            raise GatewayAwayError(self._no_gateway(str(error))) from None

    def _view(self, body: bytes, *, expected_id: str | None = None) -> Generation:
        try:
            return Generation.parse(body, expected_id=expected_id)
        except NotAGatewayError as error:
            raise GatewayAwayError(self._no_gateway(str(error))) from None

    def _exchange(
        self,
        method: str,
        path: str,
        *,
        max_bytes: int = MAX_ANSWER_BYTES,
        within_seconds: float | None = None,
        **arguments: Any,
    ) -> tuple[httpx.Response, bytes]:
        timeout_seconds = self._timeout_seconds
        if within_seconds is not None:
            timeout_seconds = min(timeout_seconds, max(1.0, within_seconds))
        try:
            with self._http.stream(method, self.url + path, timeout=timeout_seconds, **arguments) as response:
                body = self._read(response, max_bytes=max_bytes)
        except httpx.TimeoutException:
            late = TimeIsOverError if timeout_seconds < self._timeout_seconds else GatewayAwayError
            raise late(f"the gateway at {self.url} did not answer in time; try again or check its log") from None
        except (httpx.ConnectError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise GatewayAwayError(
                f"no gateway answers at {self.url} ({error}); start one with `fluxpool local up`, "
                f"or name it with --url or {URL_VARIABLE}"
            ) from None
        except httpx.RequestError as error:
            raise GatewayAwayError(
                f"the gateway at {self.url} broke the HTTP protocol ({error}); try again or check --url"
            ) from None
        if response.is_success:
            return response, body
        raise refusal(response, body)

    def _read(self, response: httpx.Response, *, max_bytes: int) -> bytes:
        """The body, within bounds of size and time, because the server may not be a gateway."""
        ends_at_seconds = time.monotonic() + self._timeout_seconds * (1 + max_bytes // MAX_ANSWER_BYTES)
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > max_bytes:
                raise GatewayAwayError(self._no_gateway(f"its answer is longer than {max_bytes} bytes"))
            if time.monotonic() > ends_at_seconds:
                raise httpx.ReadTimeout("the answer takes too long")
        return bytes(body)

    def _no_gateway(self, reason: str) -> str:
        return f"there is no Fluxpool gateway at {self.url}: {reason}; check --url or {URL_VARIABLE}"


def _checked_url(url: str) -> str:
    """The address without its last slash; raises `CommandError` (2)."""
    try:
        parsed = httpx.URL(url)
        named = parsed.scheme in {"http", "https"} and bool(parsed.host) and (parsed.port or 1) <= _LAST_PORT
        usable = named and not parsed.query and not parsed.fragment
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable or not url.isprintable() or not url.startswith(("http://", "https://")):
        raise CommandError(
            ExitCode.USAGE, f"--url: {url!r} must begin with http:// or https:// and name a host: http://127.0.0.1:8000"
        )
    return url.rstrip("/")


def _checked_key(key: str) -> str:
    if not (
        0 < len(key) <= _MAX_IDEMPOTENCY_KEY_CHARACTERS and all("\x21" <= character <= "\x7e" for character in key)
    ):
        raise CommandError(
            ExitCode.USAGE,
            f"--idempotency-key: must be 1 to {_MAX_IDEMPOTENCY_KEY_CHARACTERS} printable ASCII characters without "
            "blanks, such as a UUID",
        )
    return key


def refusal(response: httpx.Response, body: bytes) -> CommandError:
    """The error of an answer with an error status."""
    reason = refusal_reason(body, status=response.status_code)
    match response.status_code:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return CommandError(ExitCode.UNAUTHORIZED, f"not allowed: {reason}; set {API_KEY_VARIABLE}")
        case HTTPStatus.NOT_FOUND:
            return NotFoundError(f"{reason} ({response.request.url})")
        case status if status in _PASSING:
            return GatewayAwayError(
                f"the gateway cannot serve now: {reason}", retry_after_seconds=_retry_after(response.headers)
            )
        case status if not HTTPStatus(400) <= status < HTTPStatus(500):
            return GatewayAwayError(f"there is no Fluxpool gateway at {response.request.url}: HTTP {status}")
        case _:
            return CommandError(ExitCode.USAGE, reason)


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait as the answer says; None when it does not, or says it as a date."""
    text = headers.get("retry-after", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        return None
    return min(float(text), _MAX_RETRY_AFTER_SECONDS)
