"""Dead letters on the page: by cause, one with its record, edited and replayed by way of a dry run, or discarded.

All of it is done by the routes in `fluxpool_gateway.dead_letters`.
"""

from typing import Final

from fluxpool_gateway.page.dead_letters import discard_routes, reading_routes, replay_routes

ROUTERS: Final = (replay_routes.router, discard_routes.router, reading_routes.router)

__all__ = ["ROUTERS"]
