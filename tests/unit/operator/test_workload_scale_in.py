"""A scale-in removes idle pods and stops before a busy one, in the order of the ReplicaSet controller."""

import dataclasses
import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import cmp_to_key

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_operator.workload import PodStage, PodSummary, plan_scale_in
from fluxpool_operator.workload.pods import PodPhase
from fluxpool_operator.workload.scale_in import VICTIM_COST

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def _pod(
    name: str,
    stage: PodStage = PodStage.READY,
    *,
    cost: int = 0,
    template: str = "a",
    node: str | None = "gpu-1",
    age_seconds: int = 600,
    restarts: int = 0,
    phase: PodPhase | None = None,
) -> PodSummary:
    unassigned = stage in (PodStage.UNSCHEDULABLE, PodStage.GATED)
    starting = PodPhase.PENDING if unassigned else PodPhase.RUNNING
    return PodSummary(
        name=name,
        uid=f"uid-{name}",
        stage=stage,
        phase=phase or starting,
        node=None if unassigned else node,
        created_at=NOON - timedelta(seconds=age_seconds + 60),
        deletion_cost=cost,
        template_hash=template,
        owner_uid=template,
        ready_since=NOON - timedelta(seconds=age_seconds) if stage is PodStage.READY else None,
        restarts=restarts,
    )


def _younger(one: datetime, other: datetime, *, uids: tuple[str, str]) -> bool:
    """`logarithmicRankDiff`, and by uid when it is 0."""

    def bucket(moment: datetime) -> int:
        age_nanoseconds = (NOON - moment).total_seconds() * 1e9
        return int(math.log2(age_nanoseconds)) if age_nanoseconds > 0 else -1

    difference = bucket(one) - bucket(other)
    return uids[0] < uids[1] if difference == 0 else difference < 0


def _is_deleted_before(left: PodSummary, right: PodSummary, ranks: Counter[str | None]) -> bool:
    """`ActivePodsWithRanks.Less`, rule by rule."""
    uids = (left.uid, right.uid)
    phases = [PodPhase.PENDING, PodPhase.UNKNOWN, PodPhase.RUNNING]
    if left.node != right.node and None in (left.node, right.node):
        return left.node is None
    if left.phase is not right.phase:
        return phases.index(left.phase) < phases.index(right.phase)
    if (left.ready_since is None) != (right.ready_since is None):
        return left.ready_since is None
    if left.deletion_cost != right.deletion_cost:
        return left.deletion_cost < right.deletion_cost
    if ranks[left.node] != ranks[right.node]:
        return ranks[left.node] > ranks[right.node]
    if left.ready_since and right.ready_since and left.ready_since != right.ready_since:
        return _younger(left.ready_since, right.ready_since, uids=uids)
    if left.restarts != right.restarts:
        return left.restarts > right.restarts
    return left.created_at != right.created_at and _younger(left.created_at, right.created_at, uids=uids)


def _deleted_by_kubernetes(pods: list[PodSummary], replicas: int) -> list[PodSummary]:
    """The pods that the ReplicaSet controller deletes."""
    active = [pod for pod in pods if pod.stage not in (PodStage.TERMINATING, PodStage.FINISHED)]
    ranks = Counter(pod.node for pod in active)

    def compare(left: PodSummary, right: PodSummary) -> int:
        return -1 if _is_deleted_before(left, right, ranks) else int(_is_deleted_before(right, left, ranks))

    return sorted(active, key=cmp_to_key(compare))[: max(0, len(active) - replicas)]


def _marked(pods: list[PodSummary], costs: dict[str, int]) -> list[PodSummary]:
    return [dataclasses.replace(pod, deletion_cost=costs.get(pod.name, pod.deletion_cost)) for pod in pods]


_stages = st.sampled_from([*PodStage, PodStage.READY, PodStage.READY])


@st.composite
def _pools(draw: st.DrawFn) -> list[PodSummary]:
    return [
        _pod(
            f"pod-{number}",
            draw(_stages),
            cost=draw(st.sampled_from([0, 0, VICTIM_COST, -500, 7])),
            node=draw(st.sampled_from(["gpu-1", "gpu-2"])),
            age_seconds=draw(st.integers(0, 5000)),
            restarts=draw(st.integers(0, 2)),
            phase=None if draw(st.booleans()) else PodPhase.RUNNING,
        )
        for number in range(draw(st.integers(0, 9)))
    ]


