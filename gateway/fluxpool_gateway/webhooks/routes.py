"""The routes of webhooks: the endpoints of the caller's tenant, and the log of what they were told."""

from collections.abc import Awaitable
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, TypeVar

import structlog
from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.http.problem import BODY_PROBLEMS, ProblemCode, ProblemError, problems, unavailable
from fluxpool_gateway.http.routes import Services, WithServices, json_response
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.webhooks.database import WebhooksUnavailableError
from fluxpool_gateway.webhooks.delivery_log import Delivery
from fluxpool_gateway.webhooks.dispatch.target_url import refusal_of_url
from fluxpool_gateway.webhooks.endpoints import MAX_ENDPOINTS, Endpoint, EndpointKind, TooManyEndpointsError
from fluxpool_gateway.webhooks.signing import new_secret
from fluxpool_gateway.webhooks.views import (
    AttemptView,
    DeliveryLogView,
    DeliveryPageView,
    DeliveryView,
    EndpointList,
    EndpointPatch,
    EndpointRequest,
    EndpointView,
    NewEndpointView,
    RequestSecretView,
    SecretRotation,
)

PATH: Final = "/v1/webhooks"
MAX_PAGE: Final = 200
_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    404: "There is no such endpoint or delivery, or it is another tenant's.",
    503: "Webhooks cannot be read or written at the moment; retry.",
}
_OF_REQUESTS: Final = "The endpoint is that of requests."
_CHANGE: Final = problems({409: _OF_REQUESTS, **BODY_PROBLEMS, **_PROBLEMS})
_DELETE: Final = problems({409: _OF_REQUESTS, **_PROBLEMS})
_QUEUE: Final = problems({409: "The endpoint is disabled, or that of requests.", **_PROBLEMS})

T = TypeVar("T")

logger = structlog.stdlib.get_logger(__name__)
router = APIRouter()

EndpointIdInPath = Annotated[str, Path(description="Id of the endpoint.", max_length=64)]
DeliveryIdInPath = Annotated[str, Path(description="Id of the delivery.", max_length=64)]


@router.post(
    PATH,
    status_code=HTTPStatus.CREATED,
    response_model=NewEndpointView,
    responses=problems({409: f"The tenant has {MAX_ENDPOINTS} endpoints.", **BODY_PROBLEMS, **_PROBLEMS}),
    summary="Create an endpoint of webhooks",
    **requires(KeyScope.SUBMIT),
)
async def create_endpoint(wanted: EndpointRequest, services: WithServices, caller: WithCaller) -> Response:
    """It is told of what ends from now on. The response holds its secret; nothing shows it again."""
    _check_target(wanted.url, services)
    now_ms, secret = services.now_ms(), new_secret()
    endpoint = Endpoint.new(
        caller.tenant,
        name=wanted.name,
        url=wanted.url,
        event_types=sorted(wanted.event_types),
        enabled=wanted.enabled,
        secret=services.webhooks.box.seal(secret),
        now_ms=now_ms,
    )
    try:
        await _done(services.webhooks.add(endpoint))
    except TooManyEndpointsError:
        detail = f"the tenant has {MAX_ENDPOINTS} endpoints; delete one, or give one more event types"
        raise ProblemError(ProblemCode.TOO_MANY_WEBHOOKS, detail) from None
    logger.info("webhook_created", tenant=caller.tenant, endpoint_id=endpoint.endpoint_id, by=caller.name)
    return _with_secret(endpoint, secret, now_ms=now_ms)


@router.get(
    PATH,
    response_model=EndpointList,
    responses=problems({**SECURITY_PROBLEMS, 503: _PROBLEMS[503]}),
    summary="The endpoints of the caller's tenant",
    **requires(KeyScope.READ),
)
async def list_endpoints(services: WithServices, caller: WithCaller) -> Response:
    """The oldest first: at most 20, and one for each host that webhooks of requests name."""
    found = await _done(services.webhooks.endpoints(caller.tenant))
    now_ms = services.now_ms()
    return json_response(EndpointList(data=tuple(EndpointView.of(endpoint, now_ms=now_ms) for endpoint in found)))


@router.get(
    PATH + "/{endpoint_id}",
    response_model=EndpointView,
    responses=problems(_PROBLEMS),
    summary="One endpoint",
    **requires(KeyScope.READ),
)
async def get_endpoint(endpoint_id: EndpointIdInPath, services: WithServices, caller: WithCaller) -> Response:
    """Without its secrets."""
    return json_response(EndpointView.of(await _find(endpoint_id, services, caller.tenant), now_ms=services.now_ms()))


