"""An OpenID Connect issuer on a loopback port, with real keys; it signs whatever a test asks for."""

import json
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fluxpool_gateway.settings import OidcSettings

AUDIENCE = "fluxpool"
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

    async def _describe(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        document = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.discovery
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
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http{'' if tls is None else 's'}://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()
