"""`python -m demo_cluster`: the demo as a program: options, signals and exit status."""

import argparse
import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from demo_cluster.cluster import DemoCluster, DemoError, running_cluster
from demo_cluster.pools import NAMESPACE, POOLS
from demo_cluster.story import Story
from fluxpool_cli.local.kafka.broker import KafkaStartError
from fluxpool_cli.local.kafka.jars import KafkaJarsError
from fluxpool_cli.terminal import say
from fluxpool_cli.watch.display import LiveDisplay
from kit.cluster.control_plane import CommandError, ControlPlaneError
from kit.cluster.control_plane_binaries import BinariesMissingError
from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError
from kit.process_node import IsolationUnavailableError
from kit.waiting import WaitExpiredError

_END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FAULTS: Final = (
    ApiError,
    ApiUnreachableError,
    BinariesMissingError,
    CommandError,
    ControlPlaneError,
    DemoError,
    IsolationUnavailableError,
    KafkaStartError,
    KafkaJarsError,
    WaitExpiredError,
)
"""Errors of the components; all messages are for users."""


@dataclass(slots=True, kw_only=True)
class Ending:
    """The result of the demo."""

    well: bool | None = None
    """None until it was counted."""
    signal_number: int | None = None
    """What ended it early, or while it stayed up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 when every task has one result and one image, 1 otherwise, 128 + N after signal N."""
    options = _parser().parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="fluxpool-demo-cluster-"))
    _log_to(folder / "demo.log")
    ending = Ending()
    try:
        asyncio.run(_until_signal(_run(options, folder, ending), ending))
    except _FAULTS as error:
        # Ctrl-C in a terminal also reaches a running kubectl or helm: its end is no error.
        if ending.signal_number is None:
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
            say(f"demo-cluster: {error}{notes}")
            ending.well = False
    started = (folder / "control-plane").exists()
    if started and ending.well is False and ending.signal_number is None:
        say(f"what the parts wrote is in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    if ending.well is None:
        return 128 + (ending.signal_number or 0)
    return 0 if ending.well else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make demo-cluster",
        description="Two pools on a real Kubernetes control plane of this machine scale from zero and back.",
    )
    parser.add_argument("--tasks", type=_positive, default=24, help="tasks for each of the two pools (default: 24)")
    parser.add_argument(
        "--max-replicas", type=_positive, default=2, help="most workers of each pool, about 600 MB each (default: 2)"
    )
    parser.add_argument("--timeout", type=_positive, default=600, help="seconds for the tasks (default: 600)")
    parser.add_argument("--keep", action="store_true", help="keep everything running afterwards, until Ctrl-C")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return number


def _log_to(path: Path) -> None:
    """Log libraries to a file, not to the view."""
    file = path.open("w", encoding="utf-8")
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=file))
    logging.basicConfig(stream=file, level=logging.WARNING)


async def _until_signal(work: Coroutine[Any, Any, None], ending: Ending) -> None:
    """Run the demo; the first signal cancels it, further ones are ignored during the cleanup."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)

    def end(number: signal.Signals) -> None:
        if ending.signal_number is None:
            ending.signal_number = number
            say("stopping everything")
            task.cancel()

    for number in _END_SIGNALS:
        loop.add_signal_handler(number, end, number)
    await asyncio.wait({task})
    with contextlib.suppress(asyncio.CancelledError):
        task.result()


async def _run(options: argparse.Namespace, folder: Path, ending: Ending) -> None:
    began_at = time.monotonic()
    display = LiveDisplay()
    async with running_cluster(folder, gpus=options.max_replicas * len(POOLS), report=display.note) as cluster:
        story = Story(
            cluster=cluster,
            display=display,
            tasks_per_pool=options.tasks,
            max_replicas=options.max_replicas,
            deadline_seconds=options.timeout,
        )
        with display:
            found = await story.run()
        seconds = time.monotonic() - began_at
        for problem in (*story.problems, *found.problems):
            say(problem)
        if options.keep:
            _say_addresses(cluster)
        _result(found.line(peak_replicas=story.peak_replicas, seconds=seconds))
        sent = options.tasks * len(POOLS)
        there = (found.tasks, found.images, found.lost, found.doubled) == (sent, sent, 0, 0)
        ending.well = there and not story.problems and not found.problems
        if options.keep:
            await asyncio.Event().wait()


def _say_addresses(cluster: DemoCluster) -> None:
    bench = cluster.bench
    say(f"everything stays up until Ctrl-C; kubectl and helm are in {cluster.binaries}. In another terminal:")
    _result(f"export KUBECONFIG={bench.bench.control_plane.admin_kubeconfig}")
    say(f"kubectl get fluxworkerpools --namespace {NAMESPACE} --watch")
    say(f'.venv/bin/fluxpool submit "a fox" --size 64x64 --steps 4 --bootstrap-servers {bench.bootstrap_servers}')
    say(
        f"the images that were counted are in {cluster.folder / 'images'}, logs of pods below {cluster.folder / 'node'}"
    )


def _result(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
