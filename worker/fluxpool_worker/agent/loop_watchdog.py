"""Ends the process when its event loop is blocked, before the consumer group's session of the member expires.

A blocked loop sends no heartbeats, answers no probe and handles no signal, so a thread watches it. It cannot see a call
into C that keeps the interpreter's lock, because that stops this thread too: the liveness probe can.

`faulthandler.dump_traceback_later(exit=True)` would see that too, but it also counts time in which the process did not
run: a worker that wakes up after SIGSTOP or with its machine would end, and it is to join its group again.
"""

import asyncio
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

EXIT_LOOP_BLOCKED: Final = 7
"""Exit code of the worker; lower ones are other failures and the engine's."""
LOOKS_PER_LIMIT: Final = 10
LOG_SECONDS: Final = 1.0
"""The log's pipe may be what blocks the loop: wait no longer for its last line."""

log = structlog.get_logger(__name__)


class BlockedTime:
    """Adds up how long a loop has not run, from looks at its count of signs of life.

    Only time in which this process ran counts. A late look means that neither thread nor loop ran: the process was
    stopped, its machine suspended, or too busy for both.
    """

    def __init__(self, *, look_seconds: float) -> None:
        """`look_seconds` is the time from one look to the next, when all is well."""
        self._most_seconds = 2 * look_seconds
        self._signs: int | None = None
        self._looked_at = 0.0
        self._seconds = 0.0

    def look(self, *, signs: int, now: float) -> float:
        """For how many seconds there has been no new sign of life; `now` is monotonic seconds."""
        if signs == self._signs:
            self._seconds += min(now - self._looked_at, self._most_seconds)
        else:
            self._seconds = 0.0
        self._signs, self._looked_at = signs, now
        return self._seconds


class _Watch:
    def __init__(self, loop: asyncio.AbstractEventLoop, *, limit_seconds: float) -> None:
        self._loop = loop
        self._loop_thread = threading.get_ident()
        self._limit_seconds = limit_seconds
        self._look_seconds = limit_seconds / LOOKS_PER_LIMIT
        self._signs = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="loop-watchdog", daemon=True)

    def start(self) -> None:
        self._give_sign()
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._next_sign.cancel()
        self._thread.join()

    def _give_sign(self) -> None:
        self._signs += 1
        self._next_sign = self._loop.call_later(self._look_seconds, self._give_sign)

    def _look_on(self) -> None:
        blocked = BlockedTime(look_seconds=self._look_seconds)
        while not self._ended.wait(self._look_seconds):
            seconds = blocked.look(signs=self._signs, now=time.monotonic())
            if seconds >= self._limit_seconds:
                self._end_process(seconds)

    def _end_process(self, seconds: float) -> None:
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to another thread
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "unknown"
        last_word = threading.Thread(
            target=lambda: log.error(
                "event_loop_blocked",
                blocked_seconds=round(seconds, 1),
                limit_seconds=round(self._limit_seconds, 1),
                exit_code=EXIT_LOOP_BLOCKED,
                stack=stack,
            ),
            daemon=True,
        )
        last_word.start()
        last_word.join(LOG_SECONDS)
        # Without commit and LeaveGroup: they need the loop. What was in flight is redelivered.
        os._exit(EXIT_LOOP_BLOCKED)


@contextmanager
def ending_when_blocked(*, limit_seconds: float) -> Iterator[None]:
    """Watch the running event loop; the process exits with `EXIT_LOOP_BLOCKED` once it was blocked for the limit.

    It takes a fifth of the limit longer at the most, and a second when even the log is blocked.
    """
    watch = _Watch(asyncio.get_running_loop(), limit_seconds=limit_seconds)
    watch.start()
    try:
        yield
    finally:
        watch.end()
