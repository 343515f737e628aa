"""Admits a request by its `Authorization` header: an API key, or a token of an issuer; or refuses it with 401.

Owns the cache in front of the key store, and when keys were used last. Each server process has its own; what another
process or replica changes is seen here within `CACHED_SECONDS`. Knows nothing of routes; scopes are checked by these.
"""

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, assert_never

import structlog

from fluxpool_gateway.http.problem import ProblemCode, ProblemError, unavailable
from fluxpool_gateway.identity.api_key import PresentedKey, parse_key
from fluxpool_gateway.identity.caller import ANYBODY, REALM, Caller, unauthorized
from fluxpool_gateway.identity.key_record import KeyRecord, KeyState
from fluxpool_gateway.identity.key_store import KeyStore, KeyStoreAwayError, KeyStoreUnavailableError

if TYPE_CHECKING:
    # Not for every gateway: HTTP client and PyJWT take a tenth of its start.
    from fluxpool_gateway.identity.tokens import Tokens

CACHED_SECONDS: Final = 2.0
"""A revoked key is accepted for so long at most; each key in use costs one read of the store in that time."""
AWAY_SECONDS: Final = 120.0
"""A key that was read before is accepted for so long while the database that has it is away, as during a fail-over:
accepting tasks must not depend on it. None can be revoked there meanwhile, unless only this process cannot reach it."""
MAX_CACHED_KEYS: Final = 10_000
"""About 10 MB. Ids that were made up are cached as well, and push out others: that costs reads, nothing else."""
SAVE_USED_SECONDS: Final = 60.0
_TOKEN: Final = re.compile(rb"\s*bearer\s+([\w-]+\.[\w-]+\.[\w-]*)\s*", re.IGNORECASE)
"""A token has three parts in base64url, an API key one."""

logger = structlog.stdlib.get_logger(__name__)


class Gate(Protocol):
    """Decides who makes a request."""

    async def admit(self, authorization: bytes | None) -> Caller:
        """The caller; raises `ProblemError` (401, 503)."""


class OpenGate:
    """The gate of a gateway without authentication."""

    async def admit(self, authorization: bytes | None) -> Caller:  # noqa: ARG002 - a client may send its key anywhere
        """Admit anybody."""
        return ANYBODY


@dataclass(frozen=True, slots=True)
class _Cached:
    record: KeyRecord | None
    caller: Caller | None
    until_seconds: float


