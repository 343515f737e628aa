"""The HTTP application of one server process: which route is answered by what, and how it starts and stops.

FastAPI serves everything but the hot route, which is handed to `Submission` before any middleware sees it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from fluxpool_contract.problems import FieldProblem, cap, summarize
from fluxpool_gateway.barrier import ProjectionBarrier
from fluxpool_gateway.exchange import EXCHANGE_ID_HEADER, exchange_id, find_header
from fluxpool_gateway.openapi import add_submission
from fluxpool_gateway.problem import MEDIA_TYPE, Problem, ProblemCode, ProblemError
from fluxpool_gateway.projected_records import task_topics
from fluxpool_gateway.readiness import BrokerWatch
from fluxpool_gateway.recent_tasks import RecentTasks
from fluxpool_gateway.routes import Services, router
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.submission import PATH, Scope, Send, Submission
from fluxpool_gateway.task_lookup import AsyncTaskStore, TaskLookup, TaskTopicEnds
from fluxpool_gateway.task_producer import TaskProducer
from fluxpool_transport.kafka_admin import KafkaAdmin
from fluxpool_transport.kafka_clients import librdkafka_options
from fluxpool_transport.object_store import open_object_store
from fluxpool_transport.partition_choice_watch import PartitionChooser

CLIENT_ID: Final = "fluxpool-gateway"

logger = structlog.stdlib.get_logger(__name__)


class GatewayApplication(FastAPI):
    """FastAPI with the hot route in front of it."""

    submission: Submission

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection or exchange."""
        if scope["type"] == "http":
            if scope["path"] == PATH:
                await self.submission(scope, receive, send)
                return
            send = _with_exchange_id(scope, send)
        await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, the hot route included."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            self.openapi_schema = add_submission(document)
        return self.openapi_schema


def build_application(settings: GatewaySettings) -> GatewayApplication:
    """The application; connections are opened when it starts."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with _running(app, settings):
            yield

    app = GatewayApplication(
        title="Fluxpool",
        version="1",
        description="Text to image through a durable queue: submit, poll, fetch.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(router)
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(Exception, _on_failure)
    return app


@asynccontextmanager
async def _running(app: GatewayApplication, settings: GatewaySettings) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    objects = open_object_store(settings.storage)
    admin = await KafkaAdmin.open(settings.kafka, client_id=CLIENT_ID)
    producer = TaskProducer(
        librdkafka_options(settings.kafka, client_id=CLIENT_ID), deadline_seconds=settings.produce_deadline_seconds
    )
    store = AsyncTaskStore(TaskStoreReader(settings.database_file))
    ends = TaskTopicEnds(admin, settings.topics)
    recent = RecentTasks(loop.time)
    chooser = PartitionChooser(settings.kafka, settings.groups())
    watch = BrokerWatch(producer, task_topics(settings.topics))
    producer.start()
    try:
        async with asyncio.TaskGroup() as group:
            barrier = ProjectionBarrier(group, ends=ends.read, projected=store.positions)
            app.state.services = Services(
                lookup=TaskLookup(store=store, recent=recent, barrier=barrier),
                store=store,
                watch=watch,
                objects=objects,
                public_url=settings.public_url,
            )
            app.submission = Submission(
                producer=producer,
                chooser=chooser,
                partition_counts=watch.partition_count,
                recent=recent,
                stored_digest=store.digest,
                topics=settings.topics,
                public_url=settings.public_url,
            )
            background = [group.create_task(watch.run()), group.create_task(chooser.run())]
            yield
            for task in background:
                task.cancel()
            await producer.stop()
    finally:
        ends.close()
        store.close()


def _with_exchange_id(scope: Scope, send: Send) -> Send:
    """A `send` that adds the `x-request-id`; keeps it in the scope for problem documents."""
    exchange = exchange_id(find_header(scope["headers"], EXCHANGE_ID_HEADER))
    scope["fluxpool.exchange_id"] = exchange

    async def send_with_id(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (EXCHANGE_ID_HEADER, exchange.encode())]
        await send(message)

    return send_with_id


def _answer(request: Request, problem: Problem) -> Response:
    body = problem.render(exchange_id=request.scope["fluxpool.exchange_id"], instance=request.url.path)
    return Response(body, status_code=problem.status, media_type=MEDIA_TYPE, headers=dict(problem.headers))


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101 - it is registered for this class
    return _answer(request, error.problem)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for this class
    status = HTTPStatus(error.status_code)
    code = {
        HTTPStatus.NOT_FOUND: ProblemCode.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED: ProblemCode.METHOD_NOT_ALLOWED,
    }.get(status, ProblemCode.INVALID_REQUEST)
    detail = f"{request.method} {request.url.path}: {error.detail}; /openapi.json lists what there is"
    return _answer(
        request, Problem(status=status, code=code, detail=detail, headers=list((error.headers or {}).items()))
    )


async def _on_invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for this class
    problems = cap([FieldProblem(".".join(map(str, item["loc"][1:])), item["msg"]) for item in error.errors()])
    return _answer(
        request,
        Problem(
            status=HTTPStatus.UNPROCESSABLE_ENTITY,
            code=ProblemCode.INVALID_REQUEST,
            detail=summarize(problems),
            fields=problems,
        ),
    )


async def _on_failure(request: Request, error: Exception) -> Response:
    # The server logs the traceback; this line ties it to what the client was told.
    logger.error("request_failed", exchange_id=request.scope["fluxpool.exchange_id"], error_type=type(error).__name__)
    return _answer(
        request,
        Problem(
            status=HTTPStatus.INTERNAL_SERVER_ERROR,
            code=ProblemCode.INTERNAL,
            detail="the gateway failed on this request; its log says why, under the same x-request-id",
        ),
    )
