"""`fluxpool dlq`: lists and exports dead letters, replays their tasks, discards them, cancels replay jobs.

Owns the commands and their results; `options` says which dead letters are meant, `fluxpool_transport.dlq` reads,
checks and writes.
"""

import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.dlq import view
from fluxpool_cli.dlq.jobs import job_counts, job_document, job_result, jobs_result
from fluxpool_cli.dlq.options import (
    AllOption,
    FilterOptions,
    PlacesArgument,
    SourceOptions,
    YesOption,
    parse_refs,
)
from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.gateway import ATTEMPTS, GatewayOptions
from fluxpool_cli.options import finite, printable_path, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.whole_file import whole_file
from fluxpool_contract.messages import DEAD_LETTER_PREFIX
from fluxpool_transport.dlq import DEFAULT_MAX_REPLAYS, DeadLetterFilter, ReplayChoices

DEFAULT_RATE = 10.0
"""Replays a second: fast for a person, a small load for a pool that serves others."""
_GOING_ON: Final = "what was done stays done; the same command goes on with the dead letters that are still open"

app = typer.Typer(no_args_is_help=True, help="List and export dead letters, replay their tasks, discard them.")


@app.command()
@with_option_groups
def summary(*, chosen: FilterOptions, source: SourceOptions, output: OutputOptions) -> None:
    """Count dead letters by class, code and pool, with the latest of each as an example."""
    dead_letters = source.dead_letters(chosen.filter(include_resolved=True))
    summaries = view.summarize(dead_letters.entries())
    table = Table(
        view.SUMMARY_COLUMNS,
        [item.row() for item in summaries],
        optional=view.SUMMARY_OPTIONAL,
        empty=f"no dead letters on {dead_letters.topic}",
    )
    document = {"topic": dead_letters.topic, "causes": [item.document() for item in summaries]}
    names = [str(item.entries[-1].ref) for item in summaries]
    write_result(Result(document=document, parts=[table], names=names), output)


@app.command(name="list")
@with_option_groups
def list_dead_letters(
    *,
    chosen: FilterOptions,
    include_resolved: AllOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Show the newest so many.")] = 50,
    source: SourceOptions,
    output: OutputOptions,
) -> None:
    """List the open dead letters, oldest failure first."""
    dead_letters = source.dead_letters(chosen.filter(include_resolved=include_resolved))
    entries = dead_letters.entries()
    shown = entries[-limit:]
    older = len(entries) - len(shown)
    result = Result(
        document={
            "topic": dead_letters.topic,
            "matching": len(entries),
            "dead_letters": [view.entry_document(entry) for entry in shown],
        },
        parts=[
            Table(
                view.LIST_COLUMNS,
                [view.list_row(entry) for entry in shown],
                optional=view.LIST_OPTIONAL,
                empty=f"no matching dead letters on {dead_letters.topic}",
            )
        ],
        names=[str(entry.ref) for entry in shown],
        notes=[f"{older} older ones are not shown; raise --limit, or narrow the filter"] if older else (),
    )
    write_result(result, output)


@app.command()
@with_option_groups
def show(
    dead_letter: Annotated[
        str, typer.Argument(help="partition/offset such as 2/17, or a request id (its latest dead letter).")
    ],
    *,
    source: SourceOptions,
    output: OutputOptions,
) -> None:
    """Show everything about one dead letter: headers, original bytes, stack, and the command that replays it."""
    by_ref = "/" in dead_letter
    wanted = DeadLetterFilter(
        refs=parse_refs([dead_letter]) if by_ref else (),
        request_ids=() if by_ref else (dead_letter,),
        include_resolved=True,
    )
    dead_letters = source.dead_letters(wanted)

    document = dead_letters.document(dead_letter)
    if document is None:
        raise CommandError(
            ExitCode.FAILED,
            f"{dead_letters.topic} holds no dead letter {dead_letter}; `fluxpool dlq list --all` shows what is there",
        )
    write_result(Result(document=document, parts=list(view.record_parts(document)), names=[document["record"]]), output)


class ExportFormat(StrEnum):
    """The form of an export."""

    JSONL = "jsonl"
    CSV = "csv"


@app.command()
@with_option_groups
def export(
    file: Annotated[Path, typer.Argument(callback=printable_path, help="File to write; it is replaced.")],
    *,
    chosen: FilterOptions,
    include_resolved: AllOption = False,
    form: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="jsonl or csv; by default what the file's name ends in, else jsonl."),
    ] = None,
    records: Annotated[
        bool,
        typer.Option(
            "--records", help="Also key, headers and value of each original record, which may contain prompts."
        ),
    ] = False,
    source: SourceOptions,
    output: OutputOptions,
) -> None:
    """Write the open dead letters into a file, whole or not at all.

    JSONL has the bytes of keys, headers and values as text where they are UTF-8, else as base64. In CSV, cells that a
    spreadsheet would take for formulas begin with an apostrophe, and control characters are escaped.
    """
    dead_letters = source.dead_letters(chosen.filter(include_resolved=include_resolved))
    written = form or (ExportFormat.CSV if file.suffix == ".csv" else ExportFormat.JSONL)
    with whole_file(file) as write:
        dead_letters.export(form=written.value, records=records, write=write)
    size = file.stat().st_size
    document = {"file": str(file), "bytes": size, "format": written.value, "records": records}
    write_result(Result(document=document, names=[str(file)], notes=[f"{size:,} bytes in {file}"]), output)


