"""The ASGI application of one server process: routing, background parts, startup and shutdown.

FastAPI serves every route (`http.routes`) but the hot one, which `Submission` answers before any middleware runs.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from fluxpool_contract.asyncapi import render_asyncapi
from fluxpool_contract.messages import work_of_task
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.dead_letters import replay_routes as dead_letter_replay_routes
from fluxpool_gateway.dead_letters import routes as dead_letter_routes
from fluxpool_gateway.dead_letters.replaying import ReplayRunner
from fluxpool_gateway.dead_letters.service import DeadLetters
from fluxpool_gateway.dead_letters.topic import KafkaDeadLetterTopic
from fluxpool_gateway.feedback import routes as feedback_routes
from fluxpool_gateway.feedback import stars
from fluxpool_gateway.feedback.writing import FeedbackWriter
from fluxpool_gateway.http import change_routes, key_routes, openai, task_routes
from fluxpool_gateway.http.batch import batch_route
from fluxpool_gateway.http.problem import MEDIA_TYPE, ProblemDocument, ProblemError
from fluxpool_gateway.http.problem_handlers import add_problem_handlers
from fluxpool_gateway.http.readiness import BrokerWatch
from fluxpool_gateway.http.request_context import (
    ASKED_BY_HEAD,
    CORRELATION_ID_HEADER,
    METRICS,
    PATH,
    STOPPING,
    Receive,
    Send,
    correlation_id_of,
    find_authorization,
    find_header,
    send_problem,
)
from fluxpool_gateway.http.routes import Services, router
from fluxpool_gateway.http.scopes import ADMIT_AGAIN, CALLER_KEY, SECURITY_SCHEME
from fluxpool_gateway.http.submission import Scope, Submission
from fluxpool_gateway.identity.gate import Gate, KeyGate, OpenGate
from fluxpool_gateway.images import routes as image_routes
from fluxpool_gateway.live import routes as live_routes
from fluxpool_gateway.live.preview_reader import open_preview_reader
from fluxpool_gateway.live.readers import EventReaders
from fluxpool_gateway.metrics import exposition
from fluxpool_gateway.metrics.gateway_metrics import NO_ROUTE, GatewayMetrics
from fluxpool_gateway.models import routes as model_routes
from fluxpool_gateway.page import PAGE_ROUTERS
from fluxpool_gateway.page.door import PageDoor, is_page
from fluxpool_gateway.presets.choosing import Presets
from fluxpool_gateway.projection.barrier import ProjectionBarrier
from fluxpool_gateway.projection.projected_records import task_topics
from fluxpool_gateway.queue import routes as queue_routes
from fluxpool_gateway.queue.admission import Admission
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import served_lanes
from fluxpool_gateway.queue.pool_state_reader import PoolStateReader
from fluxpool_gateway.settings import GatewaySettings, OidcSettings
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, TaskStatus
from fluxpool_gateway.stores import (
    open_key_store,
    open_quotas,
    open_replay_jobs,
    open_reservations,
    open_signer,
    open_task_reader,
    open_trust,
    open_webhooks,
)
from fluxpool_gateway.tasks.canceling import Canceling
from fluxpool_gateway.tasks.deleting import Deleting
from fluxpool_gateway.tasks.idempotency import Idempotency, Reservations
from fluxpool_gateway.tasks.lookup import RecentTasks, TaskLookup, TaskTopicEnds
from fluxpool_gateway.tasks.producer import TaskProducer
from fluxpool_gateway.tasks.waiting import StoreWaits, TaskWaits
from fluxpool_gateway.usage import routes as usage_routes
from fluxpool_gateway.webhooks import routes as webhook_routes
from fluxpool_gateway.webhooks.requested.admission import RequestedWebhooks
from fluxpool_transport.kafka import KafkaMetadata, librdkafka_options
from fluxpool_transport.partitioner import LoadAwarePartitioner, SharedSends
from fluxpool_transport.storage import open_object_store

if TYPE_CHECKING:
    from fluxpool_gateway.identity.tokens import Tokens

CLIENT_ID: Final = "fluxpool-gateway"
METADATA_SECONDS: Final = 2.0
"""Longest wait for metadata: `GET` of a task that is not projected yet waits for it."""
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
_PROBLEM_SCHEMA: Final = {"$ref": f"#/components/schemas/{ProblemDocument.__name__}"}

logger = structlog.stdlib.get_logger(__name__)


class GatewayApplication(FastAPI):
    """FastAPI with the hot route in front of it."""

    submission: Submission
    gate: Gate
    page: PageDoor
    metrics: GatewayMetrics
    shared_sends: SharedSends | None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI scope."""
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            # Answered as GET (RFC 9110 section 9.3.2); the server omits the body.
            scope = {**scope, "method": "GET", ASKED_BY_HEAD: True}

        async def counted_send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.metrics.count_request(method, _route_of(scope), message["status"])
            await send(message)

        if _is_submission(method, scope["path"]):
            await self.submission(scope, receive, counted_send)
        else:
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


