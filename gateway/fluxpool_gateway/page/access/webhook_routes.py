"""Endpoints of webhooks: made and changed, their secrets shown once, and what was posted to them with the answers."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Request, Response

from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.http.routes import Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.access.lifetimes import OVERLAPS, USUAL_OVERLAP
from fluxpool_gateway.page.forms import Form, WithForm, page_router
from fluxpool_gateway.page.operations import answered, as_number, wanted
from fluxpool_gateway.page.rendering import redirect, render
from fluxpool_gateway.webhooks.endpoints import EndpointKind
from fluxpool_gateway.webhooks.event import EventType
from fluxpool_gateway.webhooks.routes import (
    DeliveriesQuery,
    change_endpoint,
    create_endpoint,
    delete_endpoint,
    get_delivery,
    get_endpoint,
    list_deliveries,
    list_endpoints,
    redeliver,
    rotate_request_secret,
    rotate_secret,
    send_test,
)
from fluxpool_gateway.webhooks.views import (
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

router = page_router()


@router.get("/webhooks", **requires(KeyScope.READ))
async def get_webhooks(request: Request, services: WithServices, caller: WithCaller) -> Response:
    """The endpoints of the caller's tenant, and a form for another one."""
    return await _render_list(request, services, caller, values={})


@router.post("/webhooks", **requires(KeyScope.SUBMIT))
async def post_webhook(request: Request, services: WithServices, caller: WithCaller, form: WithForm) -> Response:
    """Create an endpoint. Its secret is in this response alone."""
    try:
        endpoint = answered(
            await create_endpoint(wanted(EndpointRequest, _values(form)), services, caller), NewEndpointView
        )
    except ProblemError as problem:
        return await _render_list(request, services, caller, values=_values(form), why=problem)
    return await _render_endpoint(request, services, caller, endpoint, secret=endpoint.secret)


def _values(form: Form) -> dict[str, Any]:
    return {"name": form.get("name"), "url": form.get("url").strip(), "event_types": form.all("event_types")}


@router.post("/webhooks/requests/rotate", **requires(KeyScope.SUBMIT))
async def post_rotate_of_requests(
    request: Request, services: WithServices, caller: WithCaller, form: WithForm
) -> Response:
    """Make or replace the secret of webhooks that requests name. It is in this response alone."""
    rotation = wanted(SecretRotation, {"overlap_seconds": as_number(form.get("overlap_seconds"))})
    made = answered(await rotate_request_secret(rotation, services, caller), RequestSecretView)
    return await _render_list(request, services, caller, values={}, secret=made.secret)


