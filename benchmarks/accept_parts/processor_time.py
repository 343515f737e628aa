"""Processor time of the programs on the way of a task, for each accepted request.

Throughput depends on what else the machine does; this hardly does, so that two runs can be compared on a busy one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import psutil
from report import Cell

from kit.plugins.file_times import cpu_seconds


@dataclass(frozen=True, slots=True)
class ProcessorTime:
    """User and system time in seconds, by program, with all processes that each has started."""

    seconds: Mapping[str, float]

    @classmethod
    def of(cls, pids: Mapping[str, int]) -> "ProcessorTime":
        """The time that running programs have taken so far."""
        return cls({program: cpu_seconds(psutil.Process(pid)) for program, pid in pids.items()})

    def per_request(self, since: "ProcessorTime", *, requests: int) -> dict[str, Cell]:
        """Microseconds of each program for each of these requests, as cells of a table."""
        return {
            f"{program}_cpu_us": round(1e6 * (seconds - since.seconds[program]) / max(1, requests))
            for program, seconds in self.seconds.items()
        }
