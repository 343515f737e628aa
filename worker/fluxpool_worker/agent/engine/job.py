"""One job with the engine, as the agent sees it: its progress, its estimates and its end. Sends nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from fluxpool_worker.engine.protocol import Generated, GenerationInputs


@dataclass(slots=True, eq=False)
class EngineJob:
    """One job sent to the engine."""

    job_id: int
    inputs: GenerationInputs
    on_started: Callable[[], None]
    """Called once, when the device begins."""
    on_step: Callable[[int, int], None]
    on_device_free: Callable[[], None]
    """Called once, when the device no longer works for this job, whatever became of it."""
    result: asyncio.Future[Generated]
    sent_at: float = 0.0
    """Monotonic time."""
    is_device_free: bool = False
    started_at: float | None = None
    """Monotonic time."""
    last_sign_at: float | None = None
    """Monotonic time of the beginning or the last step."""
    is_stalled: bool = False
    """Whether the silence since the last step was already reported."""
    step: int = 0
    total_steps: int = 0
    """As the engine says: a run that has to be repeated in another number format has more."""
    cancel_requested: bool = False

    def free_device(self) -> None:
        """Note that the device is done with the job."""
        if not self.is_device_free:
            self.is_device_free = True
            self.on_device_free()

    def silent_seconds(self, *, now: float) -> float:
        """For how long the device has worked on the job without a sign of life."""
        return 0.0 if self.is_device_free or self.last_sign_at is None else now - self.last_sign_at

    def remaining_seconds(self, *, now: float, whole_seconds: float | None) -> float | None:
        """Estimate from the steps done so far, before the first one `whole_seconds`; 0 once the device is free."""
        if self.is_device_free:
            return 0.0
        if self.started_at is None or self.step == 0:
            return whole_seconds
        per_step = (now - self.started_at) / self.step
        return per_step * (self.total_steps - self.step)

    def fraction_done(self) -> float:
        """0 to 1, by denoising steps."""
        return self.step / self.total_steps if self.total_steps else 0.0
