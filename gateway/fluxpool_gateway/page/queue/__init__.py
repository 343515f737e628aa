"""The queue: `routes` lists lanes and tasks, `bulk` cancels or retries many of them."""

from fluxpool_gateway.page.queue import bulk, routes

ROUTERS = (routes.router, bulk.router)

__all__ = ["ROUTERS"]
