"""Whether anything is lost or done twice while agents, engines and brokers are killed and workers join and leave.

Real Apache Kafka, real agents and engine processes, a real store; only the model is a stand-in that takes a fixed time
and records each generation in a journal. Faults follow each other in an order set by the seed, until every task has a
result; while a broker is down, other faults continue. Then topics, offsets, store and journal are read and counted.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from report import Cell, print_report, quiet_logs
from soak_parts.count import Verdict, gather_evidence, judge
from soak_parts.faults import GENERATION_KILLS, Fault, Scene, endless_faults
from soak_parts.ground import add_folder_option, run_folder
from soak_parts.watch import SoakWatch

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from kit.brokers.kafka import produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.workers.worker import WorkerBench, task_body, worker_bench

ENGINE: Final = Path(__file__).parent / "soak_parts" / "engine.py"
GOALS: Final = "goals: lost 0, doubled 0, extra_generations_per_kill <= 1 for 100,000 tasks"


@dataclass(frozen=True, slots=True)
class Happened:
    """One finished fault."""

    fault: Fault
    seconds: float
    """Time until the affected process was replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a soak."""

    verdict: Verdict
    happened: Sequence[Happened]
    offsets_broken: Sequence[str]
    unasked_exits: int
    working_seconds: float

    @property
    def is_broken(self) -> bool:
        """Whether any guarantee was violated."""
        return self.verdict.is_broken or bool(self.offsets_broken)


async def main() -> int:
    """Run it; return the exit status, 1 when a guarantee was violated."""
    options = _options()
    quiet_logs("kafka", "aiokafka")
    with run_folder(options.folder) as folder:
        async with (
            KafkaCluster(folder / "kafka", libs=provide_kafka_libs(), brokers=options.brokers) as kafka,
            worker_bench(kafka.bootstrap_servers, folder, model="none", partitions=options.partitions) as bench,
        ):
            outcome = await _soak(kafka, bench, options=options)
    for line in outcome.offsets_broken:
        sys.stderr.write(f"{line}\n")
    sys.stderr.write(GOALS + "\n")
    print_report(ratios=_figures(outcome, options), rows=_rows(outcome.happened), as_json=options.json)
    return 1 if outcome.is_broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=2000, help="tasks, produced beforehand")
    parser.add_argument("--seconds-per-task", type=float, default=0.02, help="time of the stand-in for an image")
    parser.add_argument("--workers", type=int, default=3, help="number of workers at the begin")
    parser.add_argument("--partitions", type=int, default=6, help="of the task topic")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=3, help="with one, each kill is an outage")
    parser.add_argument("--calm-seconds", type=float, default=1.0, help="mean time from one fault's end to the next")
    parser.add_argument("--only", nargs="+", choices=[*Fault], default=[*Fault], help="leave the other faults out")
    parser.add_argument("--seed", type=int, default=1, help="decides order, victims and pauses of the faults")
    add_folder_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    for name in ("tasks", "partitions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: use 1 or more")
    for name in ("seconds-per-task", "calm-seconds"):
        if getattr(options, name.replace("-", "_")) < 0:
            parser.error(f"--{name}: use 0 or more")
    if options.workers < 2:
        parser.error(f"--workers {options.workers}: one may leave while another is killed; use 2 or more")
    if (Fault.JOIN in options.only) != (Fault.LEAVE in options.only):
        parser.error(f"--only: {Fault.JOIN} and {Fault.LEAVE} go together, or the crew would only grow or shrink")
    return options


async def _soak(kafka: KafkaCluster, bench: WorkerBench, *, options: argparse.Namespace) -> Outcome:
    bench.engine_command = (sys.executable, str(ENGINE))
    chance = random.Random(options.seed)  # noqa: S311 - the same seed must give the same faults
    scene = Scene(bench=bench, kafka=kafka, journal=bench.folder / "journal", chance=chance)
    await asyncio.gather(*(scene.start_worker() for _ in range(options.workers)))
    places = await _submit(bench, tasks=options.tasks, seconds_per_task=options.seconds_per_task)
    async with SoakWatch(bench) as watch:
        watch.expect(places)
        kinds = [Fault(name) for name in options.only]
        happened = await _storm(scene, watch, kinds=kinds, tasks=options.tasks, calm_seconds=options.calm_seconds)
        await scene.replace_ended()
        await watch.wait_over()
    sys.stderr.write(f"{watch.answered} of {options.tasks} ended, {watch.looks} observations\n")
    return Outcome(
        verdict=judge(await gather_evidence(bench, places=places, journal=scene.journal)),
        happened=happened,
        offsets_broken=watch.broken,
        unasked_exits=scene.unasked_exits,
        working_seconds=watch.working_seconds,
    )


async def _submit(bench: WorkerBench, *, tasks: int, seconds_per_task: float) -> dict[str, tuple[int, int]]:
    """Send all tasks; return partition and offset of each."""
    names = [f"task-{number:06}" for number in range(tasks)]
    bodies = [(name.encode(), task_body(name, f"seconds={seconds_per_task}")) for name in names]
    places = await produce(bench.bootstrap_servers, bench.topics.tasks, bodies)
    return dict(zip(names, places, strict=True))


async def _storm(
    scene: Scene, watch: SoakWatch, *, kinds: Sequence[Fault], tasks: int, calm_seconds: float
) -> list[Happened]:
    """One fault after the other until the soak is over; only the next kill of a broker waits for its return."""
    happened: list[Happened] = []
    returning: asyncio.Task[None] | None = None

    async def happen(fault: Fault) -> None:
        answered, began = watch.answered, time.monotonic()
        hit = await scene.happen(fault)
        happened.append(Happened(fault, time.monotonic() - began))
        sys.stderr.write(f"{answered} of {tasks} answered: {fault} {hit}, {happened[-1].seconds:.1f} s\n")

    async with asyncio.TaskGroup() as group:
        for fault in endless_faults(kinds, scene.chance):
            await watch.wait_over(deadline_seconds=scene.chance.uniform(0, 2 * calm_seconds))
            if fault is Fault.KILL_BROKER and returning is not None:
                await returning
            if watch.is_over:
                break
            await scene.replace_ended()
            if fault is Fault.KILL_BROKER:
                returning = group.create_task(happen(fault))
            else:
                await happen(fault)
    return happened


def _figures(outcome: Outcome, options: argparse.Namespace) -> Mapping[str, Cell]:
    verdict = outcome.verdict
    kills = sum(done.fault in GENERATION_KILLS for done in outcome.happened)
    return {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "extra_generations_per_kill": round(verdict.extra_generations / kills, 2) if kills else None,
        "tasks_per_second": round(options.tasks / outcome.working_seconds, 2) if outcome.working_seconds else None,
        "failed": verdict.failed,
        "uncommitted": verdict.uncommitted,
        "offsets_broken": len(outcome.offsets_broken),
        "dead_letters": verdict.dead_letters,
        "unasked_exits": outcome.unasked_exits,
        "extra_generations": verdict.extra_generations,
        "repeated_answers": verdict.repeated_answers,
        "kills": kills,
        "tasks": options.tasks,
        "seconds": round(outcome.working_seconds, 1),
        "seed": options.seed,
    }


def _rows(happened: Sequence[Happened]) -> list[dict[str, Cell]]:
    def row(fault: Fault) -> dict[str, Cell]:
        seconds = [done.seconds for done in happened if done.fault is fault]
        return {
            "fault": fault.value,
            "times": len(seconds),
            "median_s": round(statistics.median(seconds), 2),
            "longest_s": round(max(seconds), 2),
        }

    return [row(fault) for fault in Fault if any(done.fault is fault for done in happened)]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
