"""The ASGI application of one server process: routing, startup and shutdown.

FastAPI serves every route (`http.routes`) but the hot one, which `Submission` answers before any middleware runs.
`wiring` builds what the routes use.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from fluxpool_contract.asyncapi import render_asyncapi
from fluxpool_gateway.dead_letters import replay_routes as dead_letter_replay_routes
from fluxpool_gateway.dead_letters import routes as dead_letter_routes
from fluxpool_gateway.feedback import routes as feedback_routes
from fluxpool_gateway.feedback import stars
from fluxpool_gateway.http import change_routes, key_routes, openai, task_routes
from fluxpool_gateway.http.batch import batch_route
from fluxpool_gateway.http.problem import MEDIA_TYPE, ProblemDocument, ProblemError
from fluxpool_gateway.http.problem_handlers import add_problem_handlers
from fluxpool_gateway.http.request_context import (
    ASKED_BY_HEAD,
    CORRELATION_ID_HEADER,
    METRICS,
    PATH,
    STOPPING,
    Receive,
    Scope,
    Send,
    correlation_id_of,
    find_authorization,
    find_header,
    send_problem,
)
from fluxpool_gateway.http.routes import router
from fluxpool_gateway.http.scopes import ADMIT_AGAIN, CALLER_KEY, SECURITY_SCHEME
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.identity.gate import Gate
from fluxpool_gateway.images import routes as image_routes
from fluxpool_gateway.live import routes as live_routes
from fluxpool_gateway.metrics import exposition
from fluxpool_gateway.metrics.gateway_metrics import NO_ROUTE, GatewayMetrics
from fluxpool_gateway.models import routes as model_routes
from fluxpool_gateway.page import PAGE_ROUTERS
from fluxpool_gateway.page.door import PageDoor, is_page
from fluxpool_gateway.queue import routes as queue_routes
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskStatus
from fluxpool_gateway.usage import routes as usage_routes
from fluxpool_gateway.webhooks import routes as webhook_routes
from fluxpool_gateway.wiring import open_gate, running_parts
from fluxpool_transport.partitioner import SharedSends

OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/asyncapi.json"})
"""Probes, scrapers and the descriptions of the API and the topics; every other path needs a key, also one that does not
exist."""
_SECURITY_SCHEMES: Final = {
    SECURITY_SCHEME: {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, fp_<id>_<secret>, or a token of the gateway's OpenID issuer, with the scope.",
    }
}
_ROUTERS: Final = (
    router,
    task_routes.router,
    batch_route.router,
    change_routes.router,
    key_routes.router,
    image_routes.router,
    live_routes.router,
    queue_routes.router,
    usage_routes.router,
    # Before the routes of one dead letter, whose ids have a slash.
    dead_letter_replay_routes.router,
    dead_letter_routes.router,
    webhook_routes.router,
    feedback_routes.router,
    stars.router,
    model_routes.router,
    openai.router,
    exposition.router,
    *PAGE_ROUTERS,
)
_PROBLEM_SCHEMA: Final = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}

logger = structlog.stdlib.get_logger(__name__)


class GatewayApplication(FastAPI):
    """FastAPI with the hot route in front of it."""

    submission: Submission
    gate: Gate
    page: PageDoor
    metrics: GatewayMetrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            # Answered as GET (RFC 9110 section 9.3.2); the server omits the body.
            scope = {**scope, "method": "GET", ASKED_BY_HEAD: True}

        submission_route = _submission_route(method, scope["path"])
        if submission_route is not None:
            status = await self.submission(scope, receive, send)
            if status is not None:
                self.metrics.count_request(method, submission_route, status)
            return

        async def counted_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                # The path of the route as it was declared: paths themselves are without number.
                route = scope.get("route")
                self.metrics.count_request(method, NO_ROUTE if route is None else str(route.path), message["status"])
            await send(message)

        await self._serve(scope, receive, counted_send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain_send, send = send, _with_correlation_id(scope, send)
        if is_page(scope):
            answer = await self.page.admit(scope, self.gate)
            if answer is not None:
                await answer(scope, receive, send)
                return
        elif scope["path"] not in OPEN_PATHS:
            try:
                authorization = find_authorization(scope["headers"])
                scope[CALLER_KEY] = await self.gate.admit(authorization)
                scope[ADMIT_AGAIN] = partial(self.gate.admit, authorization)
            except ProblemError as problem:
                correlation_id = scope["fluxpool.correlation_id"]
                self.metrics.count_refusal(problem.code)
                await send_problem(plain_send, problem, correlation_id=correlation_id, instance=scope["path"])
                return
        try:
            await super().__call__(scope, receive, send)
        except Exception as error:
            # Starlette has answered it (`_on_failure`) and raises it again; uvicorn would only close the connection.
            correlation_id = scope["fluxpool.correlation_id"]
            logger.exception("request_failed", correlation_id=correlation_id, error_type=type(error).__name__)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document; FastAPI declares problems as `application/json`, here they get their media type."""
        document = super().openapi()
        document["components"]["securitySchemes"] = _SECURITY_SCHEMES
        # No route shows a deleted task.
        document["components"]["schemas"][TaskStatus.__name__]["enum"] = SHOWN_STATUSES
        for operation in (operation for path in document["paths"].values() for operation in path.values()):
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema") == _PROBLEM_SCHEMA:
                    content[MEDIA_TYPE] = content.pop("application/json")
        return document


