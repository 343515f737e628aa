"""How a session begins and ends: by an API key (`routes`), or at an OpenID Connect issuer (`issuer_routes`)."""

from fluxpool_gateway.page.login import issuer_routes, routes

ROUTERS = (routes.router, issuer_routes.router)

__all__ = ["ROUTERS"]
