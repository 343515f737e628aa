"""Proof that a gateway decided the tenant of a task: a header alone is a claim of the record's producer. Pure.

The proof is an HMAC over tenant and id with a secret that the gateway alone has. A task of the tenant `default` needs
none. Workers carry it from a task to its results and progress.
"""

import hmac
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from fluxpool_contract.messages import DEFAULT_TENANT, Envelope

_PROOF_BYTES: Final = 16
"""128 bits: a forger has one guess a record."""
NOBODY: Final = ""
"""In place of a tenant: no caller with a key sees the task."""


def prove_tenant(secret: bytes, *, tenant: str, request_id: str) -> str:
    """The proof for one task, hexadecimal."""
    # A tenant has no slash.
    return hmac.digest(secret, f"{tenant}/{request_id}".encode(), "sha256")[:_PROOF_BYTES].hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantTrust:
    """Whose task a record is about."""

    secret: bytes | None = field(default=None, repr=False)
    """None without authentication, where tenants are not separated."""
    foreign_topics: frozenset[str] = frozenset()
    """Topics in which every writer may name any tenant."""

    def owner(self, envelope: Envelope, *, topics: Collection[str], request_id: str) -> str:
        """The tenant; `default` without proof, unless one of `topics` is foreign: those that may have named it first.

        `NOBODY` with a false proof: it may be one of a secret that was lost, and the task another tenant's then.
        """
        tenant = envelope.tenant
        if self.secret is None or tenant == DEFAULT_TENANT or not self.foreign_topics.isdisjoint(topics):
            return tenant
        if envelope.tenant_proof is None:
            return DEFAULT_TENANT
        proof = prove_tenant(self.secret, tenant=tenant, request_id=request_id)
        return tenant if hmac.compare_digest(proof, envelope.tenant_proof) else NOBODY
