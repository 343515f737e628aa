"""A run of a batch: submits its lines under keys that a second run repeats, waits for the group, saves images.

Nothing is kept on this machine but the images: the gateway knows by key and group what was submitted, so a run that was
killed is continued by the same command.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

from fluxpool_cli.batch.prompt_file import Line, PromptFile, chunks
from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import field_lines
from fluxpool_cli.progress_bar import Bar
from fluxpool_cli.submit.image_files import write_image
from fluxpool_client import (
    BatchItem,
    Client,
    Group,
    NotFoundError,
    RateLimitedError,
    Task,
    TaskStatus,
    UnavailableError,
    UnreachableError,
)

POLL_SECONDS: Final = 1.0
SAVE_EVERY_SECONDS: Final = 10.0
"""Between two looks for new images: each reads the list of all that succeeded."""
REPEAT_SECONDS: Final = 1.0
_PASSING: Final = frozenset(
    {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}
)
_IN_PROGRESS: Final = "idempotency_in_progress"
_PAGE: Final = 200

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Refused:
    """A line that the gateway did not take, and why."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A task that ended without images, and why."""

    line: int
    request_id: str
    status: str
    reason: str


@dataclass(slots=True)
class Outcome:
    """What became of a batch."""

    name: str
    refused: list[Refused] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Its tasks by status."""
    failed: list[Failed] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether every line has its images."""
        return not self.refused and self.counts.keys() <= {"succeeded"}


@dataclass(slots=True)
class BatchRun:
    """One run; every method raises `CommandError`, and `FluxpoolError` for what the gateway refuses."""

    client: Client
    prompts: PromptFile
    name: str
    bar: Bar
    until_seconds: float
    """On the monotonic clock."""
    folder: Path | None = None
    line_of: dict[str, int] = field(default_factory=dict)
    """By the ids of tasks."""
    saved: dict[str, list[Path]] = field(default_factory=dict)

    def submit(self) -> list[Refused]:
        """Queue every line; returns those that the gateway refused. Waits where a limit of the tenant is reached."""
        refused: list[Refused] = []
        total = len(self.prompts.lines)
        for chunk in chunks(self.prompts.lines):
            left = chunk
            while left:
                items = self._patiently(partial(self._send, left))
                again = []
                for line, item in zip(left, items, strict=True):
                    if item.request_id is not None:
                        self.line_of[item.request_id] = line.number
                    elif item.code in _PASSING or (item.error is not None and item.error.code == _IN_PROGRESS):
                        again.append(line)
                    else:
                        refused.append(Refused(line.number, _reason(item)))
                self.bar.show("submitted", len(self.line_of) + len(refused), total)
                left = again
                if left:
                    self._pause(
                        REPEAT_SECONDS, f"{len(left)} requests of a part are not accepted: {_reason(items[-1])}"
                    )
        return refused

    def wait(self) -> list[Task]:
        """Wait for the end of every task, and save images meanwhile; returns the tasks."""
        saved_at = time.monotonic()
        while self.line_of:
            group = self._patiently(self._group)
            counts = {} if group is None else group.counts
            self.bar.show(_counts_text(counts), sum(counts.values()) - _open(counts), len(self.line_of))
            # The group may have tasks of an earlier run, and lack some of this one until the store has caught up.
            if group is not None and group.ended and group.total >= len(self.line_of):
                tasks = self._tasks()
                if len(tasks) == len(self.line_of):
                    return tasks
            if self.folder is not None and time.monotonic() - saved_at >= SAVE_EVERY_SECONDS:
                self._save_images(self._tasks(TaskStatus.SUCCEEDED))
                saved_at = time.monotonic()
            self._pause(POLL_SECONDS, f"{_counts_text(counts)}; they go on")
        return []

    def finish(self, refused: list[Refused], tasks: list[Task]) -> Outcome:
        """What became of the batch, with the images of these tasks saved."""
        self._save_images(tasks)
        files = sorted(file for saved in self.saved.values() for file in saved)
        outcome = Outcome(self.name, refused, files=files)
        for task in tasks:
            outcome.counts[str(task.status)] += 1
            if task.ended and not task.succeeded:
                reason = "" if task.error is None else f"{task.error.message} ({task.error.code})"
                line = self.line_of[task.request_id]
                outcome.failed.append(Failed(line, task.request_id, str(task.status), reason))
        outcome.failed.sort(key=lambda failed: failed.line)
        return outcome

    def _save_images(self, tasks: list[Task]) -> None:
        """Save the images that are not saved yet, as `{line}-{index}.{extension}`."""
        if self.folder is None:
            return
        for task in tasks:
            if task.succeeded and task.request_id not in self.saved:
                contents = self._patiently(partial(self.client.download, task))
                stem = f"{self.line_of[task.request_id]:05}"
                files = [self.folder / f"{stem}-{image.index}.{image.extension}" for image in task.images]
                for file, content in zip(files, contents, strict=True):
                    write_image(file, content)
                self.saved[task.request_id] = files

    def _send(self, lines: list[Line]) -> tuple[BatchItem, ...]:
        return self.client.submit_many(
            [{**line.request, "group_id": self.name, "idempotency_key": f"{self.name}:{line.number}"} for line in lines]
        )

    def _group(self) -> Group | None:
        """None while the store does not know of it."""
        try:
            return self.client.group(self.name)
        except NotFoundError:
            return None

    def _tasks(self, *statuses: str) -> list[Task]:
        """The tasks of this run; a group may have others, of lines that the file no longer has."""

        def read() -> list[Task]:
            wanted = statuses or tuple(TaskStatus)
            return list(self.client.tasks(group_id=self.name, status=wanted, order="asc", limit=_PAGE))

        return [task for task in self._patiently(read) if task.request_id in self.line_of]

    def _patiently(self, call: Callable[[], T]) -> T:
        """The result of a call, which is repeated while the gateway is away."""
        while True:
            try:
                return call()
            except (UnavailableError, UnreachableError, RateLimitedError) as error:
                self._pause(REPEAT_SECONDS, str(error))

    def _pause(self, seconds: float, state: str) -> None:
        left = self.until_seconds - time.monotonic()
        if left <= 0:
            raise CommandError(
                ExitCode.TIMED_OUT, f"not finished in time: {state}; the same command goes on with {self.name}"
            )
        time.sleep(min(seconds, left))


def _reason(item: BatchItem) -> str:
    if item.errors:
        return "; ".join(field_lines(item.errors))
    return f"HTTP {item.code}" if item.error is None else item.error.message


def _open(counts: dict[str, int]) -> int:
    return counts.get("queued", 0) + counts.get("running", 0)


def _counts_text(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "no task known yet"
