"""`python -m engine_parts.first_image --folder F [--tiny]`: one engine, two images, a JSON line with when they came.

Times are seconds since the moment that the environment names. Run by `cold`.
"""

import argparse
import asyncio
import json
import os
import time
from pathlib import Path

from engine_parts import ground as grounds
from engine_parts import ours
from engine_parts.cold import STARTED_VARIABLE
from engine_parts.speed import Case


async def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    ground = grounds.tiny(arguments.folder) if arguments.tiny else grounds.full_size(arguments.folder, seconds=0.0)
    started = float(os.environ[STARTED_VARIABLE])
    case = Case(side=ground.side, steps=ground.steps[0])
    async with ours.running_engine(ours.spec(ground, ground.dtypes[0])) as (client, ready):
        times = {"ready_seconds": time.time() - started, "load_seconds": ready.load_seconds}
        times |= {f"{phase}_seconds": seconds for phase, seconds in ready.phase_seconds.items()}
        await ours.draw(client, ours.inputs(case, seed=0))
        times["first_image_seconds"] = time.time() - started
        began = time.time()
        await ours.draw(client, ours.inputs(case, seed=1))
        times["next_image_took"] = time.time() - began
    print(json.dumps(times))


if __name__ == "__main__":
    asyncio.run(main())
