"""`fluxpool dlq`: look at dead letters, send their tasks again, discard them.

Owns the command line; what is read, checked and written is `fluxpool_transport.dlq.reading*`.
"""

import getpass
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from fluxpool_cli.arguments import finite
from fluxpool_cli.dlq import view
from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.kafka_run import run_on
from fluxpool_cli.kafka.kafka_target import DEFAULT_DATA_DIR, BootstrapOption, DataDirOption, KafkaTarget, find_target
from fluxpool_cli.moments import parse_moment
from fluxpool_cli.reading_bar import counting_bar, reading_bar
from fluxpool_cli.terminal import (
    JsonOption,
    OutputFormat,
    OutputOption,
    chosen_format,
    say,
    write_json,
    write_line,
    write_paragraph,
    write_table,
)
from fluxpool_contract.messages import DEAD_LETTER_PREFIX
from fluxpool_contract.problems import ErrorClass
from fluxpool_transport.dlq import (
    DEFAULT_MAX_REPLAYS,
    FOREIGN,
    DeadLetterEntry,
    DeadLetterFilter,
    DeadLetterReplayer,
    RecordRef,
    RefusedReplay,
    ReplayChoices,
    check_choices,
    read_dead_letters,
    read_records,
)

DEFAULT_RATE = 10.0
"""Replays a second: fast for a person, gentle for a pool that serves other people meanwhile."""

app = typer.Typer(no_args_is_help=True, help="Dead letters: look at them, send their tasks again, discard them.")

