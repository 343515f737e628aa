"""The public keys of the issuer of bearer tokens: found by OpenID discovery, kept, and read again as they rotate.

Tokens that name an unknown key make it read the keys again, but not more often than `READ_AGAIN_SECONDS`: anybody may
send such tokens. While the issuer does not answer, the keys that are known stay in use for `KEPT_SECONDS`.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import httpx
import jwt
import structlog

from fluxpool_gateway.settings import OidcSettings

REFRESHED_SECONDS: Final = 300.0
"""A key that the issuer withdraws is accepted for so long at most, and as much longer as a token is cached."""
READ_AGAIN_SECONDS: Final = 10.0
KEPT_SECONDS: Final = 24 * 3600.0
MAX_DOCUMENT_BYTES: Final = 1 << 20
MAX_KEYS: Final = 200
_TIMEOUT_SECONDS: Final = 5.0
_ALGORITHMS: Final[Mapping[str, frozenset[str]]] = {
    "RSA": frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    "EC": frozenset({"ES256", "ES384", "ES512"}),
    "OKP": frozenset({"EdDSA", "Ed25519"}),
}
"""Of public keys alone: with a symmetric one, everybody who can check a token can make one."""

logger = structlog.stdlib.get_logger(__name__)


class IssuerUnavailableError(Exception):
    """No key of the issuer is known, and it cannot be asked now; the message says why."""


class IssuerAnswerError(Exception):
    """What the issuer answered cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A public key, and the algorithms whose signatures it checks."""

    key_id: str | None
    key: Any
    algorithms: frozenset[str]


class IssuerKeys:
    """The keys of one issuer, for one event loop."""

    def __init__(self, settings: OidcSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is monotonic, in seconds. Reads nothing yet."""
        self._settings = settings
        self._clock = clock
        self._keys: tuple[IssuerKey, ...] = ()
        self._failure = "it was not asked yet"
        self._read_at_seconds = self._asked_at_seconds = -KEPT_SECONDS
        self._reading: asyncio.Task[None] | None = None
        self._document: Mapping[str, Any] | None = None
        self._described_at_seconds = -KEPT_SECONDS

    async def find(self, key_id: str | None, algorithm: str) -> IssuerKey | None:
        """The key that a token names, for its algorithm; without a name the only one there is.

        None when the issuer has no such key. Raises `IssuerUnavailableError`.
        """
        found = self._known(key_id, algorithm)
        age_seconds = self._clock() - self._read_at_seconds
        if found is None or age_seconds > REFRESHED_SECONDS:
            self._ask()
        if self._reading is not None and (found is None or age_seconds > KEPT_SECONDS):
            # A client that disconnects must not cancel the read of others.
            await asyncio.shield(self._reading)
            found = self._known(key_id, algorithm)
        if self._clock() - self._read_at_seconds > KEPT_SECONDS:
            raise IssuerUnavailableError(self._failure)
        return found

    async def describe(self) -> Mapping[str, Any]:
        """The issuer's discovery document, as it was some minutes ago at most; raises `IssuerUnavailableError`."""
        if self._document is None or self._clock() - self._described_at_seconds > REFRESHED_SECONDS:
            try:
                async with await self.client() as client:
                    self._document = await self._read_description(client)
            except (httpx.HTTPError, httpx.InvalidURL, OSError, IssuerAnswerError) as error:
                raise IssuerUnavailableError(f"{type(error).__name__}: {error}") from error
            self._described_at_seconds = self._clock()
        return self._document

    async def client(self) -> httpx.AsyncClient:
        """A client that trusts the issuer's authorities."""
        # In a thread: the system's authorities take milliseconds to read.
        trust = await asyncio.to_thread(self._trust)
        return httpx.AsyncClient(verify=trust, timeout=_TIMEOUT_SECONDS)

    async def close(self) -> None:
        """End a read that is under way."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def _known(self, key_id: str | None, algorithm: str) -> IssuerKey | None:
        found = [key for key in self._keys if key_id in {None, key.key_id} and algorithm in key.algorithms]
        return found[0] if found and (key_id is not None or len(found) == 1) else None

    def _ask(self) -> None:
        now = self._clock()
        if self._reading is None and now - self._asked_at_seconds >= READ_AGAIN_SECONDS:
            self._asked_at_seconds = now
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._on_read)

    def _on_read(self, _: asyncio.Task[None]) -> None:
        self._reading = None

    async def _read(self) -> None:
        issuer = self._settings.issuer
        try:
            async with await self.client() as client:
                url = self._settings.jwks_url or await self._discover(client)
                self._keys = read_keys(await _get(client, url))
        except (httpx.HTTPError, httpx.InvalidURL, OSError, IssuerAnswerError) as error:
            self._failure = f"{type(error).__name__}: {error}"
            logger.warning("oidc_keys_not_read", issuer=issuer, reason=self._failure, keys=len(self._keys))
        else:
            self._read_at_seconds = self._clock()

    async def _discover(self, client: httpx.AsyncClient) -> str:
        url = (await self._read_description(client)).get("jwks_uri")
        if not isinstance(url, str):
            raise IssuerAnswerError("the discovery document names no jwks_uri; set oidc.jwks_url")
        return url

    async def _read_description(self, client: httpx.AsyncClient) -> Mapping[str, Any]:
        assert self._settings.issuer is not None  # noqa: S101 - there are no keys to find without
        document = await _get(client, discovery_url(self._settings.issuer))
        # OpenID Connect Discovery 4.3: else another issuer could speak for this one.
        if document.get("issuer") != self._settings.issuer:
            raise IssuerAnswerError(
                f"the discovery document is of the issuer {document.get('issuer')!r}; oidc.issuer must be the same text"
            )
        return document

    def _trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._settings.ca_file is not None:
            context.load_verify_locations(self._settings.ca_file)
        return context


def discovery_url(issuer: str) -> str:
    """Where an issuer describes itself (OpenID Connect Discovery 4.1)."""
    return issuer.rstrip("/") + "/.well-known/openid-configuration"


def read_keys(document: Mapping[str, Any]) -> tuple[IssuerKey, ...]:
    """The public keys for signatures in a JWK set (RFC 7517); raises `IssuerAnswerError` when it has none."""
    listed = document.get("keys")
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise IssuerAnswerError("the answer is no JWK set: it has no list `keys`")
    keys = tuple(key for key in map(_read_key, listed[:MAX_KEYS]) if key is not None)
    if not keys:
        raise IssuerAnswerError("the JWK set has no public RSA, EC or Ed25519 key for signatures")
    return keys


def _read_key(item: Any) -> IssuerKey | None:
    """None for what is no such key: sets may hold keys for encryption, and kinds that come later."""
    if not isinstance(item, dict) or item.get("use", "sig") != "sig" or "verify" not in item.get("key_ops", ["verify"]):
        return None
    kind, named, key_id = item.get("kty"), item.get("alg"), item.get("kid")
    algorithms = _ALGORITHMS.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
    if named is not None:
        algorithms &= {named} if isinstance(named, str) else frozenset()
    # PyJWT tells the curve of a key without `alg` from the key itself.
    if not algorithms or not (key_id is None or isinstance(key_id, str)):
        return None
    try:
        read = jwt.PyJWK(item)
    except jwt.PyJWTError:
        return None
    if kind == "EC":
        algorithms &= {read.algorithm_name}
    # A set with private keys would be a mistake of the issuer's; they are no public keys.
    return None if "d" in item else IssuerKey(key_id, read.key, algorithms)


async def _get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url, headers={"accept": "application/json"}) as response:
        if response.status_code != HTTPStatus.OK:
            raise IssuerAnswerError(f"{url} answered {response.status_code}")
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise IssuerAnswerError(f"{url} answered more than {MAX_DOCUMENT_BYTES} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise IssuerAnswerError(f"{url} did not answer JSON") from error
    if not isinstance(document, dict):
        raise IssuerAnswerError(f"{url} did not answer a JSON object")
    return document
