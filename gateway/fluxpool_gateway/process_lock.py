"""The lock by which one process alone does a work, such as to project, while others of its kind stand by."""

import fcntl
from collections.abc import Callable, Iterator
from typing import Final

_INTERVAL_SECONDS: Final = 0.5


def acquire_lock(descriptor: int, *, on_standby: Callable[[], None]) -> Iterator[float]:
    """Hold the lock of an open file; the kernel releases it once no process has the file open.

    Yields the seconds to wait each time another process holds it; the caller may give up instead. It is polled, because
    a signal handler in Python cannot end a blocking flock. `on_standby` is called before the first wait.
    """
    is_standby = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_standby:
                is_standby = True
                on_standby()
            yield _INTERVAL_SECONDS
        else:
            return