class KeyGate:
    """The gate of a gateway with keys, for one event loop."""

    def __init__(
        self,
        store: KeyStore,
        *,
        tokens: "Tokens | None" = None,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`clock` is monotonic, in seconds; `now_ms` is the time of day, in milliseconds since 1970.

        Without `tokens` keys alone are accepted.
        """
        self.store = store
        self.tokens = tokens
        self.now_ms = now_ms
        self._clock = clock
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._parsed: OrderedDict[bytes, PresentedKey] = OrderedDict()
        self._reading: dict[str, asyncio.Future[KeyRecord | None]] = {}
        self._used_at_ms: dict[str, int] = {}

    async def admit(self, authorization: bytes | None) -> Caller:
        """The holder of the key or token.

        Raises `ProblemError`: 401 for one that is not accepted, 403 for a token without a tenant, 503 while that
        cannot be known.
        """
        if authorization is None:
            raise self._unauthenticated()
        # Not by the header itself, which would keep keys in memory for hours.
        digest = hashlib.sha256(authorization).digest()
        if self.tokens is not None and (token := _TOKEN.fullmatch(authorization)):
            return await self.tokens.admit(token[1], digest=digest)
        presented = self._recognised(authorization, digest)
        cached = await self._known(presented.key_id)
        # Unknown ids and wrong secrets look alike. What follows is said to a holder of the secret alone.
        if cached.record is None or not cached.record.matches(presented):
            raise unauthorized("the API key is not valid")
        return self._active(cached)

    async def admit_holder(self, key_id: str) -> Caller:
        """The holder of a key, who has proved that earlier, as by a session of the page; raises as `admit` does."""
        cached = await self._known(key_id)
        if cached.record is None:
            raise unauthorized("the API key is not valid")
        return self._active(cached)

    async def secret(self) -> bytes:
        """What all processes and replicas know, and no one else; raises `ProblemError` (503)."""
        try:
            return await self.store.secret()
        except KeyStoreUnavailableError as error:
            logger.warning("key_store_unusable", reason=str(error))
            raise _unreadable() from error

    async def _known(self, key_id: str) -> _Cached:
        cached = self._cache.get(key_id)
        if cached is None or cached.until_seconds <= self._clock():
            cached = await self._read(key_id, known=cached)
        return cached

    def _active(self, cached: _Cached) -> Caller:
        assert cached.record is not None  # noqa: S101 - checked by both callers
        assert cached.caller is not None  # noqa: S101 - there with the record
        key_id, now_ms = cached.record.key_id, self.now_ms()
        match cached.record.state(now_ms):
            case KeyState.ACTIVE:
                self._used_at_ms[key_id] = now_ms
                return cached.caller
            case KeyState.REVOKED:
                raise unauthorized(f"the API key {key_id} was revoked")
            case KeyState.EXPIRED:
                raise unauthorized(f"the API key {key_id} has expired")
            case unknown:
                assert_never(unknown)

    def evict(self, key_id: str) -> None:
        """Read a key again before it is used next: it was changed here."""
        self._cache.pop(key_id, None)
        # What is being read may be from before the change.
        self._reading.pop(key_id, None)

    async def run(self) -> None:
        """Save when keys were used, every minute until cancelled."""
        while True:
            await asyncio.sleep(SAVE_USED_SECONDS)
            await self.save_used()

    async def save_used(self) -> None:
        """Save when keys were used since the last time; kept for the next time when that fails."""
        used, self._used_at_ms = self._used_at_ms, {}
        if not used:
            return
        try:
            await self.store.save_used(used)
        except KeyStoreUnavailableError as error:
            logger.warning("key_usage_not_saved", reason=str(error))
            self._used_at_ms = used | self._used_at_ms

    async def close(self) -> None:
        """Save and close the store."""
        await self.save_used()
        self.store.close()
        if self.tokens is not None:
            await self.tokens.close()

    def _unauthenticated(self) -> ProblemError:
        detail = "this gateway needs an API key: send it as `Authorization: Bearer fp_...`"
        if self.tokens is not None:
            detail += f", or a token of {self.tokens.issuer} in its place"
        challenge = [("www-authenticate", f'Bearer realm="{REALM}"')]
        return ProblemError(ProblemCode.UNAUTHORIZED, detail, headers=challenge)

    def _recognised(self, authorization: bytes, digest: bytes) -> PresentedKey:
        """The key in the header. A header that was seen before is looked up by its hash, and not parsed again."""
        presented = self._parsed.get(digest)
        if presented is None:
            presented = self._parsed[digest] = _presented(authorization)
            if len(self._parsed) > MAX_CACHED_KEYS:
                self._parsed.popitem(last=False)
        return presented

    async def _read(self, key_id: str, *, known: _Cached | None) -> _Cached:
        reading = self._reading.get(key_id)
        if reading is None:
            # Requests that come meanwhile share the read.
            reading = self._reading[key_id] = self.store.find(key_id)
            reading.add_done_callback(partial(self._on_read, key_id))
        try:
            # A client that disconnects must not cancel the read of others.
            record = await asyncio.shield(reading)
        except KeyStoreUnavailableError as error:
            logger.warning("key_store_unusable", reason=str(error))
            is_away = isinstance(error, KeyStoreAwayError)
            if is_away and known is not None and self._clock() < known.until_seconds + AWAY_SECONDS:
                return known
            raise _unreadable() from error
        return self._cached(record)

    def _cached(self, record: KeyRecord | None) -> _Cached:
        caller = None if record is None else record.caller()
        return _Cached(record, caller, self._clock() + CACHED_SECONDS)

    def _on_read(self, key_id: str, reading: asyncio.Future[KeyRecord | None]) -> None:
        # Every request for it may be gone by now: look at the exception, or asyncio logs it as lost.
        failed = reading.cancelled() or reading.exception() is not None
        if self._reading.get(key_id) is not reading:
            return
        del self._reading[key_id]
        if failed:
            return
        self._cache[key_id] = self._cached(reading.result())
        self._cache.move_to_end(key_id)
        if len(self._cache) > MAX_CACHED_KEYS:
            self._cache.popitem(last=False)


def _unreadable() -> ProblemError:
    detail = "API keys cannot be checked at the moment; nothing was done, retry"
    return unavailable(ProblemCode.IDENTITY_UNAVAILABLE, detail)


def _presented(authorization: bytes) -> PresentedKey:
    scheme, _, credentials = authorization.decode("latin-1").strip().partition(" ")
    if scheme.lower() != "bearer":
        raise unauthorized("the Authorization header is not understood; send Bearer fp_...")
    presented = parse_key(credentials.strip())
    if presented is None:
        raise unauthorized("the API key is not valid")
    return presented
