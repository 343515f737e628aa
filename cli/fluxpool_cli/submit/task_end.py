"""Waits for the end of a task: follows its events, and polls its state while there is no stream of them.

Owns the intervals and what is shown meanwhile; `polling` repeats requests that fail.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.progress_bar import Bar, counting_bar
from fluxpool_cli.submit.polling import INTERVAL_SECONDS, Deadline, TimeIsOverError, patiently
from fluxpool_client import AcceptedTask, AsyncClient, Client, FluxpoolError, PreviewedTask, Task

STREAM_EVERY_SECONDS: Final = 5.0
"""Between the beginnings of two streams; the gateway may be stopping, or have no place for another reader."""
FIRST_STATE_SECONDS: Final = 5.0
"""The gateway sends the state at once; a proxy may keep a response back until its end, here that of the task."""
_HOPE_SECONDS: Final = 1.0
"""Between two looks at whether anything can come of the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskWait:
    """How a command waits for tasks of a gateway."""

    gateway: Client
    open_stream: Callable[[], AsyncClient]
    """Makes the client of one stream, which is not to open it again by itself."""
    deadline: Deadline
    hopeless: Callable[[], str | None] = lambda: None
    """Why nothing can come of the task, if that is so."""

    def until_ended(self, task: AcceptedTask | Task) -> Task:
        """The task once it has ended, showing every change.

        Raises `CommandError`: 5 when the time is over, 1 when it is hopeless; and what the gateway refuses.
        """
        if isinstance(task, Task) and task.ended:
            return task
        with counting_bar(task.status) as bar:
            shown = _Shown(bar, task)
            stream_at_seconds = time.monotonic()
            while True:
                if time.monotonic() >= stream_at_seconds:
                    stream_at_seconds = time.monotonic() + STREAM_EVERY_SECONDS
                    asyncio.run(self._follow(shown))
                # The stream was cut, refused or silent, or the time is over; a request says which of these.
                if shown.ended is None:
                    self._poll(shown)
                if shown.ended is not None:
                    return shown.ended
                self._check_hope(shown)
                if self.deadline.remaining_seconds == 0.0:
                    raise self._still_unfinished(shown)
                time.sleep(min(INTERVAL_SECONDS, self.deadline.remaining_seconds))

    async def _follow(self, shown: "_Shown") -> None:
        """Show the states of a stream up to its end, or that of the time."""
        following = asyncio.create_task(self._show_states(shown))
        first_until_seconds = time.monotonic() + FIRST_STATE_SECONDS
        try:
            while (seconds := self.deadline.remaining_seconds) > 0.0 and not following.done():
                self._check_hope(shown)
                if not shown.of_stream and time.monotonic() > first_until_seconds:
                    return
                await asyncio.wait({following}, timeout=min(_HOPE_SECONDS, FIRST_STATE_SECONDS, seconds))
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError, FluxpoolError):
                await following

    async def _show_states(self, shown: "_Shown") -> None:
        shown.of_stream = False
        async with self.open_stream() as client:
            async for task in client.events(shown.task.request_id):
                shown.of_stream = True
                if not isinstance(task, PreviewedTask):
                    shown.show(task)

    def _poll(self, shown: "_Shown") -> None:
        request_id = shown.task.request_id
        try:
            task = patiently(
                lambda: self.gateway.get(request_id, timeout_seconds=max(1.0, self.deadline.remaining_seconds)),
                deadline=self.deadline,
            )
        except TimeIsOverError:
            raise self._still_unfinished(shown) from None
        shown.show(task)

    def _check_hope(self, shown: "_Shown") -> None:
        if shown.ended is None and (why := self.hopeless()) is not None:
            raise CommandError(ExitCode.FAILED, f"{shown.task.request_id} waits, but the workers cannot start: {why}")

    def _still_unfinished(self, shown: "_Shown") -> CommandError:
        task = shown.task
        return CommandError(
            ExitCode.TIMED_OUT,
            f"{task.request_id} is still {task.status} after {self.deadline.timeout_seconds:g} s and continues; "
            f"see {task.status_url} for its result, or wait longer with --timeout",
        )


@dataclass(slots=True)
class _Shown:
    """The last state of the task, as it is shown."""

    bar: Bar
    task: AcceptedTask | Task
    of_stream: bool = False
    """Whether the stream brought a state."""
    line: str = ""

    @property
    def ended(self) -> Task | None:
        """The task, if it has ended."""
        return self.task if isinstance(self.task, Task) and self.task.ended else None

    def show(self, task: Task) -> None:
        """Show another state, unless it looks like the last one."""
        self.task = task
        progress = None if task.ended or not task.progress or task.progress.total_steps <= 0 else task.progress
        self.bar.show(task.status, *((progress.step, progress.total_steps) if progress else (0, None)))
        line = task.status + (f" step {progress.step} of {progress.total_steps}" if progress else "")
        if line != self.line:
            self.bar.say_where_hidden(line)
        self.line = line
