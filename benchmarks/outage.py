"""The cost of an outage of all brokers for minutes: tasks lost, done twice or begun again, and time.

One real broker is killed, stopped, or behind a network that drops all traffic, while real agents and engine processes
have tasks in flight; the model is a stand-in that takes a fixed time and records each generation in a journal. Workers
have default limits and no intervention: those that end by themselves, or would be restarted for their probes, are
counted. The tests do the same for half a minute.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, assert_never

import httpx
from report import Cell, print_report, quiet_logs
from soak_parts.count import Verdict, gather_evidence, judge
from soak_parts.engine import JOURNAL_VARIABLE, read_journal
from soak_parts.ground import add_folder_option, run_folder

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.settings.worker import WorkerSettings
from kit.brokers.kafka import produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.faults.chaos_kafka import ProxiedKafka, proxied_listener, proxies_of
from kit.faults.offset_watch import OffsetWatch
from kit.faults.tcp_proxy import TcpProxy
from kit.waiting import WaitExpiredError, wait_until
from kit.workers.worker import WorkerBench, WorkerProcess, task_body, worker_bench

ENGINE: Final = Path(__file__).parent / "soak_parts" / "engine.py"
SHIPPED: Final = {
    name: WorkerSettings.model_fields[name].default for name in ("session_timeout_seconds", "rebalance_timeout_seconds")
}
"""Tests shorten these; the outage uses the values of pods."""
USUAL_BROKER: Final = {"group.initial.rebalance.delay.ms": "3000"}
"""Kafka's default. Local mode and the tests use 0 for a fast start; then the first member after an outage is assigned
all partitions, and loses most of them again to the next ones."""
RETRY_DELAYS: Final = ("15s",)
"""A separate retry topic, because the agents are members of its group, too."""
PROBE_INTERVAL_SECONDS: Final = 1.0
BROKER_SECONDS: Final = 120.0
BEGIN_SECONDS: Final = 120.0
END_SECONDS: Final = 300.0
"""From the end of the outage until every task has a result, besides the time of the tasks themselves."""
HELD_METRIC: Final = 'fluxpool_held{cause="kafka"} 1'


class Kind(StrEnum):
    """The kind of outage."""

    KILLED = "killed"
    """SIGKILL; restarted with their data."""
    STOPPED = "stopped"
    """SIGSTOP: connecting works, without responses."""
    SILENT = "silent"
    """The network between workers and brokers drops all packets and ends no connection."""


@dataclass(slots=True)
class Probing:
    """Probes and metrics of one worker during the outage."""

    worker: WorkerProcess
    began_at: float
    looks: int = 0
    not_alive: int = 0
    """Failed `/healthz` probes; a kubelet restarts the container after a few in a row."""
    not_ready: int = 0
    held_after_seconds: float | None = None
    """From the begin of the outage until its metrics reported a hold for Kafka."""

    async def look(self, client: httpx.AsyncClient) -> None:
        """Probe once; a late response does not count, because the machine may be busy."""
        with contextlib.suppress(httpx.TransportError):
            alive = await client.get(f"{self.worker.health_url}/healthz")
            ready = await client.get(f"{self.worker.health_url}/readyz")
            metrics = await client.get(f"{self.worker.health_url}/metrics")
            self.looks += 1
            self.not_alive += alive.status_code != httpx.codes.OK
            self.not_ready += ready.status_code != httpx.codes.OK
            if self.held_after_seconds is None and f"{HELD_METRIC}." in metrics.text:
                self.held_after_seconds = time.monotonic() - self.began_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of an outage."""

    verdict: Verdict
    offsets_broken: Sequence[str]
    probings: Sequence[Probing]
    attempts_spent: int
    """Results of a later attempt than the first."""
    crashes_counted: int
    """Tasks in flight that another worker wrongly counted as crashed."""
    workers_ended: int
    """Agents that had ended at the end."""
    engines_restarted: int
    """Engine processes beyond one for each agent."""
    begun_while_away: int
    ends_seconds: Sequence[float]
    """Times from the end of the outage at which workers ended tasks."""

    @property
    def is_broken(self) -> bool:
        """Whether the outage cost anything but time."""
        return self.verdict.is_broken or any(
            (
                self.verdict.extra_generations,
                self.offsets_broken,
                self.attempts_spent,
                self.crashes_counted,
                self.workers_ended,
                self.engines_restarted,
                any(probing.not_alive for probing in self.probings),
            )
        )


