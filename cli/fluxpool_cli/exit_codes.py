"""How a command ends: the exit codes of every command, and the error that carries one."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script may branch on."""

    OK = 0
    FAILED = 1
    """A task or a part of the stack failed."""
    USAGE = 2
    """The command line, or the request it made, is not valid."""
    UNREACHABLE = 3
    """Nobody answers, or who answers cannot serve now."""
    UNAUTHORIZED = 4
    TIMED_OUT = 5
    DEFECT = 70
    """A defect of the program itself."""
    INTERRUPTED = 130
    """Ctrl-C, as shells say it."""
    READER_GONE = 141
    """Who read the output closed it, as shells say it."""


class CommandError(Exception):
    """Ends the command with this code; the message goes to standard error."""

    def __init__(self, code: ExitCode, message: str) -> None:
        self.code = code
        super().__init__(message)
