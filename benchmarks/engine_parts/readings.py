"""What the GPU says of itself while something runs: power, clock, temperature, memory. Read only, through NVML.

Without NVML (its module `pynvml` comes with nvidia-ml-py) or without a GPU there are no readings.
"""

import contextlib
import importlib
import statistics
import threading
import time
from types import TracebackType
from typing import Any, Final, Self

from report import Cell

PERIOD_SECONDS: Final = 0.1
POWER_CAP: Final = 0x4
"""nvmlClocksEventReasonSwPowerCap: the clock is held down by the power limit."""


class Readings:
    """Samples from its beginning to its end."""

    def __init__(self) -> None:
        """Find the first GPU."""
        self._nvml: Any = None
        with contextlib.suppress(ImportError):
            self._nvml = importlib.import_module("pynvml")
        self._handle: Any = None
        if self._nvml is not None:
            try:
                self._nvml.nvmlInit()
                self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
            except self._nvml.NVMLError:
                self._handle = None
        self._samples: list[tuple[float, int, float, int, int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="readings", daemon=True)
        self.memory_before_mib = self.memory_mib()
        """What other processes, and this one so far, have on the GPU."""

    def __enter__(self) -> Self:
        if self._handle is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._handle is not None:
            self._thread.join()

    def memory_mib(self) -> float | None:
        """GPU memory in use now, by all processes."""
        if self._handle is None:
            return None
        return float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used) / 2**20

    def driver(self) -> str | None:
        """Its version."""
        return None if self._handle is None else str(self._nvml.nvmlSystemGetDriverVersion())

    def since(self, began: float) -> dict[str, Cell]:
        """Medians since a time of `time.perf_counter`; the memory is the most, less what was in use before."""
        found = [sample for sample in self._samples if sample[0] >= began]
        if not found:
            return {"peak_gib": None, "watts": None, "sm_mhz": None, "celsius": None, "at_power_limit": None}
        _, memory, watts, clock, celsius, reasons = zip(*found, strict=True)
        return {
            "peak_gib": (max(memory) - (self.memory_before_mib or 0)) / 1024,
            "watts": round(statistics.median(watts)),
            "sm_mhz": round(statistics.median(clock)),
            "celsius": max(celsius),
            "at_power_limit": sum(1 for reason in reasons if reason & POWER_CAP) / len(reasons),
        }

    def _sample(self) -> None:
        nvml, handle = self._nvml, self._handle
        while not self._stop.wait(PERIOD_SECONDS):
            with contextlib.suppress(nvml.NVMLError):
                self._samples.append(
                    (
                        time.perf_counter(),
                        nvml.nvmlDeviceGetMemoryInfo(handle).used // 2**20,
                        nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
                        nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
                        nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
                        nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
                    )
                )
