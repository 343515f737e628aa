"""How a session begins and ends."""

from fluxpool_gateway.page.login.routes import router

__all__ = ["router"]
