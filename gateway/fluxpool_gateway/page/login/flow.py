"""A log in that is under way at an issuer: what the browser keeps meanwhile, and the addresses it is sent to. Pure.

Authorization code (RFC 6749) with PKCE (RFC 7636), a state that only this browser knows, and a nonce that the ID token
has to repeat (OpenID Connect Core 3.1.2.1).
"""

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Self
from urllib.parse import urlencode, urlsplit

FLOW_SECONDS: Final = 600
"""Within which people log in at the issuer."""
_PURPOSE: Final = b"fluxpool log in to the page by an issuer"
_COOKIE: Final = re.compile(r"([A-Za-z0-9_-]{1,3000})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFlow:
    """One log in of one browser."""

    state: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    nonce: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    verifier: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    """Of PKCE: proves that who redeems the code is who began."""
    following: str = ""
    """Path of the page to go on with."""
    until_seconds: int

    def pack(self, secret: bytes) -> str:
        """As a cookie."""
        text = base64.urlsafe_b64encode(json.dumps(asdict(self)).encode()).rstrip(b"=").decode()
        return f"{text}.{_sign(text, secret)}"

    @classmethod
    def unpack(cls, cookie: str, secret: bytes, *, now_seconds: float) -> Self | None:
        """From a cookie; None when the gateway never made it, or it is over."""
        found = _COOKIE.fullmatch(cookie)
        if found is None or not hmac.compare_digest(_sign(found[1], secret), found[2]):
            return None
        flow = cls(**json.loads(base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4))))
        return flow if now_seconds < flow.until_seconds else None

    def challenge(self) -> str:
        """Of PKCE, by the method S256."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def authorization_url(self, endpoint: str, *, client_id: str, redirect_uri: str, scope: str, audience: str) -> str:
        """Where the browser is sent to log in."""
        query = {
            "response_type": "code",
            "client_id": client_id,
            "redirect_uri": redirect_uri,
            "scope": scope,
            "state": self.state,
            "nonce": self.nonce,
            "code_challenge": self.challenge(),
            "code_challenge_method": "S256",
            # Some issuers make tokens for an API only where it is named; others ignore it (RFC 6749 section 3.1).
            "audience": audience,
        }
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(query)}"


def explain_refusal(error: str, description: str) -> str:
    """Why an issuer refused, with the setting to look at."""
    remedies: Mapping[str, str] = {
        "access_denied": "ask there for access to Fluxpool",
        "invalid_scope": "correct FLUXPOOL_OIDC_LOGIN_SCOPE",
        "invalid_client": "correct FLUXPOOL_OIDC_CLIENT_ID and FLUXPOOL_OIDC_CLIENT_SECRET",
        "unauthorized_client": "allow the client FLUXPOOL_OIDC_CLIENT_ID the authorization code flow there",
        "unsupported_response_type": "allow the client FLUXPOOL_OIDC_CLIENT_ID the authorization code flow there",
        "invalid_grant": "log in again; if that repeats, register the address of ui/login/callback there, as "
        "FLUXPOOL_PUBLIC_URL has it",
    }
    reason = f"{error[:100]}: {description[:300]}" if description else error[:100]
    return f"the issuer refused ({reason}); {remedies.get(error, 'log in again')}"


def _sign(text: str, secret: bytes) -> str:
    return hmac.digest(hmac.digest(secret, _PURPOSE, "sha256"), text.encode(), "sha256").hex()
