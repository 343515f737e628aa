"""The session of a browser: a cookie that says whose key was presented, and until when; and the tokens of forms. Pure.

The cookie holds the key's public id, never the key, with an HMAC by a secret that every process and replica of a
gateway has from its key store. So no process keeps sessions, and any of them reads those of the others. A session ends
with its time, and with its key: the gate looks at the key's record for each request.
"""

import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Final, Self

from fluxpool_gateway.identity.api_key import KEY_ID_PATTERN

SESSION_SECONDS: Final = 12 * 60 * 60
"""A working day: a browser that is left open asks for the key again tomorrow."""
_PURPOSE: Final = b"fluxpool session of the page"
_FORM_PURPOSE: Final = b"fluxpool form of the page"
_COOKIE: Final = re.compile(rf"(v1\.({KEY_ID_PATTERN})\.([0-9]{{1,12}})\.[A-Za-z0-9_-]{{22}})\.([0-9a-f]{{64}})")


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
