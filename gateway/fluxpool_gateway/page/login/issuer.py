"""Asks the issuer for the tokens of somebody who logged in there, and tells from them who it is and what they may do.

PyJWT checks the tokens, by `identity.tokens`; none is kept.
"""

import hmac
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fluxpool_gateway.http.problem import ProblemCode, ProblemError, unavailable
from fluxpool_gateway.identity.caller import Caller, unauthorized
from fluxpool_gateway.page.login.flow import LoginFlow, explain_refusal

if TYPE_CHECKING:
    # Not for gateways without: HTTP client and PyJWT take a tenth of the start.
    from fluxpool_gateway.identity.tokens import Tokens

MAX_ANSWER_BYTES: Final = 256 * 1024


class IssuerLogin:
    """Log in by the issuer whose tokens the gateway accepts."""

    def __init__(self, tokens: "Tokens", client_id: str) -> None:
        """`client_id` is the page's at the issuer."""
        self._tokens = tokens
        self._settings = tokens.settings
        self._client_id = client_id

    async def begin(self, flow: LoginFlow, *, redirect_uri: str) -> str:
        """The address to send the browser to; raises `ProblemError` (503)."""
        return flow.authorization_url(
            await self._endpoint("authorization_endpoint"),
            client_id=self._client_id,
            redirect_uri=redirect_uri,
            scope=self._settings.login_scope,
            audience=self._settings.audience or "",
        )

    async def finish(self, code: str, flow: LoginFlow, *, redirect_uri: str) -> Caller:
        """Who logged in; raises `ProblemError` (401, 403, 503)."""
        answer = await self._redeem(code, flow, redirect_uri=redirect_uri)
        id_token, access_token = answer.get("id_token"), answer.get("access_token")
        if not isinstance(id_token, str):
            raise unauthorized("the issuer gave no ID token; put openid into FLUXPOOL_OIDC_LOGIN_SCOPE")
        identity = await self._tokens.claims_of(id_token.encode(), audience=self._client_id)
        nonce = identity.get("nonce")
        if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), flow.nonce.encode()):
            raise unauthorized("the ID token is not of this log in; log in again")
        if identity.get("azp", self._client_id) != self._client_id:
            raise unauthorized("the ID token was made for another client than FLUXPOOL_OIDC_CLIENT_ID")
        if self._settings.audience == self._client_id:
            # Then it is a token for this gateway itself, also where the access token is opaque.
            return self._caller_of(identity)
        claims = await self._claims_of_access(access_token)
        if claims["sub"] != identity["sub"]:
            raise unauthorized("the tokens of the issuer are of different people; log in again")
        return self._caller_of(claims)

    def _caller_of(self, claims: Mapping[str, Any]) -> Caller:
        from fluxpool_gateway.identity.tokens import caller_of  # noqa: PLC0415

        try:
            return caller_of(claims, self._settings)
        except ProblemError as problem:
            detail = f"{problem.detail}, or name another one by FLUXPOOL_OIDC_TENANT_CLAIM"
            raise ProblemError(problem.code, detail) from problem

    async def _claims_of_access(self, access_token: object) -> Mapping[str, Any]:
        try:
            if not isinstance(access_token, str):
                raise unauthorized("there is none")
            return await self._tokens.claims_of(access_token.encode())
        except ProblemError as problem:
            if problem.code is not ProblemCode.UNAUTHORIZED:
                raise
            raise unauthorized(
                f"the issuer's access token is not accepted ({problem.detail}); have it issue JWTs for the audience "
                f"{self._settings.audience}, or set FLUXPOOL_OIDC_AUDIENCE to the client's id to take the ID token"
            ) from problem

    async def _redeem(self, code: str, flow: LoginFlow, *, redirect_uri: str) -> Mapping[str, Any]:
        import httpx  # noqa: PLC0415

        url = await self._endpoint("token_endpoint")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": flow.verifier,
            "client_id": self._client_id,
        }
        login: httpx.BasicAuth | None = None
        if self._settings.client_secret is not None:
            secret = self._settings.client_secret.get_secret_value()
            offered = (await self._describe()).get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if "client_secret_basic" in offered:
                # Percent-encoded first (RFC 6749 section 2.3.1).
                login = httpx.BasicAuth(quote(self._client_id, safe=""), quote(secret, safe=""))
            else:
                form["client_secret"] = secret
        try:
            async with await self._tokens.keys.client() as client:
                headers = {"accept": "application/json"}
                response = await client.post(url, data=form, auth=login, headers=headers)  # type: ignore[arg-type]
        except (httpx.HTTPError, OSError) as error:
            raise self._away(f"{type(error).__name__}: {error}") from error
        answer = _read(response.content)
        if response.status_code != HTTPStatus.OK:
            if response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise self._away(f"{url} answered {response.status_code}")
            error_code = str(answer.get("error") or f"status {response.status_code}")
            raise unauthorized(explain_refusal(error_code, str(answer.get("error_description") or "")))
        return answer

    async def _endpoint(self, name: str) -> str:
        url = (await self._describe()).get(name)
        issuer = self._settings.issuer or ""
        if not isinstance(url, str) or not url.startswith(
            ("https://", "http://") if issuer[:5] == "http:" else "https://"
        ):
            raise self._away(f"its discovery document has no {name} that begins with https://")
        return url

    async def _describe(self) -> Mapping[str, Any]:
        from fluxpool_gateway.identity.issuer_keys import IssuerUnavailableError  # noqa: PLC0415

        try:
            return await self._tokens.keys.describe()
        except IssuerUnavailableError as error:
            raise self._away(str(error)) from error

    def _away(self, reason: str) -> ProblemError:
        return unavailable(
            ProblemCode.IDENTITY_UNAVAILABLE,
            f"the issuer {self._settings.issuer} cannot be asked ({reason}); check FLUXPOOL_OIDC_ISSUER, and "
            "FLUXPOOL_OIDC_CA_FILE for its certificate; an API key works meanwhile",
        )


def _read(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content) if len(content) <= MAX_ANSWER_BYTES else {}
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
