"""An OpenID Connect issuer on a loopback port, with real keys; it signs whatever a test asks for.

People log in there by authorization code with PKCE, as `alice`, without a password.
"""

import base64
import hashlib
import json
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fluxpool_gateway.settings import OidcSettings

AUDIENCE = "fluxpool"
CLIENT = "fluxpool-page"
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def public_jwk(key: PrivateKey, key_id: str | None, algorithm: str, **more: Any) -> dict[str, Any]:
    """The key as a JWK set lists it; `more` are further members, or others in place of these."""
    document: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key()))
    return document | {"use": "sig", "alg": algorithm} | ({} if key_id is None else {"kid": key_id}) | more


@dataclass(slots=True)
class Issuer:
    """What it answers may be changed at any time."""

    url: str = ""
    host: str = ""
    """Name of the loopback address in its own; with `localhost` it is another site than a gateway at 127.0.0.1."""
    key: PrivateKey = field(default_factory=rsa_key)
    keys: list[Any] = field(default_factory=list)
    """Of the JWK set; at first the one above, called `first`."""
    discovery: dict[str, Any] = field(default_factory=dict)
    """Members in place of its own."""
    status: int = 200
    body: bytes | None = None
    """In place of the JWK set."""
    asked: list[str] = field(default_factory=list)
    """The paths of all requests."""
    client_secret: str | None = None
    """Of the client `CLIENT`, which people log in with; None for a public one."""
    login: dict[str, Any] = field(default_factory=dict)
    """Claims of those who log in, in place of the usual ones."""
    id_claims: dict[str, Any] = field(default_factory=dict)
    """Claims of their ID token, in place of its own."""
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)
    """What was asked for, by the code that answers it."""

    def __post_init__(self) -> None:
        self.keys.append(public_jwk(self.key, "first", "RS256"))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a good token; a change to `...` leaves one out."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice",
            "iat": now,
            "exp": now + 600,
            "tenant": "acme",
            "scope": "openid fluxpool:submit fluxpool:read",
        }
        return {name: value for name, value in (claims | changes).items() if value is not ...}

    def token(
        self, *, key: Any = None, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """A token of its key with these claims."""
        return jwt.encode(
            self.claims(**changes), key or self.key, algorithm, headers={"kid": "first"} if headers is None else headers
        )

    def settings(self, **changes: Any) -> OidcSettings:
        return OidcSettings(**{"issuer": self.url, "audience": AUDIENCE, **changes})

    async def approve(self, address: str) -> str:
        """Log in as a person does who is sent there; returns the address that the browser is sent back to."""
        async with httpx.AsyncClient() as browser:
            shown = await browser.get(address)
            assert shown.status_code == 200, shown.text
            answer = await browser.post(address)
            assert answer.status_code == 303, answer.text
            return answer.headers["location"]

    async def _authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        required = {"response_type": "code", "client_id": CLIENT, "code_challenge_method": "S256"}
        missing = {"state", "nonce", "code_challenge", "redirect_uri"} - query.keys()
        if missing or "openid" not in query.get("scope", "") or not required.items() <= query.items():
            return web.Response(status=400, text=f"not a request to log in: {query}")
        if request.method == "GET":
            form = '<!doctype html><title>Issuer</title><form method="post"><button>Log in as alice</button></form>'
            return web.Response(text=form, content_type="text/html")
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        back = urlencode({"code": code, "state": query["state"], "iss": self.url})
        raise web.HTTPSeeOther(f"{query['redirect_uri']}?{back}")

    async def _redeem(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        form = await request.post()
        if self.client_secret is not None:
            proof = base64.b64encode(f"{CLIENT}:{quote(self.client_secret, safe='')}".encode()).decode()
            if request.headers.get("authorization") != f"Basic {proof}":
                return web.json_response({"error": "invalid_client"}, status=401)
        wanted = self._codes.pop(str(form["code"]), None)
        digest = hashlib.sha256(str(form["code_verifier"]).encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if (
            wanted is None
            or wanted["redirect_uri"] != form["redirect_uri"]
            or wanted["code_challenge"] != challenge
            or (form["grant_type"], form["client_id"]) != ("authorization_code", CLIENT)
        ):
            return web.json_response({"error": "invalid_grant", "error_description": "no such code"}, status=400)
        identity = {"aud": CLIENT, "nonce": wanted["nonce"], "tenant": ..., "scope": ..., **self.id_claims}
        return web.json_response(
            {"access_token": self.token(**self.login), "id_token": self.token(**identity), "token_type": "Bearer"}
        )

    async def _describe(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        document = {
            "issuer": self.url,
            "jwks_uri": f"{self.url}/keys",
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
        } | self.discovery
        return web.json_response(document, status=self.status)

    async def _list(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
        return web.Response(body=body, status=self.status, content_type="application/json")

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Issuer"]:
        """Serve it on a free port, which sets its address."""
        application = web.Application()
        application.router.add_get("/.well-known/openid-configuration", self._describe)
        application.router.add_get("/keys", self._list)
        application.router.add_get("/authorize", self._authorize)
        application.router.add_post("/authorize", self._authorize)
        application.router.add_post("/token", self._redeem)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http{'' if tls is None else 's'}://{self.host or host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()