@given(_pools(), st.data())
def test_kubernetes_deletes_no_busy_pod_and_as_many_idle_ones_as_it_can(
    pods: list[PodSummary], data: st.DataObject
) -> None:
    with_node = [pod.name for pod in pods if pod.node]
    busy = frozenset(data.draw(st.sets(st.sampled_from(with_node)))) if with_node else frozenset()
    current, wanted = data.draw(st.integers(0, 10)), data.draw(st.integers(0, 10))
    decision = plan_scale_in(pods, busy=busy, current=current, wanted=wanted)
    after = _marked(pods, dict(decision.costs))
    active = [pod for pod in after if pod.is_active]
    assert all(pod.deletion_cost >= 0 for pod in active if pod.name in busy)
    if wanted >= current:
        assert decision.replicas == wanted
        assert all(pod.deletion_cost >= 0 for pod in active)
        return
    assert wanted <= decision.replicas <= current
    if len(active) <= current:
        assert {pod.name for pod in _deleted_by_kubernetes(after, decision.replicas)} & busy == set()
    if decision.replicas > wanted:
        one_more = {pod.name for pod in _deleted_by_kubernetes(after, decision.replicas - 1)}
        assert one_more & busy


@given(_pools(), st.integers(0, 9), st.integers(0, 9))
def test_costs_are_written_once(pods: list[PodSummary], current: int, wanted: int) -> None:
    busy = frozenset(pod.name for pod in pods[::2])
    first = plan_scale_in(pods, busy=busy, current=current, wanted=wanted)
    again = plan_scale_in(_marked(pods, dict(first.costs)), busy=busy, current=current, wanted=wanted)
    assert (again.costs, again.replicas) == ({}, first.replicas)


@pytest.mark.parametrize(
    ("pods", "busy", "wanted", "replicas", "costs"),
    [
        ([_pod("a"), _pod("b"), _pod("c")], {"a"}, 1, 1, {"b": VICTIM_COST, "c": VICTIM_COST}),
        ([_pod("a"), _pod("b"), _pod("c")], {"a", "b"}, 1, 2, {"c": VICTIM_COST}),
        ([_pod("a"), _pod("b"), _pod("c")], {"a", "b", "c"}, 0, 3, {}),
        # Not ready before ready, for any costs: a busy worker that does not answer its probe.
        ([_pod("a", PodStage.NOT_READY), _pod("b"), _pod("c")], {"a"}, 1, 3, {}),
        ([_pod("a"), _pod("b", PodStage.UNSCHEDULABLE), _pod("c")], {"a", "c"}, 2, 2, {"b": VICTIM_COST}),
        ([_pod("a"), _pod("b", PodStage.TERMINATING), _pod("c")], {"a", "b"}, 1, 1, {"c": VICTIM_COST}),
        # A cost of an earlier scale-in on a pod that is busy now.
        ([_pod("a", cost=VICTIM_COST), _pod("b"), _pod("c")], {"a"}, 2, 2, {"a": 0, "b": VICTIM_COST}),
        # Protected by a user: the last of the idle pods, but still before a busy one.
        ([_pod("a"), _pod("b", cost=50), _pod("c", age_seconds=1)], {"a"}, 2, 2, {"c": VICTIM_COST}),
    ],
)
def test_a_scale_in_removes_no_more_than_the_idle_pods(
    pods: list[PodSummary], busy: set[str], wanted: int, replicas: int, costs: dict[str, int]
) -> None:
    decision = plan_scale_in(pods, busy=frozenset(busy), current=3, wanted=wanted)
    assert (decision.replicas, decision.costs) == (replicas, costs)


def test_a_scale_up_clears_the_costs_of_an_unfinished_scale_in() -> None:
    decision = plan_scale_in([_pod("a", cost=VICTIM_COST), _pod("b", cost=9)], busy=frozenset(), current=2, wanted=4)
    assert (decision.replicas, decision.costs) == (4, {"a": 0})


def test_replicas_without_a_pod_are_removed_first() -> None:
    decision = plan_scale_in([_pod("a"), _pod("b")], busy=frozenset({"a", "b"}), current=5, wanted=1)
    assert decision.replicas == 2


def test_while_two_templates_run_only_an_idle_pool_is_scaled_in() -> None:
    pods = [_pod("a", template="old"), _pod("b", template="new"), _pod("c", template="new")]
    held = plan_scale_in(pods, busy=frozenset({"a"}), current=3, wanted=1)
    assert (held.replicas, held.costs) == (3, {})
    assert plan_scale_in(pods, busy=frozenset({"a"}), current=3, wanted=0).replicas == 3
    assert plan_scale_in(pods, busy=frozenset(), current=3, wanted=0).replicas == 0


def test_the_order_seen_on_a_real_server() -> None:
    six = [_pod(f"pod-{number}", age_seconds=100 + number) for number in range(6)]
    idle = {"pod-2", "pod-5"}
    decision = plan_scale_in(six, busy=frozenset({pod.name for pod in six} - idle), current=6, wanted=4)
    assert decision.costs == dict.fromkeys(sorted(idle), VICTIM_COST)
    assert {pod.name for pod in _deleted_by_kubernetes(_marked(six, dict(decision.costs)), 4)} == idle
    marked = [_pod("idle", cost=-100), _pod("sick", PodStage.NOT_READY, cost=1000), _pod("new", PodStage.UNSCHEDULABLE)]
    assert [pod.name for pod in _deleted_by_kubernetes(marked, 1)] == ["new", "sick"]
