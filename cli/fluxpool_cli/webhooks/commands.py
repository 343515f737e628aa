"""`fluxpool webhooks`: endpoints that a gateway tells when tasks and groups end, and what became of the messages."""

import time
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.options import parse_duration_option, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.terminal import minute_text
from fluxpool_client import Client, NewWebhookEndpoint, RequestSecret, WebhookDelivery, WebhookFields

_WAIT_SECONDS: Final = 30.0
"""Twice what an attempt takes at most."""
_POLL_SECONDS: Final = 0.5
_REQUESTS: Final = "requests"
"""In place of an endpoint's id, which begins with whe_ or whr_."""

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="Endpoints that are told when tasks and groups end.")

EndpointArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the endpoint, as `list` shows it.")]
DeliveryArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the delivery, as `deliveries` shows it.")]
WaitOption = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the attempt, and tell what came of it.")]


@app.command()
@with_option_groups
def create(
    name: Annotated[str, typer.Argument(help="Who is told.")],
    target: Annotated[str, typer.Argument(metavar="URL", help="Where messages are posted to; https://.")],
    *,
    event: Annotated[
        list[str] | None,
        typer.Option(help="What it is told of, as group.completed; may be repeated. Everything by default."),
    ] = None,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Create an endpoint and print its secret, which is shown this once. FLUXPOOL_API_KEY needs the scope submit."""
    fields: WebhookFields = {"event_types": event} if event else {}
    with gateway.client() as client:
        _show_new(client.webhooks.create(name, target, **fields), output)


@app.command("list")
@with_option_groups
def list_endpoints(*, gateway: GatewayOptions, output: OutputOptions) -> None:
    """List the endpoints of the tenant."""
    with gateway.client() as client:
        endpoints = client.webhooks.list()
    rows = [
        (
            endpoint.id,
            endpoint.name,
            endpoint.url,
            ",".join(endpoint.event_types) or "all",
            "enabled" if endpoint.enabled else f"disabled: {endpoint.disabled_because or 'by its owner'}",
            str(endpoint.failures),
            minute_text(endpoint.created_at),
        )
        for endpoint in endpoints
    ]
    columns = ("ID", "NAME", "URL", "EVENTS", "STATE", "FAILURES", "CREATED")
    table = Table(columns, rows, optional=("CREATED", "EVENTS", "FAILURES"), empty="no endpoints")
    document = {"webhooks": [endpoint.model_dump(mode="json") for endpoint in endpoints]}
    write_result(Result(document=document, parts=[table], names=[endpoint.id for endpoint in endpoints]), output)


@app.command()
@with_option_groups
def delete(endpoint_id: EndpointArgument, *, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Delete an endpoint with its deliveries."""
    with gateway.client() as client:
        _checked(lambda: client.webhooks.delete(endpoint_id))
    document = {"id": endpoint_id, "deleted": True}
    write_result(Result(document=document, parts=[f"{endpoint_id} deleted"], names=[endpoint_id]), output)


@app.command()
@with_option_groups
def rotate(
    endpoint_id: EndpointArgument,
    *,
    overlap: Annotated[
        str, typer.Option(help="How long messages are signed with the former secret as well, at most 30d.")
    ] = "24h",
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Make another secret for an endpoint and print it; with `requests` for ID that of `submit --webhook`."""
    overlap_seconds = parse_duration_option(overlap, option="--overlap")
    with gateway.client() as client:
        if endpoint_id == _REQUESTS:
            _show_secret(client.webhooks.rotate_request_secret(overlap_seconds=overlap_seconds), output)
            return
        _show_new(_checked(lambda: client.webhooks.rotate_secret(endpoint_id, overlap_seconds=overlap_seconds)), output)


@app.command("test")
@with_option_groups
def send_test(
    endpoint_id: EndpointArgument, *, wait: WaitOption = True, gateway: GatewayOptions, output: OutputOptions
) -> None:
    """Send a test to an endpoint. Exits with 1 when the attempt failed."""
    with gateway.client() as client:
        _show_attempt(client, _checked(lambda: client.webhooks.test(endpoint_id)), output, wait=wait)


@app.command()
@with_option_groups
def redeliver(
    delivery_id: DeliveryArgument, *, wait: WaitOption = True, gateway: GatewayOptions, output: OutputOptions
) -> None:
    """Deliver a message again. Exits with 1 when the attempt failed."""
    with gateway.client() as client:
        _show_attempt(client, _checked(lambda: client.webhooks.redeliver(delivery_id)), output, wait=wait)


@app.command()
@with_option_groups
def deliveries(
    endpoint_id: EndpointArgument,
    *,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many, the newest first.")] = 50,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """List the deliveries to an endpoint."""
    with gateway.client() as client:
        page = _checked(lambda: client.webhooks.deliveries(endpoint_id, limit=limit))
    rows = [
        (
            delivery.id,
            delivery.type,
            delivery.state,
            str(delivery.attempts),
            delivery.error or "-",
            minute_text(delivery.created_at),
            minute_text(delivery.next_attempt_at),
        )
        for delivery in page.data
    ]
    columns = ("ID", "TYPE", "STATE", "ATTEMPTS", "ERROR", "CREATED", "NEXT ATTEMPT")
    result = Result(
        document={"deliveries": [delivery.model_dump(mode="json") for delivery in page.data]},
        parts=[Table(columns, rows, optional=("NEXT ATTEMPT", "CREATED", "ATTEMPTS"), empty="no deliveries")],
        names=[delivery.id for delivery in page.data],
        notes=[f"there are more; the last {limit} are shown"] if page.has_more else (),
    )
    write_result(result, output)


def _checked(call: Callable[[], T]) -> T:
    """What a call returns; raises `BadParameter` for an argument that is no id."""
    try:
        return call()
    except ValueError as error:
        raise typer.BadParameter("must be an id as `fluxpool webhooks` shows it", param_hint="ID") from error


def _show_new(created: NewWebhookEndpoint, output: OutputOptions) -> None:
    told = f"endpoint {created.id} at {created.url}; the secret is not shown again: give it to the receiver"
    # Alone on standard output, for a pipe into a Secret.
    document = created.model_dump(mode="json")
    write_result(Result(document=document, parts=[created.secret], names=[created.id], notes=[told]), output)


def _show_secret(created: RequestSecret, output: OutputOptions) -> None:
    told = "webhooks of requests are signed with it; the secret is not shown again: give it to the receivers"
    document = created.model_dump(mode="json")
    write_result(Result(document=document, parts=[created.secret], names=[_REQUESTS], notes=[told]), output)


def _show_attempt(client: Client, queued: WebhookDelivery, output: OutputOptions, *, wait: bool) -> None:
    with interruptible(f"the gateway goes on with the delivery {queued.id}"):
        delivery = _attempted(client, queued) if wait else queued
    attempt = delivery.log[-1] if delivery.attempts > queued.attempts and delivery.log else None
    if attempt is None:
        line = f"{delivery.id} {delivery.state}"
    else:
        came = "no response" if attempt.status is None else f"status {attempt.status}"
        told = "delivered" if attempt.error is None else f"{attempt.error}: {attempt.reason}"
        line = f"{delivery.id} {told} ({came}, {attempt.latency_ms} ms)"
    write_result(Result(document=delivery.model_dump(mode="json"), parts=[line], names=[delivery.id]), output)
    if wait and attempt is None:
        raise CommandError(
            ExitCode.FAILED, f"no attempt within {_WAIT_SECONDS:.0f} s; does the gateway's dispatcher run?"
        )
    if attempt is not None and attempt.error is not None:
        raise CommandError(ExitCode.FAILED, "the endpoint was not told; its response is in the log")


def _attempted(client: Client, queued: WebhookDelivery) -> WebhookDelivery:
    """The delivery after its next attempt, or after the longest wait for that."""
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        delivery = client.webhooks.delivery(queued.id)
        if delivery.attempts > queued.attempts or time.monotonic() > until:
            return delivery
        time.sleep(_POLL_SECONDS)
