"""Webhooks and API keys on the page. All of it is done by the API's routes, with the scopes that these need."""

from typing import Final

from fluxpool_gateway.page.access import key_routes, webhook_routes

ROUTERS: Final = (webhook_routes.router, key_routes.router)

__all__ = ["ROUTERS"]
