"""How the reaction benchmark counts seconds and steps: a missed step would improve its result."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fluxpool_operator.api import FluxWorkerPool
from kit.scaling.pools import edited, pool_body
from kit.waiting import wait_until

pytestmark = pytest.mark.on_change("benchmarks")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cluster_parts.reaction_watch")


@pytest.fixture
def reaction(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("reaction")


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param([], None, id="nothing happened"),
        pytest.param([(10.2, 12)], (0.2, 1), id="one jump"),
        pytest.param([(10.2, 1), (10.5, 4), (11.0, 12)], (1.0, 3), id="a staircase"),
        pytest.param([(10.2, 7)], None, id="only a part of it"),
        pytest.param([(10.2, 12), (12.0, 13)], None, id="beyond it"),
        pytest.param([(10.2, 12), (12.0, 13), (14.0, 12)], (4.0, 3), id="beyond it and back"),
        pytest.param([(9.9, 12)], (-0.1, 1), id="before the last acknowledgement"),
    ],
)
def test_every_change_is_a_step_and_the_last_one_ends_the_reaction(
    watch: Any, seen: list[tuple[float, int]], expected: tuple[float, int] | None
) -> None:
    found = watch.reaction_to([watch.Sighting(*sighting) for sighting in seen], acked_at_seconds=10.0, size=12)
    assert (found and (round(found.seconds, 6), found.steps)) == expected


class WatchedApi:
    """One Deployment that is scaled from zero to twelve, with a bookmark before each event."""

    async def get(self, _path: str) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "items": [self._deployment(0)]}

    async def watch(self, _path: str, *, resource_version: str) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        bookmark = {"metadata": {"resourceVersion": resource_version}, "spec": {"replicas": 1}}
        for replicas in (0, 5, 5, 12):
            yield "BOOKMARK", bookmark
            yield "MODIFIED", self._deployment(replicas)
        await asyncio.Event().wait()

    @staticmethod
    def _deployment(replicas: int) -> dict[str, Any]:
        return {"metadata": {"name": "standard-worker"}, "spec": {"replicas": replicas}}


async def test_only_a_new_number_of_replicas_is_a_change(watch: Any) -> None:
    log = watch.ReplicaLog(WatchedApi(), namespace="reaction")
    following = asyncio.create_task(log.follow())
    await wait_until(lambda: log.replicas("standard-worker") == 12, deadline_seconds=10, what="twelve replicas")
    following.cancel()
    assert [seen.replicas for seen in log.since("standard-worker", 0.0)] == [0, 5, 12]
    assert log.replicas("another") is None


def test_the_planned_size_follows_from_the_tasks_and_no_limit(reaction: Any) -> None:
    world = importlib.import_module("cluster_parts.reaction_world")
    pool = FluxWorkerPool.parse(edited(pool_body(), {"scaling": world.SCALING}))
    size = reaction.planned_replicas(pool)
    assert size == world.TASKS / pool.spec.scaling.target_lag_per_replica == 12
    assert size < pool.spec.scaling.max_replicas


def test_the_summary_names_the_slow_runs_and_the_one_with_most_steps(reaction: Any, watch: Any) -> None:
    runs = [watch.Reaction(seconds=number / 10, steps=1) for number in range(1, 21)]
    assert reaction.summary([*runs, watch.Reaction(seconds=9.0, steps=3)]) == {
        "median_s": 1.1,
        "p95_s": 2.0,
        "max_s": 9.0,
        "steps": 3,
    }
    assert reaction.summary(runs[:1]) == {"median_s": 0.1, "p95_s": 0.1, "max_s": 0.1, "steps": 1}
