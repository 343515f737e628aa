"""The web page at `/ui/`: what people see of their tasks, made of the same parts that the API's routes are made of.

`door` says who calls, `rendering` makes HTML of `templates/`, `assets` serves `static/`; each view has a package, whose
face has its routes.
"""

from typing import Final

from fluxpool_gateway.page import access, assets, create, dead_letters, gallery, judging, login, pools, queue, tasks

PAGE_ROUTERS: Final = (
    assets.router,
    *login.ROUTERS,
    create.router,
    tasks.router,
    gallery.router,
    *judging.ROUTERS,
    *queue.ROUTERS,
    pools.router,
    *dead_letters.ROUTERS,
    *access.ROUTERS,
)
"""In this order: a route with a parameter comes after those that it would hide."""
