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
    """Kafka, the gateway or the local stack does not answer or cannot serve now."""
    UNAUTHORIZED = 4
    TIMED_OUT = 5
    DEFECT = 70
    """A defect of the program itself."""
    INTERRUPTED = 130
    """Ctrl-C; the code that shells use."""
    READER_GONE = 141
    """The reader of the output closed its pipe; the code that shells use."""


class CommandError(Exception):
    """Ends the command with an exit code; its message is written to standard error."""

    def __init__(self, code: ExitCode, message: str) -> None:
        self.code = code
        super().__init__(message)
