"""OAUTHBEARER tokens: from a file that is kept fresh from outside, or from an endpoint by client credentials.

Owns requesting a token and how long it is used. Knows nothing of brokers, and checks no signature: brokers do that,
here the expiry is only read to know when to request the next one. httpx is imported with the first request: every
program connects to Kafka, few by tokens of an endpoint, and the import takes 0.1 s.
"""

import asyncio
import base64
import binascii
import json
import math
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar
from urllib.parse import quote_plus

from aiokafka.abc import AbstractTokenProvider
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

if TYPE_CHECKING:
    import httpx

OPAQUE_TOKEN_SECONDS = 300.0
"""Assumed lifetime of a token without a readable expiry; projected tokens rotate within the hour."""
MAX_TOKEN_SECONDS = 30 * 86_400.0
"""A token is requested again after this lifetime, whatever its expiry says."""

_EXPIRY_MARGIN_SECONDS = 30.0
# A token must outlive the handshake it is used for, and clocks differ by seconds.
_REQUEST_TIMEOUT_SECONDS = 10.0
_LATEST_SECONDS = 253_402_214_400
# The year 9999: a claim beyond is no time.


class OAuthTokenError(ConnectionError):
    """There is no token now; the message names the setting at fault.

    A `ConnectionError`, because client libraries treat those as a broker that cannot be reached yet and try again.
    """


@dataclass(frozen=True, slots=True)
class OAuthToken:
    """A token and the moment it expires, in seconds since 1970."""

    text: str
    expires_at_seconds: float


