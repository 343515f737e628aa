"""HTTP: the server, its routes, the submission of tasks, problem documents, and the connection's protocol."""

from fluxpool_gateway.http.generation_request import (
    GenerationRequest,
    Priority,
    check_idempotency_key,
    parse_request,
    render_task,
)
from fluxpool_gateway.http.problem import ProblemError

__all__ = ["GenerationRequest", "Priority", "ProblemError", "check_idempotency_key", "parse_request", "render_task"]