def _submission_route(method: str, path: str) -> str | None:
    """The hot route as it was declared; None for any other request."""
    if method == "POST":
        return PATH if path == PATH else None
    is_put = method == "PUT" and path.startswith(PATH + "/") and path.count("/") == PATH.count("/") + 1
    return f"{PATH}/{{request_id}}" if is_put else None


class BackgroundPartError(Exception):
    """A part that runs in the background ended; the application's shutdown raises it, so that the process fails."""


def build_application(
    settings: GatewaySettings,
    *,
    on_failure: Callable[[], None],
    metrics: GatewayMetrics | None = None,
    shared_sends: SharedSends | None = None,
) -> GatewayApplication:
    """The application; connections are opened when it starts.

    `metrics` are of this process alone when absent; `shared_sends` are absent where there is one process.
    `on_failure` is called when a part that runs in the background has failed, without which requests go wrong. It is
    to end the server as SIGTERM does; the lifespan then ends with `BackgroundPartError`.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        failed = False
        stopping = asyncio.Event()

        def fail() -> None:
            nonlocal failed
            failed = True
            on_failure()

        async with running_parts(
            settings,
            gate=app.gate,
            metrics=app.metrics,
            shared_sends=shared_sends,
            on_failure=fail,
            stopping=stopping,
        ) as parts:
            app.state.services, app.submission = parts.services, parts.submission
            # The connections get it (`http.protocol`): the lifespan ends only when all of them are closed.
            yield {STOPPING: stopping, METRICS: app.metrics}
        if failed:
            raise BackgroundPartError("a background task ended; the log has its name and the reason")

    app = GatewayApplication(
        title="Fluxpool",
        version="1",
        description="Text to image through a durable queue: submit, poll, fetch.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.gate = open_gate(settings)
    app.page = PageDoor(settings.public_url)
    app.metrics = metrics or GatewayMetrics()
    for routes in _ROUTERS:
        app.include_router(routes)

    @app.get("/asyncapi.json", include_in_schema=False)
    async def get_asyncapi() -> JSONResponse:
        return JSONResponse(render_asyncapi(settings.topics, settings.groups()))

    add_problem_handlers(app)
    return app


def _with_correlation_id(scope: Scope, send: Send) -> Send:
    """A `send` that adds the `x-request-id` header; stores the id in the scope for problem documents."""
    correlation_id = correlation_id_of(find_header(scope["headers"], CORRELATION_ID_HEADER))
    scope["fluxpool.correlation_id"] = correlation_id

    async def send_with_id(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (CORRELATION_ID_HEADER, correlation_id.encode())]
        await send(message)

    return send_with_id
