"""How soon a pool at zero requests all workers that a burst of tasks needs, and in how many steps.

120 tasks are sent at once to the 12 partitions of a pool at zero replicas, at a random time between two of its
readings. The clock runs from the last acknowledgement until a watch shows the planned size in the Deployment's
`spec.replicas`. Then the group's offsets are set to the ends, the pool scales to zero, and the next run begins.
Broker, API server, controllers, scheduler and operator are real; nodes and pods are fake. The pool has only required
fields, `targetLagPerReplica: 10`, so that the size follows the tasks and not the partitions, and
`idleGracePeriodSeconds: 0`, so that it scales to zero at once; all others, such as `pollIntervalSeconds`, have their
defaults.

For comparison, on the same bursts, a second scaler reads the same lag in the same way at the pool's interval only,
makes the same plan and scales a separate Deployment. All of it shares this machine's cores.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from cluster_parts.ground import ClusterGround, on_cluster_ground
from cluster_parts.operator_process import running_operator
from cluster_parts.reaction_polling import DEPLOYMENT as POLLING
from cluster_parts.reaction_polling import scale_by_polling
from cluster_parts.reaction_watch import Reaction, ReplicaLog, reaction_to
from cluster_parts.reaction_world import NAMESPACE, PARTITIONS, TASKS, Testbed, build_testbed
from report import Cell, print_report

from fluxpool_operator.api import FluxWorkerPool, scaling_config
from fluxpool_operator.children import child_name
from fluxpool_operator.planning import Snapshot, plan
from kit.scaling.lanes import lane_of
from kit.waiting import WaitExpiredError, wait_until

REST_SECONDS: Final = 120.0
REST_LOOK_SECONDS: Final = 0.5
REACTION_SECONDS: Final = 60.0
GOALS: Final = "goals: median_s <= 0.5, p95_s <= 1, steps 1"


async def main() -> int:
    """Build, measure, print; return the exit status, 1 when the planned size was not reached."""
    options = _options()
    return await on_cluster_ground("reaction", lambda ground: _react(options, ground))


async def _react(options: argparse.Namespace, ground: ClusterGround) -> int:
    async with build_testbed(ground.control_plane, ground.bootstrap_servers) as testbed:
        with running_operator(ground.control_plane, ground.folder, namespace=NAMESPACE):
            try:
                measured = await _measure(options, testbed, ground.bootstrap_servers)
            except WaitExpiredError as error:
                sys.stderr.write(f"{error}\n")
                return 1
    sys.stderr.write(GOALS + "\n")
    _report(measured, as_json=options.json)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the times of the bursts")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error("--runs: at least one is needed")
    return options


async def _measure(options: argparse.Namespace, testbed: Testbed, bootstrap_servers: str) -> dict[str, list[Reaction]]:
    """The reactions of each way, run by run."""
    names = {"fluxpool": child_name(testbed.pool.name), "polling": POLLING}
    moments = random.Random(options.seed)  # noqa: S311 - the same times for the same seed
    measured: dict[str, list[Reaction]] = {way: [] for way in names}
    replicas = ReplicaLog(testbed.api, namespace=NAMESPACE)
    async with asyncio.TaskGroup() as group:
        beside = [
            group.create_task(replicas.follow(), name="replicas"),
            group.create_task(
                scale_by_polling(testbed.api, testbed.pool, bootstrap_servers=bootstrap_servers), name="polling"
            ),
        ]
        for number in range(options.runs):
            await _wait_for_rest(testbed, replicas, names)
            await asyncio.sleep(moments.uniform(0, testbed.pool.spec.scaling.poll_interval_seconds))
            reactions = await _run(testbed, replicas, names)
            for way, reaction in reactions.items():
                measured[way].append(reaction)
            told = ", ".join(f"{way} {item.seconds:.3f} s ({item.steps})" for way, item in reactions.items())
            sys.stderr.write(f"run {number + 1}: {told}\n")
        for task in beside:
            task.cancel()
    return measured


async def _run(testbed: Testbed, replicas: ReplicaLog, names: Mapping[str, str]) -> dict[str, Reaction]:
    """One burst, and how each way reached the planned size."""
    size = planned_replicas(testbed.pool)
    burst = await asyncio.to_thread(testbed.tasks.burst)
    # Include at least one more reading of each scaler: one that has not read all of the burst takes a second step.
    looked_until = burst.acked_at_seconds + testbed.pool.spec.scaling.poll_interval_seconds

    def reached() -> dict[str, Reaction]:
        found = {
            way: reaction_to(
                replicas.since(name, burst.began_at_seconds), acked_at_seconds=burst.acked_at_seconds, size=size
            )
            for way, name in names.items()
        }
        whole = {way: reaction for way, reaction in found.items() if reaction is not None}
        return whole if len(whole) == len(found) and time.monotonic() > looked_until else {}

    reactions = await wait_until(
        reached, deadline_seconds=REACTION_SECONDS, what=f"{size} replicas of {', '.join(names.values())}"
    )
    await asyncio.to_thread(testbed.tasks.commit)
    return reactions


async def _wait_for_rest(testbed: Testbed, replicas: ReplicaLog, names: Mapping[str, str]) -> None:
    async def resting() -> bool:
        await asyncio.sleep(REST_LOOK_SECONDS)
        return all(replicas.replicas(name) == 0 for name in names.values()) and await testbed.is_resting()

    await wait_until(resting, deadline_seconds=REST_SECONDS, what="the pool to be idle")


def planned_replicas(pool: FluxWorkerPool) -> int:
    """The planned size for the whole burst and nothing else."""
    lane = lane_of(*[TASKS // PARTITIONS] * PARTITIONS)
    snapshot = Snapshot(lanes=(lane,), current_replicas=0, elapsed_seconds=0.0)
    return plan(snapshot, scaling_config(pool.spec)).replicas


def _report(measured: Mapping[str, Sequence[Reaction]], *, as_json: bool) -> None:
    rows = {way: summary(reactions) for way, reactions in measured.items()}
    ours, polling = rows["fluxpool"], rows["polling"]
    ratio = statistics.median(item.seconds for item in measured["polling"]) / statistics.median(
        item.seconds for item in measured["fluxpool"]
    )
    print_report(
        ratios={
            "polling_to_ours": round(ratio, 1),
            **ours,
            "polling_median_s": polling["median_s"],
            "runs": len(measured["fluxpool"]),
        },
        rows=[{"way": way, **row} for way, row in rows.items()],
        as_json=as_json,
    )


def summary(reactions: Sequence[Reaction]) -> dict[str, Cell]:
    """Median, 95th percentile and maximum in seconds, and the most steps of any run."""
    seconds = sorted(item.seconds for item in reactions)
    p95 = statistics.quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {
        "median_s": round(statistics.median(seconds), 3),
        "p95_s": round(p95, 3),
        "max_s": round(seconds[-1], 3),
        "steps": max(item.steps for item in reactions),
    }


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
