"""`fluxpool trace`: the timeline of one task, read from Kafka."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.target import KafkaTarget, TargetOptions, find_target, run_on
from fluxpool_cli.options import parse_time_option, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.progress_bar import counting_bar
from fluxpool_cli.terminal import say, utc_text
from fluxpool_cli.trace.reading import Trace, read_trace, reading_start
from fluxpool_cli.trace.view import COLUMNS, OPTIONAL_COLUMNS, closing_lines, trace_document, trace_rows
from fluxpool_contract.messages import check_request_id


@with_option_groups
def trace(
    request_id: Annotated[str, typer.Argument(help="The task's id.")],
    *,
    since: Annotated[
        str | None,
        typer.Option(
            help="Read records from then on: 24h or 7d ago, or a time such as 2026-04-05T10:00:00Z. By default from "
            "when the gateway made the id; for any other id all there is."
        ),
    ] = None,
    kafka: TargetOptions,
    output: OutputOptions,
) -> None:
    """Show a task's life across topics and workers.

    Exits 0 when anything was found, 1 when nothing was, 2 for a malformed id, 3 when Kafka does not answer.
    """
    try:
        check_request_id(request_id)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="REQUEST_ID") from None
    start = (
        reading_start(request_id)
        if since is None
        else parse_time_option(since, now=datetime.now(UTC), option="--since")
    )
    target = find_target(kafka.bootstrap_servers, kafka.data_dir)
    found = run_on(target, _read(target, request_id, start))
    for topic in found.missing_topics:
        say(f"topic {topic} does not exist, so nothing was read from it")
    if not found.events:
        where = "all that the topics hold" if start is None else f"what was written since {utc_text(start)} UTC"
        raise CommandError(ExitCode.FAILED, f"nothing about {request_id} in {where}; check the id, --since and topics")
    table = Table(COLUMNS, trace_rows(found.events), optional=OPTIONAL_COLUMNS)
    write_result(
        Result(document=trace_document(found), parts=[table, "", *closing_lines(found)], names=[request_id]), output
    )


async def _read(target: KafkaTarget, request_id: str, since: datetime | None) -> Trace:
    with counting_bar("reading topics") as bar:
        return await read_trace(target, request_id, since=since, bar=bar)
