"""Dead letters as commands find them on Kafka: reads the topic, and writes to it."""

import getpass
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import typer

from fluxpool_cli.dlq import view
from fluxpool_cli.kafka.target import KafkaTarget, run_on
from fluxpool_cli.progress_bar import counting_bar
from fluxpool_transport.dlq import (
    DeadLetterEntry,
    DeadLetterFilter,
    DeadLetterReplayer,
    RefusedReplay,
    ReplayChoices,
    check_choices,
    csv_columns,
    csv_lines,
    original_of,
    read_dead_letters,
    read_each,
    read_records,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaDeadLetters:
    """Where to read, which dead letters are meant, and the options that name the place again."""

    target: KafkaTarget
    topic: str
    wanted: DeadLetterFilter
    options: tuple[str, ...]

    def entries(self) -> tuple[DeadLetterEntry, ...]:
        """Those that are meant, oldest failure first."""
        return run_on(self.target, self._read())

    def document(self, dead_letter: str) -> dict[str, Any] | None:  # noqa: ARG002 - `wanted` names it
        """The last one that is meant, with its record."""
        return run_on(self.target, self._document())

    def export(self, *, form: str, records: bool, write: Callable[[bytes], object]) -> None:
        """Write those that are meant; with their records in the order of the topic."""
        run_on(self.target, self._export(form, records=records, write=write))

    def replay(
        self, choices: ReplayChoices, *, rate: float | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What was refused and what was sent, or would be when there is no rate."""
        choices = replace(choices, retry_topics=frozenset(self.target.topics.retry))
        return run_on(self.target, self._replay(choices, rate=rate))

    def discard(self, reason: str, *, yes: bool) -> tuple[DeadLetterEntry, ...]:
        """Those that were discarded, or would be."""
        return run_on(self.target, self._discard(reason, yes=yes))

    async def _read(self) -> tuple[DeadLetterEntry, ...]:
        # Records are written after the failure they speak of, so the time bounds what must be read.
        with counting_bar(f"reading {self.topic}") as bar:
            found = await read_dead_letters(
                self.target.kafka, self.topic, since=self.wanted.since, on_progress=bar.advance
            )
        return self.wanted.select(found)

    async def _document(self) -> dict[str, Any] | None:
        entries = await self._read()
        async with aclosing(read_records(self.target.kafka, self.topic, entries[-1:])) as found:
            async for entry, record in found:
                return view.record_document(entry, record, command=view.replay_command(entry, self.options))
        return None

    async def _export(self, form: str, *, records: bool, write: Callable[[bytes], object]) -> None:
        entries = await self._read()
        if form == "csv":
            write(csv_lines([csv_columns(with_records=records)]))
        if not records:
            for entry in entries:
                write(view.export_line(entry, form))
            return
        with counting_bar("exporting", total=len(entries)) as bar:
            async with aclosing(read_each(self.target.kafka, self.topic, entries)) as found:
                async for entry, record in found:
                    original = None if record is None else original_of(record)
                    write(view.export_line(entry, form, with_record=True, original=original))
                    bar.advance(1)

    async def _replay(
        self, choices: ReplayChoices, *, rate: float | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        entries = await self._read()
        problem = check_choices(choices, count=len(entries))
        if problem is not None:
            raise typer.BadParameter(str(problem), param_hint="--patch")
        refused, done = [], []
        async with DeadLetterReplayer(self.target.kafka, self.topic, by=_user()) as replayer:
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

    async def _discard(self, reason: str, *, yes: bool) -> tuple[DeadLetterEntry, ...]:
        entries = await self._read()
        if yes:
            with counting_bar("discarding", total=len(entries)) as bar:
                async with DeadLetterReplayer(self.target.kafka, self.topic, by=_user()) as replayer:
                    async for _ in replayer.discard(entries, reason=reason):
                        bar.advance(1)
        return entries


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return None
