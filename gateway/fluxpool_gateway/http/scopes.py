"""The scope that a route needs: checked before it runs, and declared in the OpenAPI document.

Who calls was decided before any route was chosen (`GatewayApplication`), so that no route can be forgotten.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

from fastapi import Depends, Request

from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller

CALLER_KEY: Final = "fluxpool.caller"
"""Where the ASGI scope of an admitted request has its caller."""
ADMIT_AGAIN: Final = "fluxpool.admit_again"
"""Where the ASGI scope has what says who calls now: a key may be revoked while its long response is sent."""
SECURITY_SCHEME: Final = "apiKey"
SECURITY_PROBLEMS: Final = {
    401: "No API key, or one that is not valid.",
    403: "The API key does not have the scope, or does not allow a value.",
}


async def _caller(request: Request) -> Caller:
    caller = request.scope[CALLER_KEY]
    assert isinstance(caller, Caller)  # noqa: S101 - set for every path but the open ones
    return caller


WithCaller = Annotated[Caller, Depends(_caller)]


def requires(*scopes: KeyScope, checks: Sequence[Callable[..., Awaitable[None]]] = ()) -> dict[str, Any]:
    """Arguments of a route that needs these scopes; `checks` are made after that of the scopes."""

    async def check(caller: WithCaller) -> None:
        for scope in scopes:
            caller.require(scope)

    return {
        "dependencies": [*map(Depends, (check, *checks))],
        "openapi_extra": {"security": [{SECURITY_SCHEME: [*scopes]}]},
    }
