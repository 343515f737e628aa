"""From the start of a process to its first image, with warm and with empty caches.

Each start is a new process that starts an engine of its own, as an agent does. Weights are in the page cache after the
first one, which also compiles byte code and kernels for those that find them.
"""

import asyncio
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from report import Cell

from engine_parts.ground import Ground

STARTED_VARIABLE: Final = "ENGINE_BENCHMARK_STARTED"
LIMIT_SECONDS: Final = 240.0


async def measure(ground: Ground) -> list[dict[str, Cell]]:
    """Everything empty but the page cache perhaps; all warm; the kernels' cache empty; kernels as from an image."""
    byte_code, kernels, ahead = (ground.folder / f"cold-{name}" for name in ("byte-code", "kernels", "ahead"))
    for folder in (byte_code, kernels, ahead):
        shutil.rmtree(folder, ignore_errors=True)
    rows: list[dict[str, Cell]] = []
    for caches, folder in (("all empty", kernels), ("warm", kernels), ("no kernels", kernels), ("from image", ahead)):
        if caches == "no kernels":
            shutil.rmtree(kernels, ignore_errors=True)
        if caches == "from image":
            if ground.is_tiny:
                continue
            await _compile_ahead(ahead)
        before = _cubins(folder)
        row = await _first_image(ground, byte_code=byte_code, kernels=folder)
        rows.append({"caches": caches, **row, "kernels_compiled": _cubins(folder) - before})
    return rows


def _cubins(folder: Path) -> int:
    return sum(1 for _ in folder.glob("*/*.cubin"))


async def _compile_ahead(folder: Path) -> None:
    """As an image's build does it, for this GPU."""
    import torch  # noqa: PLC0415 - the processes that are measured import this module

    major, minor = torch.cuda.get_device_capability()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "fluxpool_worker.engine.kernel_cache"),
        *("--folder", str(folder), "--capability", f"{major}{minor}"),
    )
    assert await process.wait() == 0


async def _first_image(ground: Ground, *, byte_code: Path, kernels: Path) -> dict[str, Cell]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])),
        "PYTHONPYCACHEPREFIX": str(byte_code),
        "TRITON_CACHE_DIR": str(kernels),
        STARTED_VARIABLE: str(time.time()),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "engine_parts.first_image", "--folder", str(ground.folder)),
        *(["--tiny"] if ground.is_tiny else []),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(LIMIT_SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, f"the process ended with {process.returncode}"
    row: dict[str, Cell] = json.loads(output.splitlines()[-1])
    return row
