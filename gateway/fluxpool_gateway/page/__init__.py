"""The web page at `/ui/`: what people see of their tasks, made of the same parts that the API's routes are made of.

`door` says who calls, `rendering` makes HTML of `templates/`, `assets` serves `static/`; the routes are by view.
"""

from typing import Final

from fluxpool_gateway.page import (
    assets,
    bulk_routes,
    create_routes,
    list_routes,
    login_routes,
    task_routes,
)

PAGE_ROUTERS: Final = (
    assets.router,
    login_routes.router,
    create_routes.router,
    task_routes.router,
    list_routes.router,
    bulk_routes.router,
)
"""In this order: a route with a parameter comes after those that it would hide."""