def _is_submission(method: str, path: str) -> bool:
    if method == "POST":
        return path == PATH
    return method == "PUT" and path.startswith(PATH + "/") and path.count("/") == PATH.count("/") + 1


def _route_of(scope: Scope) -> str:
    """The path of the route as it was declared: paths themselves are without number."""
    if _is_submission(scope["method"], scope["path"]):
        return PATH if scope["path"] == PATH else f"{PATH}/{{request_id}}"
    route = scope.get("route")
    return NO_ROUTE if route is None else str(route.path)


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

        async with _running(app, settings, fail, stopping=stopping):
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
    app.shared_sends = shared_sends
    app.include_router(router)
    app.include_router(task_routes.router)
    app.include_router(batch_route.router)
    app.include_router(change_routes.router)
    app.include_router(key_routes.router)
    app.include_router(image_routes.router)
    app.include_router(live_routes.router)
    app.include_router(queue_routes.router)
    app.include_router(usage_routes.router)
    # Before the routes of one dead letter, whose ids have a slash.
    app.include_router(dead_letter_replay_routes.router)
    app.include_router(dead_letter_routes.router)
    app.include_router(webhook_routes.router)
    app.include_router(feedback_routes.router)
    app.include_router(stars.router)
    app.include_router(model_routes.router)
    app.include_router(openai.router)
    app.include_router(exposition.router)
    for page_router in PAGE_ROUTERS:
        app.include_router(page_router)

    @app.get("/asyncapi.json", include_in_schema=False)
    async def get_asyncapi() -> JSONResponse:
        return JSONResponse(render_asyncapi(settings.topics, settings.groups()))

    add_problem_handlers(app)
    return app


@asynccontextmanager
async def _running(
    app: GatewayApplication, settings: GatewaySettings, on_failure: Callable[[], None], *, stopping: asyncio.Event
) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    objects = open_object_store(settings.storage)
    metadata = KafkaMetadata(settings.kafka, client_id=CLIENT_ID, timeout_seconds=METADATA_SECONDS)
    await metadata.admin()  # unusable credentials end the start
    producer = TaskProducer(
        librdkafka_options(settings.kafka, client_id=CLIENT_ID),
        deadline_seconds=settings.produce_deadline_seconds,
        on_failure=on_failure,
    )
    store = open_task_reader(settings)
    webhooks = open_webhooks(settings)
    reservations = Reservations(open_reservations(settings))
    quotas = open_quotas(settings, store)
    presets = Presets(presets=settings.presets, exploration=settings.preset_exploration)
    ends = TaskTopicEnds(metadata, settings.topics)
    recent = RecentTasks(loop.time)
    lanes = LaneWatch(
        served_lanes(settings.consumer_group, settings.lanes, settings.topics),
        clock=time.monotonic,
        wall_clock=time.time,
    )
    partitioner = LoadAwarePartitioner(
        settings.kafka, settings.groups(), observe=lanes.observe, work_of=work_of_task, shared=app.shared_sends
    )
    pool_states = PoolStateReader(settings.kafka, settings.topics.pools, metadata=metadata, states=lanes.pools)
    own_secret = await app.gate.store.secret() if isinstance(app.gate, KeyGate) else None
    trust = open_trust(settings, own_secret)
    watch = BrokerWatch(metadata, task_topics(settings.topics))
    dead_letters = open_dead_letters(settings, store, app.metrics, trust)
    producer.start()
    try:
        async with asyncio.TaskGroup() as group:
            barrier = ProjectionBarrier(group, ends=ends.read, projected=store.positions)
            idempotency = Idempotency(
                reservations=reservations,
                store=store,
                barrier=barrier.passed,
                deadline_seconds=settings.produce_deadline_seconds,
            )
            app.state.services = Services(
                lookup=TaskLookup(store=store, recent=recent, barrier=barrier),
                store=store,
                watch=watch,
                objects=objects,
                signer=open_signer(settings),
                public_url=settings.public_url,
                waits=TaskWaits(group, versions=store.versions),
                tenant_waits=StoreWaits(group, store.latest_changes),
                canceling=Canceling(producer=producer, topic=settings.topics.control),
                deleting=Deleting(producer=producer, topic=settings.topics.results, objects=objects, trust=trust),
                feedback=FeedbackWriter(
                    producer=producer,
                    topic=settings.topics.feedback,
                    trust=trust,
                    rater_secret=own_secret,
                    metrics=app.metrics,
                ),
                stopping=stopping,
                readers=EventReaders(
                    most=settings.event_streams, most_of_tenant=settings.event_streams_of_tenant, metrics=app.metrics
                ),
                metrics=app.metrics,
                lanes=lanes,
                dead_letters=dead_letters,
                webhooks=webhooks,
                webhook_targets=settings.webhooks,
            )
            app.submission = Submission(
                admit=app.gate.admit,
                producer=producer,
                partitioner=partitioner,
                partition_counts=watch.partition_count,
                recent=recent,
                metrics=app.metrics,
                once=idempotency.once,
                topics=settings.topics,
                qualities=settings.qualities,
                admission=Admission(lanes, count=app.metrics.count_admission),
                presets=presets,
                models_of=lanes.pools.models_of,
                quotas=quotas,
                trust=trust,
                public_url=settings.public_url,
                webhooks=RequestedWebhooks(store=webhooks, targets=settings.webhooks, now_ms=app.state.services.now_ms),
            )
            parts: dict[str, Callable[[], Awaitable[None]]] = {
                "broker_watch": watch.run,
                "partitioner": partitioner.run,
                "pool_states": pool_states.run,
                "pool_history": partial(app.state.services.pool_history.run, partial(queue_routes.sample_pools, lanes)),
                "presets": partial(presets.run, store.read),
                "reservations": idempotency.purge,
                "dead_letter_replays": dead_letters.runner.run,
                "previews": open_preview_reader(settings, app.state.services.previews, trust).run,
            }
            if isinstance(app.gate, KeyGate):
                parts["key_usage"] = app.gate.run
            background = [group.create_task(run_or_fail(run, on_failure, name=name)) for name, run in parts.items()]
            yield
            for task in background:
                task.cancel()
            await producer.stop()
            await reservations.close()
            await quotas.close()
    finally:
        await dead_letters.jobs.close()
        store.close()
        webhooks.close()
        if isinstance(app.gate, KeyGate):
            await app.gate.close()


