"""Dead letters as commands find them through a gateway; replays are jobs there, which go on when the command ends."""

import shlex
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, cast

import typer

from fluxpool_cli.dlq import view
from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.gateway import ATTEMPTS, GatewayOptions
from fluxpool_cli.progress_bar import counting_bar
from fluxpool_cli.terminal import say
from fluxpool_client import Client, DeadLetterFields, NotFoundError, ReplayItem, StoredDeadLetter
from fluxpool_transport.dlq import DeadLetterEntry, DeadLetterFilter, RecordRef, ReplayChoices, check_choices

POLL_SECONDS: Final = 0.5
MAX_LETTERS: Final = 10_000
"""Of one job of a gateway."""
EXPORT_SECONDS: Final = 300.0
"""Longest silence of the gateway: it may look for few records on a long topic."""
SHOWN_TASKS: Final = 200
"""That a gateway names in the response to one dry run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDeadLetters:
    """Which gateway, and which dead letters are meant."""

    gateway: GatewayOptions
    wanted: DeadLetterFilter

    @property
    def topic(self) -> str:
        """The gateway, which knows the topic."""
        return self.gateway.place().url

    @property
    def options(self) -> tuple[str, ...]:
        """Name the gateway again."""
        given = {"--url": self.gateway.url, "--profile": self.gateway.profile}
        return tuple(word for name, text in given.items() if text is not None for word in (name, text))

    def entries(self) -> tuple[DeadLetterEntry, ...]:
        """Those that are meant, oldest failure first."""
        with self._client() as client:
            return self._entries(client)

    def document(self, dead_letter: str) -> dict[str, Any] | None:
        """The last one that is meant, with its record."""
        with self._client() as client:
            if "/" not in dead_letter:
                latest = client.dead_letters.page(limit=1, request_id=[dead_letter]).data
                if not latest:
                    return None
                dead_letter = latest[0].id
            try:
                found = client.dead_letters.show(dead_letter)
            except NotFoundError:
                return None
        entry, failure = _entry(found), found.dead_letter
        return {
            **view.entry_document(entry),
            "dead_letter": None if failure is None else failure.model_dump(mode="json", exclude_none=True),
            "key": found.key,
            "headers": [[header.name, header.value] for header in found.headers],
            "value": found.value,
            "value_hex": found.value_hex,
            "replay_command": view.replay_command(entry, self.options),
        }

    def export(self, *, form: str, records: bool, write: Callable[[bytes], object]) -> None:
        """Write those that are meant, as they come."""
        with self.gateway.client(timeout_seconds=EXPORT_SECONDS) as client:
            for piece in client.dead_letters.export_pieces(form, records=records, **self._filters()):
                write(piece)

    def replay(
        self, choices: ReplayChoices, *, rate: float | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What was refused and what was sent, or would be when there is no rate."""
        if choices.to_topic is not None:
            raise typer.BadParameter("is not used with --url; a gateway sends to task topics", param_hint="--to-topic")
        with self._client() as client:
            entries = self._entries(client)
            problem = check_choices(choices, count=len(entries))
            if problem is not None:
                raise typer.BadParameter(str(problem), param_hint="--patch")
            refused: list[dict[str, Any]] = []
            done: list[dict[str, Any]] = []
            at_once = SHOWN_TASKS if rate is None else MAX_LETTERS
            for start in range(0, len(entries), at_once):
                ids = [str(entry.ref) for entry in entries[start : start + at_once]]
                outcomes = (
                    self._preview(client, ids, choices) if rate is None else self._send(client, ids, choices, rate)
                )
                refused += outcomes[0]
                done += outcomes[1]
        request_ids = {str(entry.ref): entry.request_id for entry in entries}
        for document in refused:
            document["request_id"] = request_ids.get(document["record"])
            say(view.refusal_text(document))
        return refused, done

    def discard(self, reason: str, *, yes: bool) -> tuple[DeadLetterEntry, ...]:
        """Those that were discarded, or would be."""
        with self._client() as client:
            entries = self._entries(client)
            if yes:
                with counting_bar("discarding", total=len(entries)) as bar:
                    for entry in entries:
                        client.dead_letters.discard(str(entry.ref), reason=reason)
                        bar.advance(1)
        return entries

    def _client(self) -> AbstractContextManager[Client]:
        return self.gateway.client(max_attempts=ATTEMPTS)

    def _entries(self, client: Client) -> tuple[DeadLetterEntry, ...]:
        wanted, given = self.wanted, self._filters()
        with counting_bar(f"reading {self.topic}") as bar:
            found = []
            for item in client.dead_letters.all(**given):
                found.append(_entry(item))
                bar.advance(1)
        return wanted.select(found)

    def _filters(self) -> DeadLetterFields:
        wanted = self.wanted
        fields: dict[str, Any] = {
            "error_class": list(wanted.error_classes),
            "error_code": list(wanted.error_codes),
            "pool": list(wanted.pools),
            "request_id": list(wanted.request_ids),
            "since": wanted.since,
            "until": wanted.until,
        }
        if not wanted.include_resolved:
            fields["state"] = ["open"]
        return cast("DeadLetterFields", {name: value for name, value in fields.items() if value})

    def _preview(
        self, client: Client, ids: list[str], choices: ReplayChoices
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        preview = client.dead_letters.preview(**_fields(ids, choices))
        refused = [
            {
                "record": item.id,
                "request_id": item.request_id,
                "problems": [{"field": problem.field, "message": problem.message} for problem in item.problems],
            }
            for item in preview.refusals
        ]
        done = [
            {"record": item.id, "request_id": item.request_id, "epoch": item.epoch, "topic": item.topic}
            for item in preview.tasks
        ]
        return refused, done

    def _send(
        self, client: Client, ids: list[str], choices: ReplayChoices, rate: float
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        job = client.dead_letters.replay(rate_per_second=rate, **_fields(ids, choices))
        going_on = (
            f"the gateway goes on with the replay job {job.job_id}; end it with "
            f"`{shlex.join(['fluxpool', 'dlq', 'cancel', job.job_id, *self.options])}`"
        )
        with interruptible(going_on), counting_bar("sending", total=len(ids)) as bar:
            while job.state != "ended":
                time.sleep(POLL_SECONDS)
                job = client.dead_letters.job(job.job_id)
                bar.show("sending", job.sent + job.refused + job.skipped + job.canceled, len(ids))
        if job.problem:
            raise CommandError(ExitCode.FAILED, f"the replay job {job.job_id} failed: {job.problem}")
        refused: list[dict[str, Any]] = []
        done: list[dict[str, Any]] = []
        for item in client.dead_letters.items(job.job_id):
            document = _outcome(item)
            (done if item.outcome == "sent" else refused).append(document)
        return refused, done


def _fields(ids: list[str], choices: ReplayChoices) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "ids": ids,
        "drop_headers": sorted(choices.drop_headers),
        "max_replays": choices.max_replays,
        "force": choices.ignore_max_replays,
    }
    return fields if choices.patch is None else {**fields, "patch": choices.patch}


def _entry(item: StoredDeadLetter) -> DeadLetterEntry:
    return DeadLetterEntry(
        ref=RecordRef.parse(item.id),
        stored_at=item.stored_at,
        value_bytes=item.value_bytes,
        dead_letter=None if item.dead_letter is None else item.dead_letter.model_copy(update={"stack": None}),
        problem=item.problem or "",
        epoch=item.epoch,
        copies=tuple(map(RecordRef.parse, item.copies)),
        resolution=item.resolution,
    )


def _outcome(item: ReplayItem) -> dict[str, Any]:
    detail = dict(item.detail or {})
    if item.outcome in {"skipped", "canceled"}:
        detail = {"request_id": None, "problems": [{"field": "", "message": str(detail.get("reason"))}]}
    elif item.outcome == "refused":
        detail = {"request_id": None, **detail}
    return {"record": item.id, **detail}
