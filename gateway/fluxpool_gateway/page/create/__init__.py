"""The view to create images: `form` is what its fields mean, `routes` shows and submits it."""

from fluxpool_gateway.page.create.routes import router

__all__ = ["router"]
