"""The end of a program: its exit code, whatever threads and native libraries are still doing."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn


def run_program(main: Callable[[], int]) -> NoReturn:
    """Run `main` and end this process with the exit code it returns, or with 1 and a traceback after an error.

    `main` must have ended what has to end: no thread is waited for, and no exit handler runs.
    """
    try:
        code = main()
    except Exception:  # noqa: BLE001 - the top of a program, as Python's own
        sys.excepthook(*sys.exc_info())
        code = 1
    end_process(code)


def end_process(code: int) -> NoReturn:
    """End this process with this exit code as soon as its output is written.

    While Python finalizes, a native thread that wants the GIL, such as librdkafka's with the answer to a request, is
    unwound in the middle of its library, and destructors of libraries run beside threads that use them. On a busy
    machine such an end was a SIGABRT, after the result had been printed. So there is no finalization.
    """
    for stream in (sys.stdout, sys.stderr):
        # Either may be closed, or its reader gone; a program that depends on its output has flushed it before.
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)
