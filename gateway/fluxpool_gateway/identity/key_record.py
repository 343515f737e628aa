"""One key as the store keeps it, and its rotation. Pure. Times are milliseconds since 1970, UTC."""

import hmac
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fluxpool_gateway.identity.api_key import KeyScope, PresentedKey
from fluxpool_gateway.identity.caller import Caller, KeyLimit
from fluxpool_gateway.identity.rights import Rights


class KeyState(StrEnum):
    """Whether a key is accepted."""

    ACTIVE = "active"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is known of a key; not the key."""

    key_id: str
    digest: bytes = field(repr=False)
    name: str
    tenant: str
    scopes: frozenset[KeyScope]
    rights: Rights
    created_at_ms: int
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None
    last_used_at_ms: int | None = None
    """To a minute; None when it never was."""
    replaced_by: str | None = None
    """Id of the key that a rotation made."""
    submit_limit: str | None = None
    """Tasks that may be submitted with it in a time, as 50/second; None: as many as its tenant may."""
    bucket: str | None = None
    """Id of the first key of its rotations, with which it shares the limit; None: it is the first."""

    def matches(self, presented: PresentedKey) -> bool:
        """Whether this is the presented key; takes the same time whatever differs."""
        return hmac.compare_digest(self.digest, presented.digest)

    def state(self, now_ms: int) -> KeyState:
        """Whether it is accepted now."""
        if self.revoked_at_ms is not None:
            return KeyState.REVOKED
        if self.expires_at_ms is not None and self.expires_at_ms <= now_ms:
            return KeyState.EXPIRED
        return KeyState.ACTIVE

    def caller(self) -> Caller:
        """Who presents it."""
        limit = None
        if self.submit_limit is not None:
            limit = KeyLimit(bucket=self.bucket or self.key_id, submit=self.submit_limit)
        return Caller(
            tenant=self.tenant, scopes=self.scopes, rights=self.rights, limit=limit, name=f"API key {self.key_id}"
        )

    def revoked(self, *, now_ms: int) -> "KeyRecord":
        """The revoked key; one that was revoked before stays as it is."""
        return self if self.revoked_at_ms is not None else replace(self, revoked_at_ms=now_ms)

    def rotated(self, presented: PresentedKey, *, now_ms: int, overlap_ms: int) -> "tuple[KeyRecord, KeyRecord]":
        """This key, which ends with the overlap, and its successor, which lives as long as this one was made for."""
        lifetime_ms = None if self.expires_at_ms is None else self.expires_at_ms - self.created_at_ms
        successor = replace(
            self,
            key_id=presented.key_id,
            digest=presented.digest,
            created_at_ms=now_ms,
            expires_at_ms=None if lifetime_ms is None else now_ms + lifetime_ms,
            last_used_at_ms=None,
            # Together they may submit no more than one of them, while both are accepted.
            bucket=self.bucket or self.key_id,
        )
        ends_at_ms = now_ms + overlap_ms
        if self.expires_at_ms is not None:
            ends_at_ms = min(ends_at_ms, self.expires_at_ms)
        return replace(self, expires_at_ms=ends_at_ms, replaced_by=presented.key_id), successor