@app.command()
@with_option_groups
def replay(
    places: PlacesArgument = None,
    *,
    chosen: FilterOptions,
    yes: YesOption = False,
    rate: Annotated[
        float, typer.Option(min=0.01, max=10_000, help="Tasks a second at most.", callback=finite)
    ] = DEFAULT_RATE,
    patch: Annotated[
        str | None, typer.Option(help='JSON merge patch for each task, such as {"width": 1008}; null removes a field.')
    ] = None,
    drop_header: Annotated[
        list[str] | None, typer.Option(help="Leave this header of the original out; may be repeated.")
    ] = None,
    to_topic: Annotated[str | None, typer.Option(help="Send there instead of where the task came from.")] = None,
    max_replays: Annotated[
        int, typer.Option(min=1, help="Refuse a task that was replayed as often.")
    ] = DEFAULT_MAX_REPLAYS,
    force: Annotated[bool, typer.Option("--force", help="Send it however often it was replayed.")] = False,
    source: SourceOptions,
    output: OutputOptions,
) -> None:
    """Send the tasks of open dead letters again; without --yes only show what would be sent and what would be refused.

    Exits 0 when every task was sent (or would be looked at), 1 when with --yes some were refused, 3 when Kafka did
    not acknowledge; the same command then continues with the open ones.
    """
    choices = ReplayChoices(
        patch=_patch(patch),
        drop_headers=_droppable(drop_header or []),
        to_topic=to_topic,
        max_replays=max_replays,
        ignore_max_replays=force,
    )
    dead_letters = source.dead_letters(chosen.filter(places))
    with interruptible(_GOING_ON if yes else "nothing was sent"):
        refused, done = dead_letters.replay(choices, rate=rate if yes else None)
    by_topic = Counter(item["topic"] for item in done)
    where = ", ".join(f"{count} to {name}" for name, count in by_topic.items()) or "nothing"
    notes = ["this was a dry run; add --yes to send"] if done and not yes else []
    if refused:
        notes.append("correct a field with --patch, leave a header out with --drop-header, or discard the dead letter")
    result = Result(
        document={
            "topic": dead_letters.topic,
            "dry_run": not yes,
            "sent" if yes else "to_send": done,
            "refused": refused,
        },
        parts=[f"{where} {'sent' if yes else 'would be sent'}, {len(refused)} refused"],
        names=[item["record"] for item in done],
        notes=notes,
    )
    write_result(result, output)
    if yes and refused:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
@with_option_groups
def discard(
    places: PlacesArgument = None,
    *,
    reason: Annotated[str, typer.Option(help="Reason; stored in the resolution.")],
    chosen: FilterOptions,
    yes: YesOption = False,
    source: SourceOptions,
    output: OutputOptions,
) -> None:
    """Mark open dead letters as discarded: no replay sends them; they stay on the topic until they expire."""
    if not reason.strip():
        raise typer.BadParameter("must not be blank", param_hint="--reason")
    dead_letters = source.dead_letters(chosen.filter(places))
    with interruptible(_GOING_ON if yes else "nothing was discarded"):
        entries = dead_letters.discard(reason.strip(), yes=yes)
    refs = [str(entry.ref) for entry in entries]
    count = "1 dead letter" if len(entries) == 1 else f"{len(entries)} dead letters"
    result = Result(
        document={"topic": dead_letters.topic, "dry_run": not yes, "dead_letters": refs},
        parts=[f"{count} {'discarded' if yes else 'would be discarded'}"],
        names=refs,
        notes=["this was a dry run; add --yes to discard"] if entries and not yes else (),
    )
    write_result(result, output)


@app.command()
@with_option_groups
def jobs(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Only this one, with its dead letters.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=100, help="Show the newest so many.")] = 20,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """List the replay jobs of a gateway, the newest first; or what became of the dead letters of one."""
    with gateway.client(max_attempts=ATTEMPTS) as client:
        if job is not None:
            write_result(job_result(client.dead_letters.job(job), client.dead_letters.items(job)), output)
            return
        page = client.dead_letters.jobs(limit=limit)
    write_result(jobs_result(page.data, has_more=page.next_cursor is not None), output)


@app.command()
@with_option_groups
def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Id of a replay job of the gateway.")],
    *,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Cancel a replay job of a gateway.

    What was sent stays sent; dead letters whose turn had not come stay open. A job that runs ends after the task that
    is being sent. A job that has ended is left as it is.
    """
    with gateway.client(max_attempts=ATTEMPTS) as client:
        found = client.dead_letters.cancel(job)
    state = "ended" if found.state == "ended" else "cancel requested"
    result = Result(
        document=job_document(found), parts=[f"{found.job_id} {state}: {job_counts(found)}"], names=[found.job_id]
    )
    write_result(result, output)


def _patch(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        patch = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"is not JSON ({error})", param_hint="--patch") from None
    if not isinstance(patch, dict):
        raise typer.BadParameter('must be a JSON object such as {"width": 1008}', param_hint="--patch")
    return patch


def _droppable(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name.startswith(DEAD_LETTER_PREFIX):
            raise typer.BadParameter(f"{name} describes the failure and is never sent", param_hint="--drop-header")
    return frozenset(names)