@router.get("/webhooks/deliveries/{delivery_id}", **requires(KeyScope.READ))
async def get_one_delivery(delivery_id: str, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """What was posted, and what came back."""
    delivery = answered(await get_delivery(delivery_id, services, caller), DeliveryLogView)
    endpoint = answered(await get_endpoint(delivery.endpoint_id, services, caller), EndpointView)
    may_change = KeyScope.SUBMIT in caller.scopes
    return render(request, "access/delivery.html", delivery=delivery, endpoint=endpoint, may_change=may_change)


@router.post("/webhooks/deliveries/{delivery_id}/resend", **requires(KeyScope.SUBMIT))
async def post_resend(delivery_id: str, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """Deliver it again."""
    delivery = answered(await redeliver(delivery_id, services, caller), DeliveryView)
    return redirect(request, f"ui/webhooks/deliveries/{delivery.id}")


@router.get("/webhooks/{endpoint_id}", **requires(KeyScope.READ))
async def get_webhook(
    endpoint_id: str,
    request: Request,
    services: WithServices,
    caller: WithCaller,
    cursor: Annotated[str, Query(max_length=18)] = "",
) -> Response:
    """One endpoint with its deliveries."""
    endpoint = answered(await get_endpoint(endpoint_id, services, caller), EndpointView)
    return await _render_endpoint(request, services, caller, endpoint, cursor=cursor)


@router.post("/webhooks/{endpoint_id}", **requires(KeyScope.SUBMIT))
async def post_change(
    endpoint_id: str, request: Request, services: WithServices, caller: WithCaller, form: WithForm
) -> Response:
    """Change an endpoint; disable or enable it."""
    enabled = form.get("enabled")
    values = {"enabled": enabled == "1"} if enabled else _values(form)
    try:
        await change_endpoint(wanted(EndpointPatch, values), endpoint_id, services, caller)
    except ProblemError as problem:
        if problem.status is HTTPStatus.NOT_FOUND:
            raise
        endpoint = answered(await get_endpoint(endpoint_id, services, caller), EndpointView)
        return await _render_endpoint(request, services, caller, endpoint, values=values, why=problem)
    return redirect(request, f"ui/webhooks/{endpoint_id}")


@router.post("/webhooks/{endpoint_id}/rotate", **requires(KeyScope.SUBMIT))
async def post_rotate(
    endpoint_id: str, request: Request, services: WithServices, caller: WithCaller, form: WithForm
) -> Response:
    """Replace the secret. The new one is in this response alone."""
    rotation = wanted(SecretRotation, {"overlap_seconds": as_number(form.get("overlap_seconds"))})
    endpoint = answered(await rotate_secret(rotation, endpoint_id, services, caller), NewEndpointView)
    return await _render_endpoint(request, services, caller, endpoint, secret=endpoint.secret)


@router.post("/webhooks/{endpoint_id}/test", **requires(KeyScope.SUBMIT))
async def post_test(endpoint_id: str, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """Send a test, and show what comes of it."""
    delivery = answered(await send_test(endpoint_id, services, caller), DeliveryView)
    return redirect(request, f"ui/webhooks/deliveries/{delivery.id}")


@router.get("/webhooks/{endpoint_id}/delete", **requires(KeyScope.SUBMIT))
async def get_delete(endpoint_id: str, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """Ask first."""
    endpoint = answered(await get_endpoint(endpoint_id, services, caller), EndpointView)
    return render(request, "access/delete_endpoint.html", endpoint=endpoint)


@router.post("/webhooks/{endpoint_id}/delete", **requires(KeyScope.SUBMIT))
async def post_delete(endpoint_id: str, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """Delete an endpoint with its deliveries."""
    await delete_endpoint(endpoint_id, services, caller)
    return redirect(request, "ui/webhooks")


async def _render_list(
    request: Request,
    services: Services,
    caller: Caller,
    *,
    values: dict[str, Any],
    secret: str = "",
    why: ProblemError | None = None,
) -> Response:
    endpoints = answered(await list_endpoints(services, caller), EndpointList)
    return render(
        request,
        "access/webhooks.html",
        **({} if why is None else {"status": why.status}),
        endpoints=endpoints.data,
        secret=secret,
        overlaps=OVERLAPS,
        usual_overlap=USUAL_OVERLAP,
        may_change=KeyScope.SUBMIT in caller.scopes,
        **_form(values, why),
    )


async def _render_endpoint(
    request: Request,
    services: Services,
    caller: Caller,
    endpoint: EndpointView,
    *,
    cursor: str = "",
    secret: str = "",
    values: dict[str, Any] | None = None,
    why: ProblemError | None = None,
) -> Response:
    query = wanted(DeliveriesQuery, {"cursor": cursor or None})
    page = answered(await list_deliveries(endpoint.id, query, services, caller), DeliveryPageView)
    shown = {name: getattr(endpoint, name) for name in ("name", "url", "event_types")}
    return render(
        request,
        "access/endpoint.html",
        **({} if why is None else {"status": why.status}),
        endpoint=endpoint,
        page=page,
        secret=secret,
        overlaps=OVERLAPS,
        usual_overlap=USUAL_OVERLAP,
        may_change=KeyScope.SUBMIT in caller.scopes and endpoint.kind is EndpointKind.REGISTERED,
        **_form(shown | (values or {}), why),
    )


def _form(values: dict[str, Any], why: ProblemError | None) -> dict[str, Any]:
    problems = {} if why is None else {problem.field.partition(".")[0]: problem.message for problem in why.fields}
    return {
        "values": {"name": "", "url": "", "event_types": ()} | values,
        "event_types": [*EventType],
        "problems": problems,
        "why": None if why is None or problems.keys() & {"name", "url"} else why.detail,
    }
