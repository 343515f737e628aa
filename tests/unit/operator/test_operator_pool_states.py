"""The states of pools for gateways: what they say, when they are written, and that a deleted pool is withdrawn."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.messages import PoolLane, PoolState
from fluxpool_operator.api import FluxWorkerPoolStatus
from fluxpool_operator.assessment import assess, pool_state, worth_publishing
from fluxpool_operator.planning import Constraint
from fluxpool_operator.reconcile.child_cache import Change
from fluxpool_operator.reconcile.pool_tasks import PoolTasks
from fluxpool_operator.workload import PodStage
from kit.scaling.pool_bench import PoolBench
from kit.scaling.pool_views import NOON, decision, lane, pod, pool, view
from kit.scaling.pools import MINIMAL_SPEC, edited, pool_body
from kit.waiting import wait_until


def state_of(replicas: int = 2, **fields: Any) -> PoolState:
    seen = view(replicas, **fields)
    return pool_state(seen, assess(seen))


def test_a_state_has_the_plan_and_the_workers_by_stage() -> None:
    took: dict[str, Any] = {"ready_since": NOON - timedelta(minutes=58, seconds=30)}
    state = state_of(
        5,
        plan=decision(5, constraint=Constraint.MAXIMUM, reason="Many. The maximum is 5.", eta_seconds=331.0),
        pods=(
            pod("a", **took),
            pod("b", **took),
            pod("c", PodStage.STARTING, created_at=NOON - timedelta(seconds=20)),
            pod("d", PodStage.STARTING, created_at=NOON - timedelta(seconds=10)),
            pod("e", PodStage.UNSCHEDULABLE, created_at=NOON - timedelta(seconds=70)),
            pod("f", PodStage.TERMINATING),
        ),
    )
    assert state == PoolState(
        namespace="images",
        pool="standard",
        lanes=(PoolLane(name="standard", topic="tasks-standard", consumer_group="group-standard"),),
        desired_replicas=5,
        ready_replicas=2,
        starting_replicas=2,
        draining_replicas=1,
        min_replicas=0,
        max_replicas=state.max_replicas,
        constraint="maximum",
        reason="Many. The maximum is 5.",
        eta_seconds=300,
        start_seconds=90,
        next_ready_at=NOON + timedelta(seconds=70),
        model="black-forest-labs/FLUX.1-dev",
        model_family="FLUX.1-dev",
        license="FLUX.1 [dev] Non-Commercial License",
        decided_at=NOON,
    )
    assert state.key == "images/standard"
    assert PoolState.model_validate_json(state.to_json()) == state


def test_a_worker_that_is_late_may_be_ready_any_time() -> None:
    before = FluxWorkerPoolStatus(start_seconds=60)
    starting = pod("a", PodStage.STARTING, created_at=NOON - timedelta(hours=1))
    assert state_of(1, pool=pool(before), pods=(starting,)).next_ready_at == NOON


def test_a_worker_without_a_pod_is_ready_after_the_whole_start() -> None:
    before = FluxWorkerPoolStatus(start_seconds=60)
    assert state_of(1, pool=pool(before), pods=()).next_ready_at == NOON + timedelta(seconds=60)
    # It may never get a node.
    assert state_of(1, pool=pool(before), pods=(pod("a", PodStage.UNSCHEDULABLE),)).next_ready_at is None


def test_nothing_is_expected_before_a_start_was_observed() -> None:
    starting = pod("a", PodStage.STARTING)
    state = state_of(1, pods=(starting,))
    assert (state.start_seconds, state.next_ready_at) == (None, None)


def test_the_family_of_another_checkpoint_is_not_known() -> None:
    state = state_of(pool=pool(model={"id": "/models/ours"}))
    assert (state.model, state.model_family, state.license) == ("/models/ours", None, None)


def test_workers_tell_the_family_of_another_checkpoint() -> None:
    read = lane()
    parts = tuple(
        replace(part, model_family=family)
        for part, family in zip(
            read.partitions, [None, "tiny", "FLUX.1-schnell", "FLUX.1-schnell", None, None], strict=True
        )
    )
    state = state_of(pool=pool(model={"id": "/models/ours"}), lanes=(replace(read, partitions=parts),))
    assert (state.model_family, state.license) == ("FLUX.1-schnell", "Apache-2.0")
    later = replace(read, partitions=(replace(read.partitions[0], model_family="FLUX.9"),))
    state = state_of(pool=pool(model={"id": "/models/ours"}), lanes=(later,))
    assert (state.model_family, state.license) == ("FLUX.9", None)


def test_a_pool_that_is_read_rarely_is_valid_for_longer() -> None:
    assert state_of().valid_seconds == 120
    assert state_of(pool=pool(scaling__pollIntervalSeconds=300)).valid_seconds == 1200


@pytest.mark.parametrize(
    ("change", "at_once"),
    [
        ({"desired_replicas": 3}, True),
        ({"starting_replicas": 1}, True),
        ({"constraint": "maximum"}, True),
        ({"paused": True}, True),
        ({"reason": "another sentence"}, False),
        ({"eta_seconds": 60}, False),
    ],
    ids=str,
)
def test_counts_are_written_at_once_and_estimates_later(change: Mapping[str, Any], at_once: bool) -> None:
    published = state_of()
    new = published.model_copy(update={"decided_at": NOON + timedelta(seconds=5), **change})
    assert worth_publishing(published, new, seconds_since_write=1.0) == at_once
    assert worth_publishing(published, new, seconds_since_write=10.0)


def test_an_unchanged_state_is_written_as_a_heartbeat_alone() -> None:
    published = state_of()
    later = published.model_copy(update={"decided_at": NOON + timedelta(seconds=29)})
    assert not worth_publishing(published, later, seconds_since_write=29.0)
    assert worth_publishing(published, later, seconds_since_write=30.0)
    assert worth_publishing(None, later, seconds_since_write=0.0)


# Reconciling


def bench(folder: Path, **edits: Any) -> PoolBench:
    scaling = {"maxReplicas": 6, "targetLagPerReplica": 1}
    paths = {path.replace("__", "."): value for path, value in edits.items()}
    return PoolBench(body=edited(pool_body({**MINIMAL_SPEC, "scaling": scaling}), paths), folder=folder)


def written(bench: PoolBench) -> list[PoolState]:
    return [PoolState.model_validate_json(value) for _, _, value in bench.hub.states if value is not None]


async def test_a_burst_is_published_with_its_plan(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    await pool.reconcile()
    assert [state.desired_replicas for state in written(pool)] == [0]
    pool.hub.pending = 2
    pool.seconds += 5
    await pool.reconcile(Change.RECORDS)
    latest = written(pool)[-1]
    assert latest.desired_replicas > 0
    assert latest.reason.startswith("The lag is")
    assert {(topic, key) for topic, key, _ in pool.hub.states} == {("flux-pools", "images/standard")}


async def test_an_idle_pool_is_published_about_every_30_seconds(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    await pool.run(600)
    assert 15 <= len(pool.hub.states) <= 21


async def test_a_paused_pool_says_so_and_its_topic_may_have_another_name(tmp_path: Path) -> None:
    pool = bench(tmp_path, paused=True, kafka__topics={"pools": "eu-pools"})
    await pool.reconcile()
    [(topic, _, _)] = pool.hub.states
    assert topic == "eu-pools"
    assert written(pool)[0].paused


async def test_without_a_connection_nothing_is_published(tmp_path: Path) -> None:
    pool = bench(
        tmp_path,
        kafka__security={
            "protocol": "SASL_SSL",
            "saslMechanism": "PLAIN",
            "credentialsSecretRef": {"name": "absent"},
        },
    )
    await pool.reconcile()
    assert pool.hub.states == []


async def test_a_deleted_pool_is_withdrawn(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    tasks = PoolTasks(pool.context)
    tasks.on_pool(pool.body, is_deleted=False)

    async def published() -> bool:
        return bool(pool.hub.states)

    await wait_until(published, deadline_seconds=10, what="the first state")
    tasks.on_pool(pool.body, is_deleted=True)
    assert pool.hub.states[-1] == ("flux-pools", "images/standard", None)


async def test_an_operator_that_stops_withdraws_nothing(tmp_path: Path) -> None:
    pool = bench(tmp_path)
    tasks = PoolTasks(pool.context)
    tasks.on_pool(pool.body, is_deleted=False)

    async def published() -> bool:
        return bool(pool.hub.states)

    await wait_until(published, deadline_seconds=10, what="the first state")
    await tasks.stop()
    assert None not in [value for _, _, value in pool.hub.states]
