"""What other processes do, read while they run: whether they still live, and the whole lines of their output."""

from pathlib import Path

import psutil


def is_alive(process: int | psutil.Process) -> bool:
    """Whether a process exists and has not ended; it may end, or be reaped by its parent, at any moment.

    An id may belong to another process by now; an object of psutil notices that.
    """
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(process: psutil.Process) -> str:
    """Its arguments, joined; empty once it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def whole_lines(file: Path) -> list[str]:
    """The complete lines of a file that another process is writing.

    A reader may see the first part of a write: the kernel extends a file page by page.
    """
    return file.read_bytes().rpartition(b"\n")[0].decode().splitlines()
