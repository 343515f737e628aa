"""One job with the engine, as the agent sees it, and how long jobs take. Sends nothing and has no clock."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fluxpool_contract.messages import Quality
from fluxpool_worker.engine.protocol import Generated, GenerationInputs, Preview

RECENT: Final = 16
MAX_SIZES: Final = 64
"""Sizes of images that are remembered, least recently used out first."""


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
    on_preview: Callable[[Preview], None] = lambda _preview: None

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


@dataclass(frozen=True, slots=True)
class TaskSize:
    """What decides how long a step takes; by no simple rule."""

    pixels: int
    quality: Quality


class StepTimes:
    """Seconds a denoising step takes on this device, by the size of the task."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[TaskSize, deque[float]] = OrderedDict()

    def learn(self, *, size: TaskSize, steps: int, seconds: float) -> None:
        """A generation of so many steps, all its images together, took that long."""
        recent = self._seconds.setdefault(size, deque(maxlen=RECENT))
        self._seconds.move_to_end(size)
        recent.append(seconds / max(1, steps))
        if len(self._seconds) > MAX_SIZES:
            self._seconds.popitem(last=False)

    def least_seconds(self, *, size: TaskSize, steps: int) -> float:
        """What a generation takes at the speed of the fastest lately; 0 for a size that was not seen.

        The fastest and not the mean: a task is refused for what cannot be, not for what may be.
        """
        recent = self._seconds.get(size)
        return min(recent) * steps if recent else 0.0
