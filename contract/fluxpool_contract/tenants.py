"""Whose a record is: a tenant in a header is a claim of the record's producer, unless a gateway has proven it. Pure.

The proof is an HMAC over tenant and id. A task of the tenant `default` needs none. Workers carry it from a task to its
results and progress. Gateways and workers decide by the same rule, so that a task and its objects have one owner. The
file with the keys is read by `fluxpool_transport.tenant_secret`.
"""

import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

from fluxpool_contract.messages import DEFAULT_TENANT, Envelope

_PROOF_BYTES: Final = 16
"""128 bits: a forger has one guess a record."""
MIN_KEY_CHARACTERS: Final = 32
"""Of `openssl rand -hex 16`; a shorter key may be a password, which a reader of one record could search for."""
MAX_KEYS: Final = 8
NO_TENANT: Final = ""
"""In place of a tenant: no caller with a key sees the task, and no worker runs it."""


def prove_tenant(secret: bytes, *, tenant: str, request_id: str) -> str:
    """The proof for one task, hexadecimal."""
    # A tenant has no slash.
    return hmac.digest(secret, f"{tenant}/{request_id}".encode(), "sha256")[:_PROOF_BYTES].hex()


@dataclass(frozen=True, slots=True)
class TenantKeys:
    """The keys that gateways and workers share: the first signs, each of them is accepted."""

    values: tuple[bytes, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The keys in a file, one a line; empty lines and those that begin with `#` are left out.

        Raises `ValueError` with what is wrong and the remedy, but no key.
        """
        lines = [line.strip() for line in text.splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError("holds no key; write one a line, such as `openssl rand -hex 32` prints")
        if len(keys) > MAX_KEYS:
            raise ValueError(f"holds {len(keys)} keys, and {MAX_KEYS} are the most; remove those that sign no longer")
        for place, key in enumerate(keys, start=1):
            if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError(
                    f"key {place} must have at least {MIN_KEY_CHARACTERS} ASCII characters without blanks; "
                    "make one with `openssl rand -hex 32`"
                )
        return cls(tuple(key.encode() for key in keys))

    def __call__(self, *, look: bool = False) -> Self:
        """Themselves, as a source that does not change."""
        del look
        return self


class KeySource(Protocol):
    """The shared keys as they are now: a file may change."""

    def __call__(self, *, look: bool = False) -> TenantKeys:
        """The keys; with `look` as the file has them this very moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTrust:
    """Whose task a record is about, and the proof of that for records of one's own."""

    secret: bytes | None = field(default=None, repr=False)
    """A gateway's own, in its store of API keys: it signs where no keys are shared, and is accepted always, for records
    of before. Workers have none."""
    shared: KeySource = TenantKeys()
    """The keys that gateways and workers share."""
    foreign_topics: frozenset[str] = frozenset()
    """Topics in which every writer may name any tenant."""

    def owner(self, envelope: Envelope, *, topics: Collection[str], request_id: str) -> str:
        """The tenant; `default` without proof, unless one of `topics` is foreign: those that may have named it first.

        `NO_TENANT` with a false proof: it may be one of a key that was lost, and the task another tenant's then.
        Without any key no proof can be told from another, and all are `default`'s.
        """
        tenant = envelope.tenant
        if tenant == DEFAULT_TENANT or not self.foreign_topics.isdisjoint(topics):
            return tenant
        accepted = self._accepted()
        if envelope.tenant_proof is None or not accepted:
            return DEFAULT_TENANT
        if _proves(accepted, envelope.tenant_proof, tenant=tenant, request_id=request_id):
            return tenant
        # Another process may have read the file with a new key a moment before this one.
        later = self.shared(look=True).values
        is_proven = later != accepted[: len(later)] and _proves(
            later, envelope.tenant_proof, tenant=tenant, request_id=request_id
        )
        return tenant if is_proven else NO_TENANT

    def prove(self, *, tenant: str, request_id: str) -> str | None:
        """The proof for a record of one's own; None where it needs none, or there is no key."""
        if tenant in {DEFAULT_TENANT, NO_TENANT}:
            return None
        signing = next(iter(self._accepted()), None)
        return None if signing is None else prove_tenant(signing, tenant=tenant, request_id=request_id)

    def _accepted(self) -> tuple[bytes, ...]:
        """The first signs."""
        shared = self.shared().values
        return shared if self.secret is None else (*shared, self.secret)


def _proves(keys: Collection[bytes], proof: str, *, tenant: str, request_id: str) -> bool:
    return any(hmac.compare_digest(prove_tenant(key, tenant=tenant, request_id=request_id), proof) for key in keys)
