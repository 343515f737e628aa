"""Cases of the speed table, and its rows as they are measured; shares and ratios come later, from all rows together."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from report import Cell

from engine_parts.ground import median, tflop_per_forward

FLOOR_TFLOPS: Final = 790.0
"""What an H200 computes by its data sheet, and does for its first moments."""
PHASES: Final = ("text_encode", "denoise", "vae", "copy", "image_encode")
"""As the engine's timings name them, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image of a kind."""

    side: int
    """Pixels; images are squares."""
    steps: int
    guided: bool = False
    """Classifier-free guidance: two forwards a step."""

    @property
    def tflop(self) -> float:
        """Of the transformer, all forwards together."""
        forwards = self.steps * (2 if self.guided else 1)
        return forwards * tflop_per_forward(width=self.side, height=self.side)


def speed_row(
    way: str,
    case: Case,
    *,
    dtype: str,
    first: float | None,
    seconds: Sequence[float],
    phases: Sequence[Mapping[str, float]],
    measured: Mapping[str, Cell],
) -> dict[str, Cell]:
    """Medians of the runs; `first` is the first run at that size, `phases` milliseconds of each run."""
    taken = {
        f"{name}_ms": statistics.median(run[name] for run in phases) if phases and name in phases[0] else None
        for name in PHASES
    }
    return {
        "way": way,
        "dtype": dtype,
        "side": case.side,
        "steps": case.steps,
        "cfg": case.guided,
        "seconds": median(list(seconds)),
        "runs": len(seconds),
        "first_seconds": first,
        "tflop": case.tflop,
        **taken,
        **measured,
    }


def with_shares(rows: Sequence[dict[str, Cell]], *, ceilings: Mapping[str, float]) -> list[dict[str, Cell]]:
    """The rows, compared with the plain way, the floor and the card's own ceiling in their dtype.

    The plain way is the faster one of its dtypes, where it was measured for the same case. The share of the ceiling is
    that of denoising alone; the share of the floor that of the whole image.
    """
    shown = []
    for row in rows:
        plain = [_float(other["seconds"]) for other in rows if other["way"] == "plain" and _same_case(other, row)]
        denoise, ceiling = row["denoise_ms"], ceilings.get(str(row["dtype"]))
        shown.append(
            {
                **{name: value for name, value in row.items() if name != "tflop"},
                "times_plain": min(plain) / _float(row["seconds"]) if plain else None,
                "of_floor": _float(row["tflop"]) / FLOOR_TFLOPS / _float(row["seconds"]),
                "of_sustained": (
                    _float(row["tflop"]) / (_float(denoise) / 1000) / ceiling if denoise and ceiling else None
                ),
            }
        )
    return shown


def _same_case(one: Mapping[str, Cell], other: Mapping[str, Cell]) -> bool:
    return all(one[name] == other[name] for name in ("side", "steps", "cfg"))


def _float(cell: Cell) -> float:
    assert isinstance(cell, int | float)
    return float(cell)
