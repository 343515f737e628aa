"""The routes of images and of the health of the process, what all routes work with, and the hot route's declaration.

`http.submission` answers the hot route; here it is declared for the OpenAPI document alone.
"""

import asyncio
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Header, Path, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from fluxpool_contract.messages import MAX_IMAGES
from fluxpool_gateway.http.generation_request import GenerationRequest
from fluxpool_gateway.http.problem import (
    RETRY_AFTER_SECONDS,
    ProblemCode,
    ProblemError,
    problems,
    unavailable,
)
from fluxpool_gateway.http.readiness import BrokerWatch, Readiness, read_readiness
from fluxpool_gateway.http.request_context import ASKED_BY_HEAD, PATH
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.live.readers import EventReaders
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.tasks.canceling import Canceling
from fluxpool_gateway.tasks.deleting import Deleting
from fluxpool_gateway.tasks.lookup import RecentTask, TaskLookup
from fluxpool_gateway.tasks.view import read_result
from fluxpool_gateway.tasks.waiting import StoreWaits, TaskWaits
from fluxpool_transport.storage import ObjectStore, SignedMethod, StorageUnavailableError

# The bytes under an address never change; prompts are personal, so no shared cache keeps their images.
IMAGE_CACHE_CONTROL: Final = "private, max-age=31536000, immutable"
NO_STORE: Final = {"cache-control": "no-store"}
SIGNED_SECONDS: Final = 15 * 60
"""Long enough for a slow client that follows a redirect, short for a URL that is passed on."""
_IMAGE_INDEXES: Final = frozenset(map(str, range(MAX_IMAGES)))
_MEDIA_TYPES: Final = frozenset({"image/png", "image/jpeg", "image/webp"})
"""Other content types are not passed on: any producer may write a result record."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_OBJECT_KEY: Final = re.compile(r"[A-Za-z0-9._~/-]{1,1024}")
"""Keys as workers make them (`object_prefix`)."""

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
    stopping: asyncio.Event
    """Set when the server is about to stop: requests that wait are to be answered."""
    readers: EventReaders
    metrics: GatewayMetrics
    lanes: LaneWatch


class RequestModel(BaseModel):
    """The body of a request; fields that are not known are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _services(request: Request) -> Services:
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
    409: "Another request with the same Idempotency-Key is in progress; repeat it after Retry-After.",
    410: "The task of this Idempotency-Key was deleted; use a new key.",
    413: "The body is too large.",
    414: "The address is too long.",
    415: "The body is not application/json, or is encoded.",
    422: "A value is not allowed, or the Idempotency-Key was used for another request; `errors` names each field.",
    429: "A limit of the tenant is reached; `detail` names it.",
    431: "The headers are too large.",
    503: "The broker did not confirm in time: the outcome is unknown. Repeat it with the same Idempotency-Key.",
}
_ACCEPTED_HEADERS: Final = {
    "Location": {"description": "URL of the task's state.", "schema": {"type": "string"}},
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
                409: "The id was used for another request, or one is in progress.",
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


@router.get(
    PATH + "/{request_id}/images/{index}",
    response_class=Response,
    summary="One image",
    responses={
        302: {
            "description": "The image is there, for 15 minutes.",
            "headers": {"Location": {"description": "A signed URL.", "schema": {"type": "string"}}},
        },
        200: {"content": {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}},
        304: {"description": "The image is the one that `If-None-Match` names."},
        **problems(
            {
                409: "The task is not finished (`not_finished`), or it ended without images (`no_images`).",
                **READ_PROBLEMS,
            }
        ),
    },
    **requires(KeyScope.READ),
)
async def get_image(
    request_id: RequestIdInPath,
    index: Annotated[str, Path(description="Number of the image.", json_schema_extra={"pattern": "^[0-7]$"})],
    request: Request,
    services: WithServices,
    caller: WithCaller,
) -> Response:
    """The file exactly as the worker stored it, or a redirect to it where the gateway has an `image_endpoint_url`."""
    if index not in _IMAGE_INDEXES:
        raise ProblemError(ProblemCode.NOT_FOUND, f"images are numbered from 0 to {MAX_IMAGES - 1}")
    found = await services.lookup.find(request_id, caller)
    if isinstance(found, RecentTask) or found.result is None:
        raise ProblemError(
            ProblemCode.NOT_FINISHED,
            f"task {request_id} is not finished; retry later",
            headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
        )
    result = read_result(found)
    if result is None:
        raise ProblemError(ProblemCode.NOT_FOUND, f"the result of task {request_id} cannot be read")
    if not result.images:
        raise ProblemError(ProblemCode.NO_IMAGES, f"task {request_id} {found.status} and has no images")
    image = next((image for image in result.images if str(image.index) == index), None)
    if image is None:
        detail = f"task {request_id} has no image {index}, only 0 to {len(result.images) - 1}"
        raise ProblemError(ProblemCode.NOT_FOUND, detail)
    if not _may_read(image.object, caller):
        raise _not_stored(request_id, index)
    if services.signer is not None:
        # What is signed for one method is refused for another.
        method: SignedMethod = "HEAD" if request.scope.get(ASKED_BY_HEAD) else "GET"
        return await _redirect(services.signer, image.object, method=method)
    headers = {"cache-control": IMAGE_CACHE_CONTROL, "x-content-type-options": "nosniff"}
    if _SHA256.fullmatch(image.sha256):
        etag = headers["etag"] = f'"{image.sha256}"'
        if matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    payload = await stored_image(services.objects, image.object, caller)
    if payload is None:
        raise _not_stored(request_id, index)
    media_type = image.content_type if image.content_type in _MEDIA_TYPES else "application/octet-stream"
    return Response(payload, media_type=media_type, headers=headers)


async def stored_image(objects: ObjectStore, key: str, caller: Caller) -> bytes | None:
    """The object; None when it does not exist, or the caller may not read it; raises `ProblemError` (503)."""
    if not _may_read(key, caller):
        return None
    try:
        return await objects.get(key)
    except StorageUnavailableError as error:
        raise _unreadable() from error


def _may_read(key: str, caller: Caller) -> bool:
    """Whether a worker makes such keys, and in a folder of the caller's tenant: results are any producer's."""
    parts = key.split("/")
    if not _OBJECT_KEY.fullmatch(key) or not {"", ".", ".."}.isdisjoint(parts):
        return False
    # Objects lie in a folder of their tenant (`object_prefix`): a false result must not lead into another's.
    return caller.sees_only in {None, parts[0]}


async def _redirect(signer: ObjectStore, key: str, *, method: SignedMethod) -> Response:
    try:
        url = await signer.signed_url(key, valid_seconds=SIGNED_SECONDS, method=method)
    except StorageUnavailableError as error:
        raise _unreadable() from error
    return Response(status_code=HTTPStatus.FOUND, headers={**NO_STORE, "location": url})


def _not_stored(request_id: str, index: str) -> ProblemError:
    return ProblemError(ProblemCode.NOT_FOUND, f"image {index} of task {request_id} is not stored, or no longer")


def _unreadable() -> ProblemError:
    return unavailable(ProblemCode.STORAGE_FAILED, "the image cannot be read at the moment; retry")


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
