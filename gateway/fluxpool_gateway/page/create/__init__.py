"""The view to create images: `form` is what its fields mean, `offer` what a key may choose; `routes` shows it."""

from fluxpool_gateway.page.create.routes import router

__all__ = ["router"]
