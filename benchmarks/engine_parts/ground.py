"""What all parts of `engine.py` measure on, and how: checkpoint, device, sizes, and how often a run is repeated.

The tiny ground runs everything on a CPU within seconds: its figures mean nothing, its way through the code is the same.
"""

import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROMPT: Final = "a lighthouse in the fog, oil on canvas"
NEGATIVE_PROMPT: Final = "blurry, text"
TRUE_CFG_SCALE: Final = 2.0
LEAST_RUNS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """One checkpoint on one device."""

    folder: Path
    """Where the checkpoint is written and kept, and files of the runs beside it."""
    device: str
    dtypes: tuple[str, ...]
    """Of the transformer, in the engine."""
    plain_dtypes: tuple[str, ...]
    side: int
    """Pixels of the main case, a square."""
    sides: tuple[int, ...]
    """Of the part that compares sizes."""
    steps: tuple[int, ...]
    """The first is that of the main case."""
    seconds: float
    """How long each median's runs take together, at least."""

    @property
    def is_tiny(self) -> bool:
        """Whether the figures mean nothing."""
        return self.device == "cpu"

    @property
    def model(self) -> Path:
        """The checkpoint."""
        return self.folder / ("tiny" if self.is_tiny else "full-size")

    def write_checkpoint(self) -> None:
        """Unless it is there."""
        # Imports diffusers, which would delay the processes whose start is measured.
        from engine_parts import checkpoint  # noqa: PLC0415

        write = checkpoint.write_tiny_checkpoint if self.is_tiny else checkpoint.write_full_size_checkpoint
        write(self.model)
        # What the writing had would be taken for memory of other processes.
        free_device_memory()


def full_size(folder: Path, *, seconds: float) -> Ground:
    """FLUX.1-dev's architecture on a GPU."""
    return Ground(
        folder=folder,
        device="cuda",
        dtypes=("float16", "bfloat16"),
        plain_dtypes=("bfloat16", "float16"),
        side=1024,
        sides=(512, 768, 1024, 1536),
        steps=(28, 50),
        seconds=seconds,
    )


def tiny(folder: Path) -> Ground:
    """The tests' checkpoint on a CPU."""
    return Ground(
        folder=folder,
        device="cpu",
        dtypes=("float32",),
        plain_dtypes=("float32",),
        side=64,
        sides=(32, 64),
        steps=(3, 4),
        seconds=0.0,
    )


async def seconds_of_runs(draw: Callable[[int], Awaitable[None]], *, seconds: float) -> list[float]:
    """Call `draw(run)` again and again, for `seconds` together at least; the seconds that each took.

    As often as `LEAST_RUNS`, unless the runs so far took three times as long already.
    """
    taken: list[float] = []
    while not taken or sum(taken) < seconds or (len(taken) < LEAST_RUNS and sum(taken) < 3 * seconds):
        began = time.perf_counter()
        await draw(len(taken))
        taken.append(time.perf_counter() - began)
    return taken


def tflop_per_forward(*, width: int, height: int, text_tokens: int = 512) -> float:
    """Multiplications and additions of one forward of FLUX.1's transformer, in 1e12.

    74.38 at 1024x1024, which is what torch's FlopCounterMode counts on the real configuration.
    """
    hidden, blocks = 3072, 19 + 38
    image_tokens = width * height // 256
    rows = image_tokens + text_tokens
    # Both kinds of blocks multiply each row with 12 hidden x hidden matrices; attention takes two products of rows.
    block = 2 * rows * 12 * hidden**2 + 4 * rows**2 * hidden
    around = 2 * 2 * image_tokens * 64 * hidden + 2 * text_tokens * 4096 * hidden
    return (blocks * block + around) / 1e12


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def free_device_memory() -> None:
    """Give back what objects that are gone had on the GPU."""
    import torch  # noqa: PLC0415 - as above

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
