"""The jobs an engine has been given: a queue in the order they were sent, from which cancellation can take.

Shared by the thread that receives and the one that owns the device; it knows neither sockets nor models.
"""

import threading
from collections import deque
from enum import StrEnum

from fluxpool_worker.engine.protocol import Generate


class CancelOutcome(StrEnum):
    """What a cancellation met."""

    DROPPED = "dropped"
    """The job was waiting and is gone from the queue."""
    STOPPING = "stopping"
    """The job is on the device and ends at its next step."""
    UNKNOWN = "unknown"
    """The job was never sent, or the device is done with it."""


class JobQueue:
    """First in, first out; one job is on the device at a time."""

    def __init__(self) -> None:
        """Start empty."""
        self._changed = threading.Condition()
        self._waiting: deque[Generate] = deque()
        self._running: int | None = None
        self._stop_running = False

    def put(self, job: Generate) -> None:
        """Append a job."""
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()

    def take(self) -> Generate:
        """Wait for the next job and mark it as the one on the device."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting)
            job = self._waiting.popleft()
            self._running = job.job_id
            self._stop_running = False
            return job

    def finish(self) -> None:
        """The device is done with the job that was taken last."""
        with self._changed:
            self._running = None

    def cancel(self, job_id: int) -> CancelOutcome:
        """Drop the job when it waits; ask it to stop when it is on the device."""
        with self._changed:
            if job_id == self._running:
                self._stop_running = True
                return CancelOutcome.STOPPING
            for job in self._waiting:
                if job.job_id == job_id:
                    self._waiting.remove(job)
                    return CancelOutcome.DROPPED
            return CancelOutcome.UNKNOWN

    def is_running_canceled(self) -> bool:
        """Whether the job on the device was asked to stop."""
        return self._stop_running