def open_gate(settings: GatewaySettings) -> Gate:
    """Who is admitted; opens nothing yet."""
    if not settings.needs_keys():
        return OpenGate()
    return KeyGate(open_key_store(settings), tokens=open_tokens(settings.oidc))


def open_tokens(settings: OidcSettings) -> "Tokens | None":
    """Whose tokens are accepted; None where keys alone are."""
    if settings.issuer is None:
        return None
    # Here alone, for the start of gateways without: HTTP client and PyJWT take a tenth of it.
    from fluxpool_gateway.identity.issuer_keys import IssuerKeys  # noqa: PLC0415
    from fluxpool_gateway.identity.tokens import Tokens  # noqa: PLC0415

    return Tokens(settings, keys=IssuerKeys(settings))


def open_dead_letters(
    settings: GatewaySettings, store: TaskStoreReader, metrics: GatewayMetrics, trust: TenantTrust
) -> DeadLetters:
    """The dead letters of the topic that the settings name."""
    topic = KafkaDeadLetterTopic(settings.kafka, settings.topics.dead_letters, trust)
    jobs = open_replay_jobs(settings)
    runner = ReplayRunner(jobs=jobs, topic=topic, retry_topics=frozenset(settings.topics.retry), metrics=metrics)
    return DeadLetters(store=store, topic=topic, jobs=jobs, runner=runner, topics=settings.topics)


async def run_or_fail(run: Callable[[], Awaitable[None]], on_failure: Callable[[], None], *, name: str) -> None:
    """Run a background part until cancelled; when it ends by itself, call `on_failure`, because nothing restarts it."""
    try:
        await run()
    except Exception:  # the top of a part: whatever ended it, the process must end with it
        logger.exception("background_part_failed", part=name)
    else:
        logger.error("background_part_ended", part=name)
    on_failure()


def _with_correlation_id(scope: Scope, send: Send) -> Send:
    """A `send` that adds the `x-request-id` header; stores the id in the scope for problem documents."""
    correlation_id = correlation_id_of(find_header(scope["headers"], CORRELATION_ID_HEADER))
    scope["fluxpool.correlation_id"] = correlation_id

    async def send_with_id(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (CORRELATION_ID_HEADER, correlation_id.encode())]
        await send(message)

    return send_with_id
