"""Who makes a request: its tenant, its scopes, and whose tasks it sees. Pure."""

from dataclasses import dataclass
from typing import Final

from fluxpool_contract.messages import DEFAULT_TENANT
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.rights import EVERYTHING, Rights

REALM: Final = "fluxpool"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimit:
    """How many tasks a key may submit, within the limits of its tenant."""

    bucket: str
    """What is counted together: a key and those that rotations made of it."""
    submit: str
    """Tasks in a time, as 50/second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The holder of a key or token, or anybody where none is needed."""

    tenant: str
    """Of the tasks that it submits."""
    scopes: frozenset[KeyScope]
    rights: Rights
    """What it may ask for in a submission."""
    limit: KeyLimit | None = None
    """Of its key alone; None where it has none."""
    name: str | None = None
    """The key or token, as people know it: it is logged, and part of what the caller causes. None without
    authentication."""

    @property
    def sees_only(self) -> str | None:
        """The tenant whose tasks it may know of; None without authentication, where tenants are not separated."""
        return None if self.name is None else self.tenant

    def require(self, scope: KeyScope) -> None:
        """Raises `ProblemError` (403) when the key does not have the scope."""
        if scope not in self.scopes:
            challenge = f'Bearer realm="{REALM}", error="insufficient_scope", scope="{scope}"'
            raise ProblemError(
                ProblemCode.INSUFFICIENT_SCOPE,
                f"this request needs the scope {scope}; {self.name} has {', '.join(sorted(self.scopes)) or 'none'}",
                headers=[("www-authenticate", challenge)],
            )


def unauthorized(reason: str) -> ProblemError:
    """401: what the request was sent with is not accepted."""
    challenge = f'Bearer realm="{REALM}", error="invalid_token", error_description="{reason}"'
    return ProblemError(ProblemCode.UNAUTHORIZED, reason, headers=[("www-authenticate", challenge)])


ANYBODY: Final = Caller(tenant=DEFAULT_TENANT, scopes=frozenset(KeyScope), rights=EVERYTHING)
"""Every caller of a gateway without authentication."""