@router.patch(
    PATH + "/{endpoint_id}",
    response_model=EndpointView,
    responses=_CHANGE,
    summary="Change an endpoint",
    **requires(KeyScope.SUBMIT),
)
async def change_endpoint(
    patch: EndpointPatch, endpoint_id: EndpointIdInPath, services: WithServices, caller: WithCaller
) -> Response:
    """A new URL is attempted at once, also with what failed at the former one."""
    if patch.url is not None:
        _check_target(patch.url, services)
    await _find_registered(endpoint_id, services, caller.tenant)
    now_ms = services.now_ms()
    values = patch.model_dump(exclude_none=True)
    changed = await _done(
        services.webhooks.change(caller.tenant, endpoint_id, lambda found: found.changed(**values), now_ms=now_ms)
    )
    if changed is None:
        raise _no_endpoint(endpoint_id)
    logger.info("webhook_changed", tenant=caller.tenant, endpoint_id=endpoint_id, by=caller.name)
    return json_response(EndpointView.of(changed, now_ms=now_ms))


@router.delete(
    PATH + "/{endpoint_id}",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=_DELETE,
    summary="Delete an endpoint",
    **requires(KeyScope.SUBMIT),
)
async def delete_endpoint(endpoint_id: EndpointIdInPath, services: WithServices, caller: WithCaller) -> Response:
    """With its deliveries; a request that is under way is not stopped."""
    await _find_registered(endpoint_id, services, caller.tenant)
    if not await _done(services.webhooks.delete(caller.tenant, endpoint_id)):
        raise _no_endpoint(endpoint_id)
    logger.info("webhook_deleted", tenant=caller.tenant, endpoint_id=endpoint_id, by=caller.name)
    return Response(status_code=HTTPStatus.NO_CONTENT)


# Before the route below, whose path matches as well.
@router.post(
    PATH + "/requests/rotate-secret",
    status_code=HTTPStatus.CREATED,
    response_model=RequestSecretView,
    responses=problems({**BODY_PROBLEMS, **SECURITY_PROBLEMS, 503: _PROBLEMS[503]}),
    summary="Make or replace the secret of webhooks that requests name",
    **requires(KeyScope.SUBMIT),
)
async def rotate_request_secret(wanted: SecretRotation, services: WithServices, caller: WithCaller) -> Response:
    """One for all requests of the tenant. Until the overlap ends messages are signed with the former ones as well."""
    now_ms, secret = services.now_ms(), new_secret()
    overlap_ms = 1000 * wanted.overlap_seconds
    rotate = services.webhooks.rotate_requested(caller.tenant, secret, now_ms=now_ms, overlap_ms=overlap_ms)
    kept = await _done(rotate)
    logger.info("webhook_secret_of_requests_rotated", tenant=caller.tenant, by=caller.name)
    return json_response(RequestSecretView(secret=secret, secrets=len(kept)), HTTPStatus.CREATED)


@router.post(
    PATH + "/{endpoint_id}/rotate-secret",
    status_code=HTTPStatus.CREATED,
    response_model=NewEndpointView,
    responses=_CHANGE,
    summary="Replace the secret of an endpoint",
    **requires(KeyScope.SUBMIT),
)
async def rotate_secret(
    wanted: SecretRotation, endpoint_id: EndpointIdInPath, services: WithServices, caller: WithCaller
) -> Response:
    """Until the overlap ends messages are signed with the former secrets as well: the header has all signatures."""
    await _find_registered(endpoint_id, services, caller.tenant)
    now_ms, secret = services.now_ms(), new_secret()
    rotate = partial(
        Endpoint.rotated,
        secret=services.webhooks.box.seal(secret),
        now_ms=now_ms,
        overlap_ms=1000 * wanted.overlap_seconds,
    )
    rotated = await _done(services.webhooks.change(caller.tenant, endpoint_id, rotate, now_ms=now_ms))
    if rotated is None:
        raise _no_endpoint(endpoint_id)
    logger.info("webhook_secret_rotated", tenant=caller.tenant, endpoint_id=endpoint_id, by=caller.name)
    return _with_secret(rotated, secret, now_ms=now_ms)


@router.post(
    PATH + "/{endpoint_id}/test",
    status_code=HTTPStatus.ACCEPTED,
    response_model=DeliveryView,
    responses=_QUEUE,
    summary="Send a test to an endpoint",
    **requires(KeyScope.SUBMIT),
)
async def send_test(endpoint_id: EndpointIdInPath, services: WithServices, caller: WithCaller) -> Response:
    """One attempt of a message of the type webhook.test, before all that waits; its delivery tells what came of it."""
    await _find_registered(endpoint_id, services, caller.tenant)
    found, delivery = await _done(services.webhooks.test(caller.tenant, endpoint_id, now_ms=services.now_ms()))
    if found is None:
        raise _no_endpoint(endpoint_id)
    return _queued(delivery, found)


