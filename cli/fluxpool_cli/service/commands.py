"""`fluxpool queue`, `pools`, `models`, `usage` and `top`."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from fluxpool_cli.gateway import ATTEMPTS, GatewayOptions
from fluxpool_cli.options import parse_time_option, with_option_groups
from fluxpool_cli.output import OutputFormat, OutputOptions, Result, write_result
from fluxpool_cli.repeating import WatchOption, show
from fluxpool_cli.service.view import models_result, pools_result, queue_result, top_result, usage_result
from fluxpool_client import Client


class Period(StrEnum):
    """How usage is divided."""

    HOUR = "hour"
    DAY = "day"


@with_option_groups
def queue(*, watch: WatchOption = False, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Show what waits and runs, and how long a task takes.

    For each lane, with its workers and the reason of the estimate.
    """
    _show(lambda client: queue_result(client.queue()), gateway, output, watch=watch)


@with_option_groups
def pools(*, watch: WatchOption = False, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Show workers of pools, and the plan with its reason."""
    _show(lambda client: pools_result(client.pools()), gateway, output, watch=watch)


@with_option_groups
def models(*, gateway: GatewayOptions, output: OutputOptions) -> None:
    """List models with licences, defaults and limits."""
    with gateway.client() as client:
        write_result(models_result(client.models()), output)


@with_option_groups
def usage(
    *,
    since: Annotated[
        str | None,
        typer.Option(help="From then on: 24h or 7d ago, or a time such as 2026-04-05T10:00:00Z. By default 24h."),
    ] = None,
    until: Annotated[str | None, typer.Option(help="Until then; written as --since. By default now.")] = None,
    by: Annotated[Period, typer.Option(help="hour or day.")] = Period.HOUR,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Show images, megapixels and GPU seconds used."""
    now = datetime.now(UTC)
    begin = None if since is None else parse_time_option(since, now=now, option="--since")
    end = None if until is None else parse_time_option(until, now=now, option="--until")
    with gateway.client() as client:
        report = client.usage(since=begin, to=end, by=by.value)
    write_result(usage_result(report), output)


@with_option_groups
def top(
    *,
    once: Annotated[
        bool, typer.Option("--once", help="Show it once; so it is where the output is no terminal.")
    ] = False,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Show pools, lanes, lag and throughput live.

    Ctrl-C ends it.
    """
    is_live = not once and output.form is OutputFormat.TABLE and sys.stdout.isatty()
    _show(lambda client: top_result(client.queue(), client.pools()), gateway, output, watch=is_live)


def _show(read: Callable[[Client], Result], gateway: GatewayOptions, output: OutputOptions, *, watch: bool) -> None:
    with gateway.client(max_attempts=ATTEMPTS if watch else 1) as client:
        show(lambda: read(client), output, watch=watch)
