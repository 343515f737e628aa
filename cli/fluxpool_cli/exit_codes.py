"""How a command ends: the exit codes of every command, and the error that carries one."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """What a script may branch on; docs/reference/cli.md has each with its meaning."""

    OK = 0
    FAILED = 1
    """A task, or a part of what was asked for, failed or expired."""
    USAGE = 2
    """The command line, or the request that it made, was refused."""
    UNREACHABLE = 3
    """Kafka, the gateway, the cluster or the local stack does not answer or cannot serve now."""
    UNAUTHORIZED = 4
    """No API key, one that is not valid, or one that does not allow this."""
    TIMED_OUT = 5
    """Not finished in time; it goes on."""
    CANCELED = 6
    """The task that was waited for was canceled."""
    DEFECT = 70
    """A defect of the program itself; `fluxpool --verbose ...` adds the traceback."""
    INTERRUPTED = 130
    """Ctrl-C; the code that shells use."""
    READER_GONE = 141
    """The reader of the output closed its pipe; the code that shells use."""


class CommandError(Exception):
    """Ends the command with an exit code; its message is written to standard error."""

    def __init__(self, code: ExitCode, message: str) -> None:
        self.code = code
        super().__init__(message)


@contextmanager
def interruptible(going_on: str) -> Iterator[None]:
    """For a block that takes long: Ctrl-C ends the command, and says what goes on without it."""
    try:
        yield
    except KeyboardInterrupt:
        raise CommandError(ExitCode.INTERRUPTED, f"interrupted; {going_on}") from None
