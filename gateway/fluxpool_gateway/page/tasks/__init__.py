"""Tasks as people see them: `card` makes words of one, `reading` finds them, `routes` shows live tasks and one task."""

from fluxpool_gateway.page.tasks.routes import router

__all__ = ["router"]
