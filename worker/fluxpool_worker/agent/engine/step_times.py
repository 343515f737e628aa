"""How long a denoising step takes on this device, as far as it has been seen. Pure: no clock, no engine."""

from collections import OrderedDict, deque
from typing import Final

RECENT: Final = 16
MAX_SIZES: Final = 64
"""Sizes of images that are remembered; the one used longest ago is forgotten first."""


class StepTimes:
    """Seconds for each step, by the number of pixels: neither scales with the other by a simple rule."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[int, deque[float]] = OrderedDict()

    def learn(self, *, pixels: int, steps: int, seconds: float) -> None:
        """A generation of so many steps, all its images together, took that long."""
        recent = self._seconds.setdefault(pixels, deque(maxlen=RECENT))
        self._seconds.move_to_end(pixels)
        recent.append(seconds / max(1, steps))
        if len(self._seconds) > MAX_SIZES:
            self._seconds.popitem(last=False)

    def least_seconds(self, *, pixels: int, steps: int) -> float:
        """What a generation takes if it goes as fast as the fastest lately; 0 for a size that was not seen.

        The fastest and not the mean: a task is refused for what cannot be, not for what may be.
        """
        recent = self._seconds.get(pixels)
        return min(recent) * steps if recent else 0.0
