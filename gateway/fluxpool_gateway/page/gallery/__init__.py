"""The gallery: finished tasks with their images."""

from fluxpool_gateway.page.gallery.routes import router

__all__ = ["router"]
