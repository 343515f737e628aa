"""Child processes that a test may pause."""

import os
import signal

from fluxpool_cli.local.child_process import ChildProcess


class PausableProcess(ChildProcess):
    """A child process that can be paused: its connections stay open, without responses."""

    def pause(self) -> None:
        """SIGSTOP; return once every thread has stopped; on a busy machine some may still respond meanwhile."""
        pid = self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, which a paused process handles only once it is resumed."""
        super().terminate()
        # It may have ended by the signal, at any moment.
        if self.pid is not None and self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> int:
        pid = self.pid
        if pid is None:
            raise self.error("does not run")
        os.kill(pid, number)
        return pid
