"""The session of a browser: a cookie that says who it is and until when; and the tokens of forms. Pure.

The cookie holds the key's public id, never the key, with an HMAC by a secret that every process and replica of a
gateway has from its key store. So no process keeps sessions, and any of them reads those of the others. A session ends
with its time, and with its key: the gate looks at the key's record for each request.
The cookie of somebody whom an issuer named holds what they may do, and no token.
"""

import base64
import hmac
import json
import re
import secrets
from dataclasses import dataclass, field
from typing import Final, Self

from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.identity.api_key import KEY_ID_PATTERN, KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.identity.rights import Rights

SESSION_SECONDS: Final = 12 * 60 * 60
"""A working day: a browser that is left open asks for the key again tomorrow."""
_PURPOSE: Final = b"fluxpool session of the page"
_FORM_PURPOSE: Final = b"fluxpool form of the page"
_COOKIE: Final = re.compile(rf"(v1\.({KEY_ID_PATTERN})\.([0-9]{{1,12}})\.[A-Za-z0-9_-]{{22}})\.([0-9a-f]{{64}})")

_ISSUED: Final = re.compile(r"(v2\.([A-Za-z0-9_-]{1,3000})\.([0-9]{1,12})\.[A-Za-z0-9_-]{22})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class SessionSigner:
    """Makes and checks the cookies of one gateway."""

    secret: bytes = field(repr=False)

    @classmethod
    def of_gateway(cls, secret: bytes) -> Self:
        """The signer whose secret follows from one that is used for something else as well."""
        return cls(hmac.digest(secret, _PURPOSE, "sha256"))

    def issue(self, key_id: str, *, now_ms: int) -> str:
        """The cookie of a new session."""
        # The random part makes two sessions of one key differ, and so the tokens of their forms.
        text = f"v1.{key_id}.{now_ms // 1000 + SESSION_SECONDS}.{secrets.token_urlsafe(16)}"
        return f"{text}.{self._sign(text)}"

    def issue_to(self, caller: Caller, *, issuer: str, now_ms: int, seconds: int) -> str:
        """The cookie of a session of somebody whom an issuer knows: who it is and what they may do, no token."""
        claims = {
            "issuer": issuer,
            "name": caller.name,
            "tenant": caller.tenant,
            "scopes": sorted(caller.scopes),
            "priorities": sorted(caller.rights.priorities),
        }
        text = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
        text = f"v2.{text}.{now_ms // 1000 + seconds}.{secrets.token_urlsafe(16)}"
        return f"{text}.{self._sign(text)}"

    def read_caller(self, cookie: str, *, issuer: str, now_ms: int) -> Caller | None:
        """Whose session the cookie is, by this issuer; None when the gateway never made the cookie, or it is over."""
        found = _ISSUED.fullmatch(cookie)
        if found is None or not hmac.compare_digest(self._sign(found[1]), found[4]) or now_ms >= int(found[3]) * 1000:
            return None
        claims = json.loads(base64.urlsafe_b64decode(found[2] + "=" * (-len(found[2]) % 4)))
        if claims["issuer"] != issuer:
            return None
        # A scope of a release that is newer or older than this one counts for nothing.
        return Caller(
            tenant=claims["tenant"],
            scopes=frozenset(scope for scope in KeyScope if scope in claims["scopes"]),
            rights=Rights(priorities=frozenset(one for one in Priority if one in claims["priorities"])),
            name=claims["name"],
        )

    def read(self, cookie: str, *, now_ms: int) -> str | None:
        """The id of the key; None when the gateway never made the cookie, or it is over."""
        found = _COOKIE.fullmatch(cookie)
        if found is None or not hmac.compare_digest(self._sign(found[1]), found[4]):
            return None
        return found[2] if now_ms < int(found[3]) * 1000 else None

    def _sign(self, text: str) -> str:
        return hmac.digest(self.secret, text.encode(), "sha256").hex()


def new_visit() -> str:
    """The cookie of a browser without a session."""
    return secrets.token_urlsafe(32)


def form_token(cookie: str) -> str:
    """What every form holds that changes something: another site cannot know it, as it cannot read the cookie."""
    return hmac.digest(cookie.encode(), _FORM_PURPOSE, "sha256").hex()


def is_form_token(text: str, cookie: str) -> bool:
    """Whether a form was made for the browser with this cookie."""
    return hmac.compare_digest(text.encode(), form_token(cookie).encode())