class DeliveriesQuery(BaseModel):
    """Which deliveries."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    cursor: Annotated[str, Field(pattern=r"^[0-9]{1,18}$")] | None = None
    """`next_cursor` of the page before."""
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 50


@router.get(
    PATH + "/{endpoint_id}/deliveries",
    response_model=DeliveryPageView,
    responses=problems({**_PROBLEMS, 422: "A parameter is not allowed; `errors` names each."}),
    summary="The deliveries to an endpoint",
    **requires(KeyScope.READ),
)
async def list_deliveries(
    endpoint_id: EndpointIdInPath,
    query: Annotated[DeliveriesQuery, Query()],
    services: WithServices,
    caller: WithCaller,
) -> Response:
    """The newest first; those of the last seven days."""
    await _find(endpoint_id, services, caller.tenant)
    before = None if query.cursor is None else int(query.cursor)
    page = await _done(services.webhooks.deliveries(endpoint_id, before=before, limit=query.limit))
    return json_response(
        DeliveryPageView(
            data=tuple(map(DeliveryView.of, page.deliveries)),
            has_more=page.next is not None,
            next_cursor=None if page.next is None else str(page.next),
        )
    )


@router.get(
    PATH + "/deliveries/{delivery_id}",
    response_model=DeliveryLogView,
    responses=problems(_PROBLEMS),
    summary="One delivery with its message and attempts",
    **requires(KeyScope.READ),
)
async def get_delivery(delivery_id: DeliveryIdInPath, services: WithServices, caller: WithCaller) -> Response:
    """What was posted, and what came back."""
    delivery = await _done(services.webhooks.delivery(caller.tenant, delivery_id))
    if delivery is None:
        raise _no_delivery(delivery_id)
    log = tuple(map(AttemptView.of, delivery.log))
    return json_response(DeliveryLogView.of(delivery, body=delivery.body, log=log))


@router.post(
    PATH + "/deliveries/{delivery_id}/redeliver",
    status_code=HTTPStatus.ACCEPTED,
    response_model=DeliveryView,
    responses=_QUEUE,
    summary="Deliver a message again",
    **requires(KeyScope.SUBMIT),
)
async def redeliver(delivery_id: DeliveryIdInPath, services: WithServices, caller: WithCaller) -> Response:
    """With the same webhook-id, behind what waits; what is pending is attempted now."""
    found, delivery = await _done(services.webhooks.redeliver(caller.tenant, delivery_id, now_ms=services.now_ms()))
    if found is None:
        raise _no_delivery(delivery_id)
    return _queued(delivery, found)


async def _done(work: Awaitable[T]) -> T:
    try:
        return await work
    except WebhooksUnavailableError as error:
        logger.warning("webhooks_unusable", reason=str(error))
        detail = "webhooks cannot be read or written at the moment; retry"
        raise unavailable(ProblemCode.WEBHOOKS_UNAVAILABLE, detail) from error


async def _find(endpoint_id: str, services: Services, tenant: str) -> Endpoint:
    found = await _done(services.webhooks.find(tenant, endpoint_id))
    if found is None:
        raise _no_endpoint(endpoint_id)
    return found


async def _find_registered(endpoint_id: str, services: Services, tenant: str) -> Endpoint:
    found = await _find(endpoint_id, services, tenant)
    if found.kind is EndpointKind.REQUESTS:
        detail = (
            f"{endpoint_id} has the webhooks that requests name for {found.url}, and is no endpoint to change; "
            f"their secret is replaced with POST {PATH}/requests/rotate-secret"
        )
        raise ProblemError(ProblemCode.WEBHOOK_OF_REQUESTS, detail)
    return found


def _check_target(url: str, services: Services) -> None:
    """Refuse at once what would be refused at each attempt."""
    message = refusal_of_url(url, services.webhook_targets)
    if message is not None:
        problem = FieldProblem("url", message)
        status = HTTPStatus.UNPROCESSABLE_ENTITY
        raise ProblemError(ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=status)


def _with_secret(endpoint: Endpoint, secret: str, *, now_ms: int) -> Response:
    return json_response(NewEndpointView.of(endpoint, now_ms=now_ms, secret=secret), HTTPStatus.CREATED)


def _queued(delivery: Delivery | None, endpoint: Endpoint) -> Response:
    if delivery is None:
        detail = f"the endpoint {endpoint.endpoint_id} is disabled; enable it with PATCH {PATH}/{endpoint.endpoint_id}"
        raise ProblemError(ProblemCode.WEBHOOK_DISABLED, detail)
    return json_response(DeliveryView.of(delivery), HTTPStatus.ACCEPTED)


def _no_endpoint(endpoint_id: str) -> ProblemError:
    return ProblemError(ProblemCode.NOT_FOUND, f"there is no endpoint {endpoint_id!r}; list them with GET {PATH}")


def _no_delivery(delivery_id: str) -> ProblemError:
    detail = f"there is no delivery {delivery_id!r}; they are kept for seven days"
    return ProblemError(ProblemCode.NOT_FOUND, detail)