@dataclass(slots=True)
class Scene:
    """The broker, its proxy, and the workers behind it."""

    kafka: ProxiedKafka
    bench: WorkerBench
    kind: Kind
    journal: Path
    probings: list[Probing] = field(default_factory=list)

    async def start_workers(self, count: int) -> None:
        """Start this many workers and wait until they are ready."""
        environment = {JOURNAL_VARIABLE: str(self.journal)}
        connection = KafkaConnection(bootstrap_servers=tuple(self.kafka.bootstrap_servers.split(",")))
        await asyncio.gather(
            *(self.bench.start_ready(environment=environment, kafka=connection, **SHIPPED) for _ in range(count))
        )

    async def submit(self, *, tasks: int, seconds_per_task: float) -> dict[str, tuple[int, int]]:
        """Send all tasks; return partition and offset of each."""
        names = [f"task-{number:04}" for number in range(tasks)]
        bodies = [(name.encode(), task_body(name, f"seconds={seconds_per_task}", steps=10)) for name in names]
        places = await produce(self.bench.bootstrap_servers, self.bench.topics.tasks, bodies)
        return dict(zip(names, places, strict=True))

    async def break_off(self) -> None:
        """The outage begins."""
        match self.kind:
            case Kind.KILLED:
                await asyncio.gather(*(broker.kill() for broker in self.kafka.cluster.brokers))
            case Kind.STOPPED:
                for broker in self.kafka.cluster.brokers:
                    broker.pause()
            case Kind.SILENT:
                await self.kafka.on_every_line(TcpProxy.black_hole)
            case _:
                assert_never(self.kind)

    async def restore(self) -> None:
        """End the outage: when this returns, brokers listen and begin to lead their partitions."""
        match self.kind:
            case Kind.KILLED:
                await self.kafka.cluster.start(deadline_seconds=BROKER_SECONDS)
            case Kind.STOPPED:
                for broker in self.kafka.cluster.brokers:
                    broker.resume()
            case Kind.SILENT:
                await self.kafka.on_every_line(TcpProxy.pass_all)
            case _:
                assert_never(self.kind)

    async def last(self, seconds: float) -> None:
        """Wait during the outage, and read every worker's probes and metrics meanwhile."""
        began_at = time.monotonic()
        self.probings = [Probing(worker, began_at) for worker in self.bench.workers]
        async with httpx.AsyncClient(timeout=PROBE_INTERVAL_SECONDS * 5) as client:
            while (left := began_at + seconds - time.monotonic()) > 0:
                await asyncio.gather(*(probing.look(client) for probing in self.probings))
                await asyncio.sleep(min(PROBE_INTERVAL_SECONDS, left))  # the outage itself


