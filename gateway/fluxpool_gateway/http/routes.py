"""The routes of the health of the process, what all routes work with, and the hot route's declaration.

`http.submission` answers the hot route; here it is declared for the OpenAPI document alone.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from fluxpool_gateway.dead_letters.service import DeadLetters
from fluxpool_gateway.feedback.writing import FeedbackWriter
from fluxpool_gateway.http.generation_request import GenerationRequest
from fluxpool_gateway.http.problem import (
    problems,
)
from fluxpool_gateway.http.readiness import BrokerWatch, Readiness, read_readiness
from fluxpool_gateway.http.request_context import PATH
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.images.thumbnail import Thumbnails
from fluxpool_gateway.live.previews import TaskPreviews
from fluxpool_gateway.live.readers import EventReaders
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.pool_history import PoolHistory
from fluxpool_gateway.settings import WebhookSettings
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.tasks.canceling import Canceling
from fluxpool_gateway.tasks.deleting import Deleting
from fluxpool_gateway.tasks.lookup import TaskLookup
from fluxpool_gateway.tasks.waiting import StoreWaits, TaskWaits
from fluxpool_gateway.webhooks.store import WebhookStore
from fluxpool_transport.storage import ObjectStore

NO_STORE: Final = {"cache-control": "no-store"}

router = APIRouter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the routes of one process work with; in the application's state while it runs."""

    lookup: TaskLookup
    store: TaskStoreReader
    watch: BrokerWatch
    objects: ObjectStore
    signer: ObjectStore | None
    """The same objects at the address that clients reach; None: images are answered with their bytes."""
    public_url: str | None
    waits: TaskWaits
    tenant_waits: StoreWaits[str]
    """Of the latest change of a tenant's tasks."""
    canceling: Canceling
    deleting: Deleting
    feedback: FeedbackWriter
    stopping: asyncio.Event
    """Set when the server is about to stop: requests that wait are to be answered."""
    readers: EventReaders
    metrics: GatewayMetrics
    lanes: LaneWatch
    dead_letters: DeadLetters
    webhooks: WebhookStore
    webhook_targets: WebhookSettings
    previews: TaskPreviews = field(default_factory=TaskPreviews)
    pool_history: PoolHistory = field(default_factory=PoolHistory)
    thumbnails: Thumbnails = field(default_factory=Thumbnails)
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000


class RequestModel(BaseModel):
    """The body of a request; fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


async def _services(request: Request) -> Services:
    services = request.app.state.services
    assert isinstance(services, Services)  # noqa: S101 - set when the application starts
    return services


def json_response(view: BaseModel, status: HTTPStatus = HTTPStatus.OK) -> Response:
    """What no cache keeps, because the next answer may differ."""
    return Response(view.model_dump_json(), status_code=status, media_type="application/json", headers=NO_STORE)


WithServices = Annotated[Services, Depends(_services)]
RequestIdInPath = Annotated[str, Path(description="Id of the task, as its submission was answered with.")]


READ_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    404: "No such task was ever accepted, or it is another tenant's.",
    410: "The task was deleted.",
    503: "Unknown at the moment; retry.",
}
SUBMIT_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    400: "The body is not JSON, or holds a field that is not known.",
    408: "The request did not arrive in time; nothing was accepted.",
    409: "Another request with the same Idempotency-Key is in progress; repeat it after Retry-After. Or requests of "
    "the tenant name too many hosts as webhooks.",
    410: "The task of this Idempotency-Key was deleted; use a new key.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The body is not application/json, or is encoded.",
    422: "A value is not allowed, or the Idempotency-Key was used for another request; `errors` names each field.",
    429: "A limit of the tenant is reached, or the request would wait longer than it allows; `detail` names the limit.",
    431: "The headers are too large.",
    503: "The broker did not confirm in time: the outcome is unknown. Repeat it with the same Idempotency-Key.",
}
_ACCEPTED_HEADERS: Final = {
    "Location": {"description": "URL of the task's state.", "schema": {"type": "string"}},
    "Fluxpool-Queue-Position": {
        "description": "Tasks that are likely to begin before this one; for requests that limit their wait.",
        "schema": {"type": "string"},
    },
    "Fluxpool-Eta-Seconds": {
        "description": "Estimated time until the result, in seconds; for requests that limit their wait.",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds to wait before the first poll.", "schema": {"type": "string"}},
}


class AcceptedGeneration(BaseModel):
    """A queued task."""

    request_id: str
    status: Literal["queued"]
    status_url: str


@router.post(
    PATH,
    status_code=HTTPStatus.ACCEPTED,
    response_description="Queued.",
    responses={202: {"headers": _ACCEPTED_HEADERS}, **problems(SUBMIT_PROBLEMS)},
    summary="Submit a request for images",
    **requires(KeyScope.SUBMIT),
)
async def submit_generation(
    request: GenerationRequest,
    idempotency_key: Annotated[
        str,
        Header(
            alias="Idempotency-Key",
            description="1 to 255 printable ASCII characters; repeats with the same key are one task.",
            min_length=1,
            max_length=255,
            pattern="^[!-~]+$",
        ),
    ] = "",
    traceparent: Annotated[str, Header(description="W3C trace context.")] = "",
) -> AcceptedGeneration:
    """Answers once the request is durably queued."""
    raise NotImplementedError("documents the route that `Submission` answers before FastAPI sees it")


@router.put(
    PATH + "/{request_id}",
    status_code=HTTPStatus.ACCEPTED,
    response_description="Queued.",
    responses={
        200: {"model": AcceptedGeneration, "description": "An equal request was accepted before; it is one task."},
        202: {"headers": _ACCEPTED_HEADERS},
        **problems(
            {
                **SUBMIT_PROBLEMS,
                409: "The id was used for another request, or one is in progress; or requests of the tenant name too "
                "many hosts as webhooks.",
                410: "The task with this id was deleted; choose another id.",
                422: "A value is not allowed, or the id is not a UUID in lower case; `errors` names each field.",
                503: "The broker did not confirm in time: the outcome is unknown. Repeat the request.",
            }
        ),
    },
    summary="Submit a request for images under an id of your own",
    **requires(KeyScope.SUBMIT),
)
async def put_generation(
    request_id: Annotated[str, Path(description="A new UUID in lower case.", json_schema_extra={"format": "uuid"})],
    request: GenerationRequest,
    traceparent: Annotated[str, Header(description="W3C trace context.")] = "",
) -> AcceptedGeneration:
    """Answers once the request is durably queued. A repeat is the same task."""
    raise NotImplementedError("documents the route that `Submission` answers before FastAPI sees it")


@router.get("/healthz", summary="Whether the process is alive")
async def get_health() -> dict[str, str]:
    """Answers as long as the event loop runs; depends on nothing else."""
    return {"status": "alive"}


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "Some part is not ready; `parts` has the reasons."}},
    summary="Whether requests can be accepted and followed",
)
async def get_readiness(services: WithServices) -> Response:
    """503 names the parts that are not ready."""
    readiness = await read_readiness(services.watch, services.store)
    status = HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE
    return JSONResponse(readiness.model_dump(), status_code=status)


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether a response with this tag is one that the client has; by weak comparison (RFC 9110 section 13.1.2)."""
    if if_none_match is None:
        return False
    candidates = {candidate.strip().removeprefix("W/") for candidate in if_none_match.split(",")}
    return etag in candidates or "*" in candidates
