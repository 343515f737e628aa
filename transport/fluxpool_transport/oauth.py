"""OAUTHBEARER tokens: from a file that somebody else keeps fresh, or from an endpoint by client credentials.

Owns how a token is had and for how long it is good. Knows nothing of brokers, and never checks a signature: that is the
broker's part, here the token's expiry is only read to know when to ask again.
"""

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from aiokafka.abc import AbstractTokenProvider
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

OPAQUE_TOKEN_SECONDS = 300.0
"""How long a token without a readable expiry is taken to be good; projected tokens rotate within the hour."""

_EXPIRY_MARGIN_SECONDS = 30.0
# A token must outlive the handshake it is used for, and clocks differ by seconds.
_REQUEST_TIMEOUT_SECONDS = 10.0


class OAuthTokenError(ConnectionError):
    """No token can be had now; the message names the setting at fault.

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
    except (binascii.Error, ValueError):
        return None
    expiry = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expiry, bool) or not isinstance(expiry, (int, float)):
        return None
    return float(expiry)


def read_token_file(path: Path, *, now_seconds: float) -> OAuthToken:
    """The token that the file holds now. Raises `OAuthTokenError` when it is missing, empty or expired."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OAuthTokenError(
            f"oauth_token_file: {path} cannot be read ({error}); mount a file with a token"
        ) from error
    if not text:
        raise OAuthTokenError(f"oauth_token_file: {path} is empty; mount a file that always holds a fresh token")
    expiry = jwt_expiry_seconds(text)
    if expiry is None:
        return OAuthToken(text, now_seconds + OPAQUE_TOKEN_SECONDS)
    if expiry <= now_seconds:
        raise OAuthTokenError(
            f"oauth_token_file: the token in {path} expired {now_seconds - expiry:.0f} s ago; check what renews it"
        )
    return OAuthToken(text, expiry)


class FileTokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """Tokens from a file, read again for every connection."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

    async def token(self) -> str:
        """The current token; raises `OAuthTokenError`."""
        return (await asyncio.to_thread(read_token_file, self._path, now_seconds=self._clock())).text


class _TokenAnswer(BaseModel):
    """Answer of a token endpoint, RFC 6749 section 5.1."""

    model_config = ConfigDict(frozen=True)

    access_token: str = Field(min_length=1)
    expires_in: float | None = None


class ClientCredentialsTokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka ships no types
    """Tokens by the client-credentials grant (RFC 6749 section 4.4), kept until shortly before they expire."""

    def __init__(
        self,
        *,
        endpoint: str,
        client_id: str,
        client_secret: SecretStr,
        scope: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = endpoint
        self._client_id = client_id
        self._client_secret = client_secret
        self._scope = scope
        self._clock = clock
        self._current: OAuthToken | None = None
        # Every broker connection asks at the same moment after an outage; one request serves them all.
        self._lock = asyncio.Lock()

    async def token(self) -> str:
        """A token that is good for half a minute at least, where the endpoint grants that; raises `OAuthTokenError`."""
        async with self._lock:
            if self._current is None or self._current.expires_at_seconds - self._clock() < _EXPIRY_MARGIN_SECONDS:
                self._current = await self._request()
            return self._current.text

    async def _request(self) -> OAuthToken:
        form = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        asked_at_seconds = self._clock()
        try:
            async with httpx.AsyncClient(timeout=_REQUEST_TIMEOUT_SECONDS) as client:
                response = await client.post(
                    self._endpoint,
                    data=form,
                    auth=httpx.BasicAuth(self._client_id, self._client_secret.get_secret_value()),
                    headers={"Accept": "application/json"},
                )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OAuthTokenError(f"oauth_token_endpoint: {self._endpoint} cannot be reached ({error!r})") from error
        if response.status_code != httpx.codes.OK:
            raise OAuthTokenError(
                f"oauth_token_endpoint: {self._endpoint} answered {response.status_code} "
                f"({response.text[:200]!r}); check oauth_client_id, oauth_client_secret and oauth_scope"
            )
        try:
            answer = _TokenAnswer.model_validate_json(response.content)
        except ValidationError:
            raise OAuthTokenError(
                f"oauth_token_endpoint: {self._endpoint} did not answer with an access_token; is it a token endpoint?"
            ) from None
        if answer.expires_in is not None:
            return OAuthToken(answer.access_token, asked_at_seconds + answer.expires_in)
        expiry = jwt_expiry_seconds(answer.access_token)
        return OAuthToken(answer.access_token, asked_at_seconds + OPAQUE_TOKEN_SECONDS if expiry is None else expiry)
