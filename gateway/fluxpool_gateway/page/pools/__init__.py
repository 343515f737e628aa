"""The pools on the page: who serves the tasks, what the operator decided and why, and the last hour as small plots."""

from fluxpool_gateway.page.pools.routes import router

__all__ = ["router"]
