"""Ends processes with the one that started them, also when that was killed.

A program of ours calls `die_with_parent` as it starts. Any other program is started by `bound_command`, which runs this
very file as a small launcher; so it uses the standard library alone. Linux only: elsewhere nothing is bound.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
"""`prctl(2)`; in <linux/prctl.h>."""


class ParentGoneError(Exception):
    """The starting process ended before this one was bound to it."""


def die_with_parent(parent_pid: int, *, with_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the thread that started it ends.

    The thread, not the process (prctl(2)): start children from a thread that lives as long as the program, which is
    the main one. `parent_pid` is the starter's own idea of its pid, because the parent may end between the fork and
    this call; `ParentGoneError` is raised then, and the caller should exit. Raises `OSError` when the kernel refuses.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, with_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        raise ParentGoneError(f"process {parent_pid}, which started this one, is gone")


def bound_command(command: "list[str] | tuple[str, ...]") -> list[str]:
    """The command line that runs `command`, an absolute path and its arguments, only as long as this process lives."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def _launch(arguments: list[str]) -> None:
    try:
        die_with_parent(int(arguments[0]))
    except (ParentGoneError, OSError) as error:
        sys.exit(str(error))
    os.execv(arguments[1], arguments[1:])  # noqa: S606 - running a given program is what a launcher is for


if __name__ == "__main__":
    _launch(sys.argv[1:])
