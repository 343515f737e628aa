"""Proof that a gateway decided the tenant of a task: a header alone is a claim of the record's producer. Pure.

The proof is an HMAC over tenant and id with a secret that the gateway alone has. A task of the tenant `default` needs
none. Workers carry it from a task to its results and progress.
"""

import hmac
from dataclasses import dataclass, field
from typing import Final

from fluxpool_contract.messages import DEFAULT_TENANT, Envelope

_PROOF_BYTES: Final = 16
"""128 bits: a forger has one guess a record."""


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

    def owner(self, envelope: Envelope, *, topic: str, request_id: str, unproven: str | None) -> str | None:
        """The tenant; `unproven` for one without proof. None when no tenant may see it.

        A false proof is None as well: it may be one of a secret that was lost, and the task another tenant's then.
        """
        tenant = envelope.tenant
        if self.secret is None or tenant == DEFAULT_TENANT or topic in self.foreign_topics:
            return tenant
        if envelope.tenant_proof is None:
            return unproven
        proof = prove_tenant(self.secret, tenant=tenant, request_id=request_id)
        return tenant if hmac.compare_digest(proof, envelope.tenant_proof) else None