def jwt_expiry_seconds(token: str) -> float | None:
    """The `exp` claim (RFC 7519 section 4.1.4, seconds since 1970) of a JWT, unverified; None when it has none."""
    parts = token.split(".")
    if len(parts) not in {2, 3}:
        return None
    payload = parts[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    expiry = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expiry, bool) or not isinstance(expiry, (int, float)):
        return None
    return float(expiry) if abs(expiry) < _LATEST_SECONDS and math.isfinite(expiry) else None


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file that always holds a valid token."""

    path: Path
    is_kept: ClassVar = False
    """What renews the file also knows when: each connection gets what it holds then."""

    def fetch(self, *, now_seconds: float) -> OAuthToken:
        """The token that the file holds now. Raises `OAuthTokenError` when it is missing, empty or expired."""
        try:
            text = self.path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OAuthTokenError(
                f"oauth_token_file: {self.path} cannot be read ({error}); mount a file with a token"
            ) from error
        if not text:
            raise OAuthTokenError(
                f"oauth_token_file: {self.path} is empty; mount a file that always holds a fresh token"
            )
        if not (text.isprintable() and " " not in text):
            raise OAuthTokenError(
                f"oauth_token_file: {self.path} holds more than one token; mount a file with one alone"
            )
        expiry = jwt_expiry_seconds(text)
        if expiry is not None and expiry <= now_seconds:
            raise OAuthTokenError(
                f"oauth_token_file: the token in {self.path} expired {now_seconds - expiry:.0f} s ago; "
                "check what renews it"
            )
        return OAuthToken(text, _good_until(text, now_seconds=now_seconds))

    async def fetch_async(self, *, now_seconds: float) -> OAuthToken:
        """As `fetch`, for an event loop."""
        return await asyncio.to_thread(self.fetch, now_seconds=now_seconds)


class _TokenAnswer(BaseModel):
    """Answer of a token endpoint, RFC 6749 section 5.1."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    access_token: Annotated[str, Field(pattern=r"^[\x21-\x7e]+$")]
    expires_in: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenClient:
    """Asks one endpoint for tokens by the client-credentials grant (RFC 6749 section 4.4)."""

    endpoint: str
    client_id: str
    client_secret: SecretStr
    scope: str | None = None
    encode_credentials: bool = True
    """Form-encode the id and the secret, as RFC 6749 section 2.3.1 demands; some servers take them as they are."""
    ca_file: Path | None = None
    """Authorities to trust beside those of the system."""
    is_kept: ClassVar = True

    def fetch(self, *, now_seconds: float) -> OAuthToken:
        """A fresh token; waits for the endpoint, so not for an event loop. Raises `OAuthTokenError`."""
        import httpx  # noqa: PLC0415 - see above

        try:
            with httpx.Client(timeout=_REQUEST_TIMEOUT_SECONDS, **self._trust()) as client:
                response = client.post(self.endpoint, **self._request())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        return self._read(response, now_seconds=now_seconds)

    async def fetch_async(self, *, now_seconds: float) -> OAuthToken:
        """As `fetch`, for an event loop."""
        import httpx  # noqa: PLC0415 - see above

        trust = await asyncio.to_thread(self._trust)
        try:
            async with httpx.AsyncClient(timeout=_REQUEST_TIMEOUT_SECONDS, **trust) as client:
                response = await client.post(self.endpoint, **self._request())
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        return self._read(response, now_seconds=now_seconds)

    def _trust(self) -> dict[str, Any]:
        # A proxy sees whatever is sent to an http address, so the secret is not sent through one then.
        encrypted = self.endpoint.startswith("https://")
        context = ssl.create_default_context()
        if self.ca_file is not None:
            try:
                context.load_verify_locations(self.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise OAuthTokenError(
                    f"oauth_ca_file: {self.ca_file} cannot be used ({error}); mount a file with PEM certificates"
                ) from error
        return {"verify": context, "trust_env": encrypted}

    def _request(self) -> dict[str, Any]:
        credentials = self.client_id, self.client_secret.get_secret_value()
        if self.encode_credentials:
            credentials = quote_plus(credentials[0]), quote_plus(credentials[1])
        return {
            "data": {"grant_type": "client_credentials"} | ({"scope": self.scope} if self.scope else {}),
            "auth": credentials,
            "headers": {"Accept": "application/json"},
        }

    def _unreachable(self, error: Exception) -> OAuthTokenError:
        return OAuthTokenError(f"oauth_token_endpoint: {self.endpoint} cannot be reached ({error!r})")

    def _read(self, response: "httpx.Response", *, now_seconds: float) -> OAuthToken:
        if response.status_code != HTTPStatus.OK:
            raise OAuthTokenError(
                f"oauth_token_endpoint: {self.endpoint} answered {response.status_code} "
                f"({response.text[:200]!r}); check oauth_client_id, oauth_client_secret, oauth_scope and, where "
                "the server takes credentials as they are, set oauth_encode_credentials to false"
            )
        try:
            answer = _TokenAnswer.model_validate_json(response.content)
        except ValidationError:
            raise OAuthTokenError(
                f"oauth_token_endpoint: {self.endpoint} did not answer with an access_token; is it a token endpoint?"
            ) from None
        if answer.expires_in is not None:
            return OAuthToken(answer.access_token, now_seconds + min(answer.expires_in, MAX_TOKEN_SECONDS))
        return OAuthToken(answer.access_token, _good_until(answer.access_token, now_seconds=now_seconds))


class TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """Tokens for aiokafka; those of an endpoint are kept until shortly before they expire."""

    def __init__(self, source: TokenFile | TokenClient, *, clock: Callable[[], float] = time.time) -> None:
        self._source = source
        self._clock = clock
        self._current: OAuthToken | None = None
        # Every broker connection asks at the same moment after an outage; one request serves them all.
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """A token that is good for half a minute at least, where the source grants that; raises `OAuthTokenError`."""
        async with self._lock:
            now, kept = self._clock(), self._current if self._source.is_kept else None
            if kept is None or kept.expires_at_seconds - now < _EXPIRY_MARGIN_SECONDS:
                kept = self._current = await self._source.fetch_async(now_seconds=now)
            return kept.text


def _good_until(token: str, *, now_seconds: float) -> float:
    """The moment up to which a token without a stated lifetime is taken to be good."""
    expiry = jwt_expiry_seconds(token)
    return now_seconds + OPAQUE_TOKEN_SECONDS if expiry is None else min(expiry, now_seconds + MAX_TOKEN_SECONDS)
