"""The engine on one GPU, beside plain diffusers, the card's own ceiling and float32: one command, one table.

Speed does not depend on what the weights are, so nothing is downloaded: a full-size FLUX.1-dev with random weights
(34 GB) is written once into a folder, and the pictures are noise. The ceiling is measured in the same run, hot, because
an H200 is limited by its power: its clock falls by a quarter within seconds of work. Needs one GPU with 80 GB (numbers
against float32) or 40 GB (all else):

    python benchmarks/engine.py --folder /somewhere/with/40GB [--json]

Parts can be run apart; with `--results FILE` each adds to the file, and the table shows all that is there. `--tiny`
runs every part on a CPU with the tests' checkpoint, in which no figure means anything.
"""

import argparse
import asyncio
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import structlog
import torch
from engine_parts import ground as grounds
from engine_parts.ground import Ground
from engine_parts.readings import Readings
from engine_parts.speed import with_shares
from report import Cell, print_table

Rows = list[dict[str, Cell]]
EXPECTED_SECONDS: Final = {
    "ceiling": 20,
    "plain": 105,
    "exact": 130,
    "sizes": 60,
    "fast": 80,
    "numerics": 40,
    "cold": 130,
    "mixed": 90,
    "worker": 110,
}
"""On an H200, besides 15 s for writing the checkpoint."""
MODULES: Final = dict.fromkeys(("exact", "sizes", "fast"), "ours")
"""Where a part's name is not its module's."""
MIXED_JOBS: Final = 200
NOT_SHOWN: Final = {"runs", "celsius", "at_power_limit"}
"""Fields that the JSON has and the tables have no room for."""


def part_module(part: str) -> Any:
    """The module of a part, which imports what that part needs: diffusers alone takes seconds."""
    return importlib.import_module(f"engine_parts.{MODULES.get(part, part)}")


async def measure(part: str, ground: Ground, *, jobs: int) -> Rows:
    """One part's rows."""
    module = part_module(part)
    rows: Rows
    match part:
        case "exact":
            rows = await module.measure_exact(ground)
        case "sizes":
            rows = await module.measure_sizes(ground)
        case "fast":
            rows = await module.measure_fast(ground)
        case "mixed":
            rows = await module.measure(ground, jobs=jobs)
        case "ceiling" | "numerics":
            rows = module.measure(ground)
        case _:
            rows = await module.measure(ground)
    return rows


def print_results(results: dict[str, Any]) -> None:
    """All parts that are there, as tables."""
    print("machine:", ", ".join(f"{name} {value}" for name, value in results["machine"].items()))
    parts: dict[str, Rows] = results["parts"]
    ceilings = {str(row["dtype"]): float(str(row["sustained_tflops"])) for row in parts.get("ceiling", [])}
    speed = [row for part in ("plain", "exact", "sizes", "fast") for row in parts.get(part, [])]
    tables = {
        "ceiling": parts.get("ceiling", []),
        "speed": with_shares(speed, ceilings=ceilings),
        **{part: parts.get(part, []) for part in ("numerics", "cold", "mixed", "worker")},
    }
    for name, rows in tables.items():
        if rows:
            print(f"\n{name}")
            print_table([{key: _shown(value) for key, value in row.items() if key not in NOT_SHOWN} for row in rows])


def _shown(cell: Cell) -> Cell:
    """Numbers far below one, which two digits would hide, as text."""
    return f"{cell:.2e}" if isinstance(cell, float) and 0 < abs(cell) < 0.01 else cell


def machine() -> dict[str, Cell]:
    """What the figures were measured on."""
    cuda = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if cuda else "none",
        "driver": Readings().driver(),
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if cuda else None,  # type: ignore[no-untyped-call]
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    known: dict[str, Any] = {"parts": {}}
    if arguments.results is not None and arguments.results.exists():
        known = json.loads(arguments.results.read_text(encoding="utf-8"))
    known["machine"] = machine()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    ground = grounds.tiny(folder) if arguments.tiny else grounds.full_size(folder, seconds=arguments.seconds)
    expected = sum(EXPECTED_SECONDS[part] for part in arguments.only)
    _say(f"parts: {', '.join(arguments.only)}; on an H200 about {expected} s, and 15 s for writing the checkpoint")
    if set(arguments.only) != {"ceiling"}:
        began = time.perf_counter()
        ground.write_checkpoint()
        _say(f"checkpoint in {ground.model} after {time.perf_counter() - began:.1f} s")
    for part in arguments.only:
        began = time.perf_counter()
        known["parts"][part] = asyncio.run(measure(part, ground, jobs=arguments.jobs))
        _say(f"{part}: {time.perf_counter() - began:.1f} s")
        if arguments.results is not None:
            arguments.results.write_text(json.dumps(known), encoding="utf-8")
    print_results(known)
    if arguments.json:
        print(json.dumps(known))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is written and kept")
    parts = ", ".join(f"{part} ({seconds} s)" for part, seconds in EXPECTED_SECONDS.items())
    parser.add_argument(
        "--only",
        type=lambda text: text.split(","),
        default=list(EXPECTED_SECONDS),
        metavar="PART,...",
        help=f"parts to run, with the seconds that each takes on an H200: {parts}",
    )
    parser.add_argument("--results", type=Path, help="a JSON file to add to; the table shows all parts in it")
    parser.add_argument("--seconds", type=float, default=3.0, help="runs of a median together take at least this long")
    parser.add_argument("--jobs", type=int, default=MIXED_JOBS, help="jobs of the part `mixed`")
    parser.add_argument("--tiny", action="store_true", help="the tests' checkpoint on the CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    found = parser.parse_args(arguments)
    unknown = [part for part in found.only if part not in EXPECTED_SECONDS]
    if unknown:
        parser.error(f"--only {unknown[0]}: unknown; use some of {', '.join(EXPECTED_SECONDS)}")
    if not found.tiny and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; run this on a machine with one GPU of 80 GB, or with --tiny")
    for part in found.only:
        # A missing library ends the run here, not after the minutes of the parts before.
        try:
            part_module(part)
        except ModuleNotFoundError as error:
            parser.error(f"--only {part}: needs {error.name}, which is not installed here (requirements/worker.txt)")
    return found


if __name__ == "__main__":
    main()