async def main() -> int:
    """Run it; return the exit status, 1 when the outage cost anything but time."""
    options = _options()
    quiet_logs("kafka", "aiokafka")
    with run_folder(options.folder) as folder:
        async with _scene(folder, options) as scene:
            outcome = await _outage(scene, options)
        for line in outcome.offsets_broken:
            sys.stderr.write(f"{line}\n")
        print_report(ratios=_figures(outcome, options), rows=_rows(outcome.probings), as_json=options.json)
    return 1 if outcome.is_broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kind", type=Kind, choices=[*Kind], default=Kind.KILLED, help="kind of outage")
    parser.add_argument("--seconds", type=float, default=300.0, help="duration of the outage")
    parser.add_argument("--tasks", type=int, default=40, help="tasks, produced beforehand")
    parser.add_argument("--seconds-per-task", type=float, default=2.0, help="time of the stand-in for an image")
    parser.add_argument("--workers", type=int, default=2, help="number of workers")
    parser.add_argument("--partitions", type=int, default=4, help="of the task topic")
    add_folder_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    for name in ("seconds", "seconds-per-task"):
        if getattr(options, name.replace("-", "_")) <= 0:
            parser.error(f"--{name}: use more than 0")
    for name in ("workers", "partitions"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: use 1 or more")
    if options.tasks < options.workers * 8:
        parser.error(f"--tasks {options.tasks}: {options.workers} workers must be busy; use 8 or more for each")
    return options


@asynccontextmanager
async def _scene(folder: Path, options: argparse.Namespace) -> AsyncIterator[Scene]:
    """One ready broker, and ready workers behind its proxy."""
    listener = proxied_listener()
    async with (
        KafkaCluster(
            folder / "kafka", libs=provide_kafka_libs(), listeners=[listener], extra_properties=USUAL_BROKER
        ) as cluster,
        proxies_of(cluster, listener) as kafka,
        worker_bench(
            cluster.bootstrap_servers,
            folder,
            model="none",
            partitions=options.partitions,
            retry_delays=RETRY_DELAYS,
        ) as bench,
    ):
        bench.engine_command = (sys.executable, str(ENGINE))
        scene = Scene(kafka=kafka, bench=bench, kind=options.kind, journal=folder / "journal")
        await scene.start_workers(options.workers)
        yield scene


async def _outage(scene: Scene, options: argparse.Namespace) -> Outcome:
    places = await scene.submit(tasks=options.tasks, seconds_per_task=options.seconds_per_task)
    async with OffsetWatch(scene.bench) as watch:
        watch.expect(places)
        await _until(lambda: watch.answered >= options.workers * 2, watch, BEGIN_SECONDS, "the first answers")
        begun = len(read_journal(scene.journal))
        await scene.break_off()
        await scene.last(options.seconds)
        begun_while_away = len(read_journal(scene.journal)) - begun
        await scene.restore()
        restored_at = datetime.now(UTC)
        working_seconds = options.tasks * options.seconds_per_task / options.workers
        await _until(lambda: watch.is_done, watch, END_SECONDS + working_seconds, "the end of every task")
    evidence = await gather_evidence(scene.bench, places=places, journal=scene.journal)
    return Outcome(
        verdict=judge(evidence),
        attempts_spent=sum(json.loads(answer.body)["attempt"] != 1 for answer in evidence.answers),
        crashes_counted=sum(len(worker.events("crash_counted")) for worker in scene.bench.workers),
        workers_ended=sum(worker.process.poll() is not None for worker in scene.bench.workers),
        engines_restarted=sum(len(worker.events("engine_started")) - 1 for worker in scene.bench.workers),
        offsets_broken=watch.broken,
        probings=scene.probings,
        begun_while_away=begun_while_away,
        ends_seconds=[
            (ended_at - restored_at).total_seconds()
            for worker in scene.bench.workers
            for line in worker.events("task_ended")
            if (ended_at := datetime.fromisoformat(line["timestamp"])) > restored_at
        ],
    )


async def _until(reached: Callable[[], bool], watch: OffsetWatch, deadline_seconds: float, what: str) -> None:
    """Wait, and print when the condition is not reached: the count shows what is missing."""

    def seen() -> bool:
        watch.check_watching()
        return reached()

    try:
        await wait_until(seen, deadline_seconds=deadline_seconds, what=what)
    except WaitExpiredError as error:
        sys.stderr.write(f"{error}\n")


def _figures(outcome: Outcome, options: argparse.Namespace) -> Mapping[str, Cell]:
    verdict = outcome.verdict
    return {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "extra_generations": verdict.extra_generations,
        "attempts_spent": outcome.attempts_spent,
        "crashes_counted": outcome.crashes_counted,
        "workers_ended": outcome.workers_ended,
        "engines_restarted": outcome.engines_restarted,
        "failed": verdict.failed,
        "dead_letters": verdict.dead_letters,
        "uncommitted": verdict.uncommitted,
        "offsets_broken": len(outcome.offsets_broken),
        "repeated_answers": verdict.repeated_answers,
        "begun_while_away": outcome.begun_while_away,
        "first_end_s": _rounded(min(outcome.ends_seconds, default=None)),
        "last_end_s": _rounded(max(outcome.ends_seconds, default=None)),
        "kind": options.kind.value,
        "outage_s": options.seconds,
        "tasks": options.tasks,
        "workers": options.workers,
    }


def _rows(probings: Sequence[Probing]) -> list[dict[str, Cell]]:
    return [
        {
            "worker": probing.worker.name,
            "held_after_s": _rounded(probing.held_after_seconds),
            "looks": probing.looks,
            "not_alive": probing.not_alive,
            "not_ready": probing.not_ready,
        }
        for probing in probings
    ]


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 1) if seconds is not None else None


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
