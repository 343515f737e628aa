"""Which job an engine began last, in memory that outlives the engine.

One number in an anonymous file that agent and engine have both mapped. A message over the socket would have to wait
behind image files that the agent has not read yet, and the device with it: a job that kills its process must be known
before it begins. Knows nothing of what jobs are.
"""

import fcntl
import mmap
import os
from typing import Final, Self

_WORD_BYTES: Final = 8


class StartMark:
    """The shared number: the engine sets it, the agent reads it, also after the engine's sudden death."""

    def __init__(self, descriptor: int) -> None:
        """Take an open descriptor over; raises `OSError` or `ValueError` when it is not that of a mark."""
        os.fstat(descriptor)
        self.descriptor = descriptor
        """To be inherited by the engine."""
        self._memory = mmap.mmap(descriptor, _WORD_BYTES)
        # Written by assignment, not by a system call: that would hand the interpreter's lock to an encoding thread,
        # and the device would wait to get it back.
        self._word = memoryview(self._memory).cast("Q")

    @classmethod
    def create(cls) -> Self:
        """A new mark that says that no job was begun."""
        descriptor = os.memfd_create("fluxpool-started", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(descriptor, _WORD_BYTES)
        # A file cut short under a mapping ends the process that reads it, with SIGBUS: here, the agent.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(descriptor)

    def set(self, job_id: int) -> None:
        """Note that the job begins; in force when it returns."""
        self._word[0] = job_id

    def last_started(self) -> int:
        """Number of the job begun last; 0 before the first. Jobs begin in the order of their numbers."""
        return self._word[0]

    def close(self) -> None:
        """Give memory and descriptor of this process back."""
        self._word.release()
        self._memory.close()
        os.close(self.descriptor)
