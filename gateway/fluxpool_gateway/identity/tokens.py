"""Bearer tokens of an OpenID Connect issuer: checks them, and tells the caller from their claims.

PyJWT checks signatures and times; `issuer_keys` has the keys. A token that was accepted is not checked again for
`CACHED_SECONDS`, so that its signature costs nothing on the hot path; it is never accepted past its end.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.messages import check_tenant
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, unavailable
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller, unauthorized
from fluxpool_gateway.identity.issuer_keys import IssuerKeys, IssuerUnavailableError
from fluxpool_gateway.identity.rights import Rights
from fluxpool_gateway.settings import OidcSettings

CACHED_SECONDS: Final = 60.0
MAX_CACHED_TOKENS: Final = 10_000
MAX_TOKEN_BYTES: Final = 16_384
LEEWAY_SECONDS: Final = 30
"""For clocks that differ."""
PRIORITY_SCOPE: Final = "priority:"
MAX_SUBJECT_CHARACTERS: Final = 200

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class _Accepted:
    caller: Caller
    until_seconds: float


class Tokens:
    """The tokens of one issuer, for one event loop."""

    def __init__(
        self,
        settings: OidcSettings,
        *,
        keys: IssuerKeys,
        now_seconds: Callable[[], float] = time.time,
    ) -> None:
        """`now_seconds` is the time of day, in seconds since 1970."""
        self.issuer = settings.issuer
        self.settings = settings
        self.keys = keys
        self._now_seconds = now_seconds
        self._accepted: OrderedDict[bytes, _Accepted] = OrderedDict()
        self._jwt = jwt.PyJWT(options={"enforce_minimum_key_length": True})

    async def admit(self, token: bytes, *, digest: bytes) -> Caller:
        """The caller that a token names; `digest` is a hash of it.

        Raises `ProblemError`: 401 for a token that is not accepted, 403 for one that names no tenant, 503 while the
        issuer's keys are not known.
        """
        accepted = self._accepted.get(digest)
        if accepted is not None and self._now_seconds() < accepted.until_seconds:
            return accepted.caller
        claims = await self.claims_of(token)
        caller = caller_of(claims, self.settings)
        until = min(self._now_seconds() + CACHED_SECONDS, int(claims["exp"]) + LEEWAY_SECONDS)
        self._accepted[digest] = _Accepted(caller, until)
        self._accepted.move_to_end(digest)
        if len(self._accepted) > MAX_CACHED_TOKENS:
            self._accepted.popitem(last=False)
        return caller

    async def close(self) -> None:
        """End what is under way."""
        await self.keys.close()

    async def claims_of(self, token: bytes, *, audience: str | None = None) -> Mapping[str, Any]:
        """The claims of a token for this gateway, or for another audience; raises `ProblemError` (401, 503)."""
        audience = audience or self.settings.audience
        if len(token) > MAX_TOKEN_BYTES:
            raise unauthorized(f"the token is longer than {MAX_TOKEN_BYTES} bytes")
        try:
            header = jwt.get_unverified_header(token)
            key_id, algorithm = header.get("kid"), header["alg"]
            key = await self.keys.find(key_id, algorithm) if isinstance(algorithm, str) else None
            if key is None:
                raise unauthorized("the token is signed with no key of the issuer")
            return self._jwt.decode(
                token,
                key.key,
                algorithms=[algorithm],
                issuer=self.settings.issuer,
                audience=audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except IssuerUnavailableError as error:
            detail = "tokens cannot be checked at the moment; nothing was done, retry"
            raise unavailable(ProblemCode.IDENTITY_UNAVAILABLE, detail) from error
        except jwt.ExpiredSignatureError as error:
            raise unauthorized("the token has expired") from error
        except jwt.InvalidAudienceError as error:
            raise unauthorized(f"the token is not for this gateway; ask for the audience {audience}") from error
        except jwt.InvalidIssuerError as error:
            raise unauthorized(f"the token is not of {self.settings.issuer}") from error
        except (jwt.MissingRequiredClaimError, jwt.ImmatureSignatureError) as error:
            raise unauthorized(f"the token is not valid: {error}") from error
        except (jwt.PyJWTError, ValueError, KeyError, RecursionError) as error:
            raise unauthorized("the token is not valid") from error


def caller_of(claims: Mapping[str, Any], settings: OidcSettings) -> Caller:
    """The caller that the claims of a valid token name; raises `ProblemError` (403) when they name no tenant."""
    subject = cut_text(_CONTROL.sub("?", str(claims["sub"])), MAX_SUBJECT_CHARACTERS)
    tenant = find_claim(claims, settings.tenant_claim)
    try:
        check_tenant(tenant if isinstance(tenant, str) else "")
    except ValueError as error:
        raise ProblemError(
            ProblemCode.NOT_ENTITLED,
            f"the token names no tenant: its claim {settings.tenant_claim} {error}; have the issuer add it",
        ) from error
    granted = _granted(find_claim(claims, settings.scopes_claim), settings.scope_prefix)
    scopes = settings.default_scopes if granted is None else {scope for scope in KeyScope if scope in granted}
    priorities = {priority for priority in Priority if PRIORITY_SCOPE + priority in (granted or ())}
    return Caller(
        tenant=tenant,
        scopes=frozenset(scopes),
        rights=Rights(priorities=frozenset({Priority.STANDARD} | priorities)),
        name=f"the token of {subject}",
    )


def find_claim(claims: Mapping[str, Any], name: str) -> Any:
    """A claim by its name, or by a path with dots, such as `realm_access.roles`; names may have dots themselves."""
    if name in claims:
        return claims[name]
    for dot in (match.start() for match in re.finditer(r"\.", name)):
        inner = claims.get(name[:dot])
        if isinstance(inner, Mapping):
            found = find_claim(inner, name[dot + 1 :])
            if found is not None:
                return found
    return None


def _granted(value: Any, prefix: str) -> frozenset[str] | None:
    """What the scopes claim grants here: words with blanks between them (RFC 9068), or a list; None without it."""
    if value is None:
        return None
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return frozenset(word.removeprefix(prefix) for word in words if isinstance(word, str) and word.startswith(prefix))
