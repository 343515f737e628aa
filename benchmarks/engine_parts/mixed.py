"""Many jobs of all kinds through one engine, some of them canceled.

Memory stays flat, and pictures do not depend on the ones generated before them.
"""

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Final

from report import Cell

from engine_parts import ours
from engine_parts.ground import Ground
from engine_parts.readings import Readings
from engine_parts.speed import Case
from fluxpool_worker.agent.engine.client import EngineClient, GenerationError
from fluxpool_worker.engine.protocol import FailureKind, GenerationInputs

AT_ONCE: Final = 2
"""As a worker gives them to its engine."""
CANCELED_SHARE: Final = 0.15
LOW_MEMORY_SHARE: Final = 0.1
FORMATS: Final = ("png", "jpeg", "webp")


async def measure(ground: Ground, *, jobs: int) -> list[dict[str, Cell]]:
    """One row."""
    chance = random.Random(1)  # noqa: S311 - the same jobs in every run
    wanted = [_job(ground, chance, number) for number in range(jobs)]
    reference = ours.inputs(Case(side=ground.side, steps=4), seed=jobs + 1)
    canceled = 0
    device_mib: list[float] = []
    process_mib: list[float] = []
    readings = Readings()
    async with ours.running_engine(ours.spec(ground, ground.dtypes[0])) as (client, _):
        first = await ours.draw(client, reference)
        for at in range(0, jobs, AT_ONCE):
            ended = await asyncio.gather(
                *(
                    _run(client, inputs, cancel_at=chance.randint(0, 2) if chance.random() < CANCELED_SHARE else None)
                    for inputs in wanted[at : at + AT_ONCE]
                )
            )
            canceled += sum(ended)
            process_mib.append(_resident_mib(client.pid))
            if (used := readings.memory_mib()) is not None:
                device_mib.append(used)
        last = await ours.draw(client, reference)
    return [
        {
            "jobs": jobs,
            "canceled": canceled,
            "same_picture_at_the_end": first.images[0].payload == last.images[0].payload,
            "device_mib_second_quarter": _most(device_mib, 1),
            "device_mib_last_quarter": _most(device_mib, 3),
            "process_mib_second_quarter": _most(process_mib, 1),
            "process_mib_last_quarter": _most(process_mib, 3),
        }
    ]


def _job(ground: Ground, chance: random.Random, number: int) -> GenerationInputs:
    case = Case(
        side=chance.choice([side for side in ground.sides if side <= ground.side]),
        steps=chance.randint(2, 4),
        guided=chance.random() < 0.2,
    )
    return replace(
        ours.inputs(case, seed=number),
        n=chance.choice((1, 1, 1, 2)),
        output_format=chance.choice(FORMATS),
        low_memory=chance.random() < LOW_MEMORY_SHARE,
    )


async def _run(client: EngineClient, inputs: GenerationInputs, *, cancel_at: int | None) -> bool:
    """Whether the job ended as canceled; `cancel_at` is the step after which it is, 0 at once."""

    def on_step(step: int, _total: int) -> None:
        if step == cancel_at:
            client.cancel(job)

    job = await client.submit(inputs, on_started=lambda: None, on_step=on_step, on_device_free=lambda: None)
    if cancel_at == 0:
        client.cancel(job)
    try:
        await job.result
    except GenerationError as error:
        if error.kind is not FailureKind.CANCELED:
            raise
        return True
    return False


def _resident_mib(pid: int | None) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def _most(values: list[float], quarter: int) -> float | None:
    """Of one quarter, counted from 0."""
    size = len(values) // 4
    return max(values[quarter * size : (quarter + 1) * size], default=None)