PlacesArgument = Annotated[
    list[str] | None, typer.Argument(help="Letters by partition/offset on the dead-letter topic, such as 2/17.")
]
ClassOption = Annotated[list[str] | None, typer.Option("--class", help="Only this error class; may be repeated.")]
CodeOption = Annotated[list[str] | None, typer.Option("--code", help="Only this error code; may be repeated.")]
PoolOption = Annotated[list[str] | None, typer.Option("--pool", help="Only letters of this pool; may be repeated.")]
IdOption = Annotated[list[str] | None, typer.Option("--request-id", help="Only this task; may be repeated.")]
SinceOption = Annotated[
    str | None, typer.Option(help="Only failures from then on: 24h or 7d ago, or a time such as 2026-04-05T10:00:00Z.")
]
UntilOption = Annotated[str | None, typer.Option(help="Only failures before; written as --since.")]
TopicOption = Annotated[
    str | None, typer.Option(help="The dead-letter topic; by default FLUXPOOL_TOPICS_DEAD_LETTERS, else flux-dlq.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Also those that were replayed or discarded.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it; without this nothing is written.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where to read, what is meant, and the options that name it again."""

    target: KafkaTarget
    topic: str
    wanted: DeadLetterFilter
    options: tuple[str, ...]

    async def select(self) -> tuple[DeadLetterEntry, ...]:
        # Records are written after the failure they speak of, so the time bounds what must be read.
        with reading_bar(f"reading {self.topic}") as bar:
            found = await read_dead_letters(
                self.target.kafka, self.topic, since=self.wanted.since, on_progress=bar.advance
            )
        return self.wanted.select(found)


@app.command()
def summary(
    *,
    error_class: ClassOption = None,
    code: CodeOption = None,
    pool: PoolOption = None,
    request_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    topic: TopicOption = None,
    bootstrap_servers: BootstrapOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    output: OutputOption = OutputFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Count dead letters by class, code and pool, with the latest of each as an example."""
    wanted = _filter(
        places=[],
        error_class=error_class,
        code=code,
        pool=pool,
        request_id=request_id,
        since=since,
        until=until,
        include_resolved=True,
    )
    source = _source(bootstrap_servers, data_dir, topic, wanted)
    summaries = view.summarize(run_on(source.target, source.select()))
    if chosen_format(output, as_json=as_json) is OutputFormat.JSON:
        write_json({"topic": source.topic, "causes": [item.document() for item in summaries]})
    else:
        _print_table(
            view.summary_table(summaries), optional=view.SUMMARY_OPTIONAL, empty=f"no dead letters on {source.topic}"
        )


@app.command(name="list")
def list_letters(
    *,
    error_class: ClassOption = None,
    code: CodeOption = None,
    pool: PoolOption = None,
    request_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    include_resolved: AllOption = False,
    limit: Annotated[int, typer.Option(min=1, help="Show the newest so many.")] = 50,
    topic: TopicOption = None,
    bootstrap_servers: BootstrapOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    output: OutputOption = OutputFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """List the open dead letters, oldest failure first."""
    wanted = _filter(
        places=[],
        error_class=error_class,
        code=code,
        pool=pool,
        request_id=request_id,
        since=since,
        until=until,
        include_resolved=include_resolved,
    )
    source = _source(bootstrap_servers, data_dir, topic, wanted)
    entries = run_on(source.target, source.select())
    shown = entries[-limit:]
    if chosen_format(output, as_json=as_json) is OutputFormat.JSON:
        write_json(
            {
                "topic": source.topic,
                "matching": len(entries),
                "letters": [view.entry_document(entry) for entry in shown],
            }
        )
        return
    _print_table(
        view.list_table(shown), optional=view.LIST_OPTIONAL, empty=f"no dead letters that fit on {source.topic}"
    )
    if len(shown) < len(entries):
        say(f"{len(entries) - len(shown)} older ones are not shown; raise --limit, or narrow the filter")


@app.command()
def show(
    letter: Annotated[str, typer.Argument(help="partition/offset such as 2/17, or a request id (its latest letter).")],
    *,
    topic: TopicOption = None,
    bootstrap_servers: BootstrapOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    output: OutputOption = OutputFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show everything about one dead letter: headers, original bytes, stack, and the command that replays it."""
    by_place = "/" in letter
    wanted = DeadLetterFilter(
        refs=_refs([letter]) if by_place else (), request_ids=() if by_place else (letter,), include_resolved=True
    )
    source = _source(bootstrap_servers, data_dir, topic, wanted)

    async def read() -> dict[str, Any]:
        entries = await source.select()
        async with aclosing(read_records(source.target.kafka, source.topic, entries[-1:])) as found:
            async for entry, record in found:
                command = view.replay_command(entry, source.options)
                return view.record_document(entry, record, command=command)
        raise CommandError(
            ExitCode.FAILED,
            f"{source.topic} holds no dead letter {letter}; `fluxpool dlq list --all` shows what is there",
        )

    document = run_on(source.target, read())
    if chosen_format(output, as_json=as_json) is OutputFormat.JSON:
        write_json(document)
        return
    for part in view.record_parts(document):
        if isinstance(part, view.Block):
            write_paragraph(part.text)
        else:
            write_line(part)


@app.command()
def replay(
    places: PlacesArgument = None,
    *,
    error_class: ClassOption = None,
    code: CodeOption = None,
    pool: PoolOption = None,
    request_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
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
    topic: TopicOption = None,
    bootstrap_servers: BootstrapOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    output: OutputOption = OutputFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Send the tasks of open dead letters again; without --yes only say what would be sent and what would fail again.

    Exits 0 when every letter was sent (or would be looked at), 1 when with --yes some were refused, 3 when Kafka did
    not confirm; the same command then goes on with what is open.
    """
    choices = ReplayChoices(
        patch=_patch(patch),
        drop_headers=_droppable(drop_header or []),
        to_topic=to_topic,
        max_replays=max_replays,
        ignore_max_replays=force,
    )
    wanted = _filter(
        places=places or [],
        error_class=error_class,
        code=code,
        pool=pool,
        request_id=request_id,
        since=since,
        until=until,
    )
    source = _source(bootstrap_servers, data_dir, topic, wanted)
    choices = replace(choices, retry_topics=frozenset(source.target.topics.retry))
    refused, done = run_on(source.target, _replay(source, choices, rate=rate if yes else None))
    if chosen_format(output, as_json=as_json) is OutputFormat.JSON:
        write_json({"topic": source.topic, "dry_run": not yes, "sent" if yes else "to_send": done, "refused": refused})
    else:
        by_topic = Counter(item["topic"] for item in done)
        where = ", ".join(f"{count} to {name}" for name, count in by_topic.items()) or "nothing"
        verb = "sent" if yes else "would be sent"
        write_line(f"{where} {verb}, {len(refused)} refused")
        if not yes and done:
            say("this was a dry run; add --yes to send")
        if refused:
            say("correct a field with --patch, leave a header out with --drop-header, or discard the letter")
    if yes and refused:
        raise typer.Exit(ExitCode.FAILED)


@app.command()
def discard(
    places: PlacesArgument = None,
    *,
    reason: Annotated[str, typer.Option(help="Why; kept in the note.")],
    error_class: ClassOption = None,
    code: CodeOption = None,
    pool: PoolOption = None,
    request_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    yes: YesOption = False,
    topic: TopicOption = None,
    bootstrap_servers: BootstrapOption = None,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    output: OutputOption = OutputFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Mark open dead letters as dealt with: no replay takes them again; they stay on the topic until they expire."""
    if not reason.strip():
        raise typer.BadParameter("must say why, in words", param_hint="--reason")
    wanted = _filter(
        places=places or [],
        error_class=error_class,
        code=code,
        pool=pool,
        request_id=request_id,
        since=since,
        until=until,
    )
    source = _source(bootstrap_servers, data_dir, topic, wanted)
    entries = run_on(source.target, _discard(source, reason=reason.strip(), yes=yes))
    if chosen_format(output, as_json=as_json) is OutputFormat.JSON:
        write_json({"topic": source.topic, "dry_run": not yes, "letters": [str(entry.ref) for entry in entries]})
        return
    letters = "1 letter" if len(entries) == 1 else f"{len(entries)} letters"
    write_line(f"{letters} {'discarded' if yes else 'would be discarded'}")
    if not yes and entries:
        say("this was a dry run; add --yes to discard")


async def _replay(
    source: _Source, choices: ReplayChoices, *, rate: float | None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What was refused and what was sent, or would be when there is no rate."""
    entries = await source.select()
    problem = check_choices(choices, count=len(entries))
    if problem is not None:
        raise typer.BadParameter(str(problem), param_hint="--patch")
    refused, done = [], []
    async with DeadLetterReplayer(source.target.kafka, source.topic, by=_user()) as replayer:
        outcomes = (
            replayer.plan(entries, choices) if rate is None else replayer.replay(entries, choices, per_second=rate)
        )
        with counting_bar("checking" if rate is None else "sending", total=len(entries)) as bar:
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    bar.advance(1)
                    if isinstance(outcome, RefusedReplay):
                        bar.note(view.refusal_line(outcome))
                        refused.append(view.outcome_document(outcome))
                    else:
                        done.append(view.outcome_document(outcome))
    return refused, done


async def _discard(source: _Source, *, reason: str, yes: bool) -> tuple[DeadLetterEntry, ...]:
    entries = await source.select()
    if yes:
        with counting_bar("discarding", total=len(entries)) as bar:
            async with DeadLetterReplayer(source.target.kafka, source.topic, by=_user()) as replayer:
                async for _ in replayer.discard(entries, reason=reason):
                    bar.advance(1)
    return entries


def _source(bootstrap_servers: str | None, data_dir: Path, topic: str | None, wanted: DeadLetterFilter) -> _Source:
    given = {"--topic": topic, "--bootstrap-servers": bootstrap_servers}
    target = find_target(bootstrap_servers, data_dir)
    return _Source(
        target=target,
        topic=topic or target.topics.dead_letters,
        wanted=wanted,
        options=tuple(word for name, text in given.items() if text is not None for word in (name, text)),
    )


def _filter(
    *,
    places: Sequence[str],
    error_class: Sequence[str] | None,
    code: Sequence[str] | None,
    pool: Sequence[str] | None,
    request_id: Sequence[str] | None,
    since: str | None,
    until: str | None,
    include_resolved: bool = False,
) -> DeadLetterFilter:
    now = datetime.now(UTC)
    begin = None if since is None else parse_moment(since, now=now, option="--since")
    end = None if until is None else parse_moment(until, now=now, option="--until")
    if begin is not None and end is not None and begin >= end:
        raise typer.BadParameter(f"{until} is not after --since {since}; swap them", param_hint="--until")
    return DeadLetterFilter(
        refs=_refs(places),
        request_ids=tuple(request_id or ()),
        error_classes=_classes(error_class or ()),
        error_codes=tuple(code or ()),
        pools=tuple(pool or ()),
        since=begin,
        until=end,
        include_resolved=include_resolved,
    )


def _classes(names: Sequence[str]) -> tuple[str, ...]:
    known = (*ErrorClass, FOREIGN)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} must be one of {', '.join(known)}", param_hint="--class")
    return tuple(names)


def _refs(texts: Sequence[str]) -> tuple[RecordRef, ...]:
    try:
        return tuple(map(RecordRef.parse, texts))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


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
            raise typer.BadParameter(
                f"{name} says why the task failed and is never sent along", param_hint="--drop-header"
            )
    return frozenset(names)


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return None


def _print_table(table: tuple[Sequence[str], list[tuple[str, ...]]], *, optional: Sequence[str], empty: str) -> None:
    columns, rows = table
    if rows:
        write_table(columns, rows, optional=optional)
    else:
        say(empty)
