"""Invariants of every status, for any observation and decision."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fluxpool_operator.api import ConditionStatus, ConditionType, FluxWorkerPoolStatus, Reason
from fluxpool_operator.assessment import PoolProblem, PoolView, assess, events_of, status_patch, worth_writing
from fluxpool_operator.planning import Constraint
from fluxpool_operator.workload import PodStage
from fluxpool_operator.workload.pods import ContainerExit
from kit.scaling.pool_views import decision, deployment, lane, later, pod, pool, view

_PROBLEMS = [
    Reason.CHILD_FAILED,
    Reason.FOREIGN_CHILD,
    Reason.GROUP_CONFLICT,
    Reason.SECRET_NOT_FOUND,
    Reason.TOPICS_FAILED,
]
_words = st.sampled_from(["", "no broker answers", "x" * 9000, 'Unknown topic "é" (UNKNOWN_TOPIC_OR_PART)'])
_lanes = st.lists(
    st.builds(
        lane,
        st.integers(0, 5000),
        in_flight=st.integers(0, 3),
        partitions=st.sampled_from([0, 1, 6]),
        age_seconds=st.sampled_from([0.0, 1.7, 30.0, 31.0, 90_000.0, math.inf]),
        oldest_age_seconds=st.none() | st.floats(0, 1e6),
        expired_records_total=st.integers(0, 3),
        due_retries=st.integers(0, 3),
        problem=st.none() | _words,
    ),
    max_size=1,
).map(tuple)
_pods = st.lists(
    st.builds(
        pod,
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(PodStage),
        template_hash=st.sampled_from(["a", "b"]),
        restarts=st.integers(0, 3),
        unschedulable_message=st.none() | _words,
        waiting_reason=st.sampled_from([None, "ContainerCreating", "ErrImagePull", "CrashLoopBackOff", "Strange"]),
        waiting_message=st.none() | _words,
        last_exit=st.none() | st.builds(ContainerExit, st.integers(0, 255), st.sampled_from(["", "Error"])),
    ),
    max_size=5,
).map(tuple)
_deployments = st.none() | st.builds(
    deployment,
    st.integers(0, 6),
    ready=st.integers(0, 6),
    updated=st.integers(0, 6),
    observed_generation=st.sampled_from([6, 7]),
    replica_failure=st.none() | st.tuples(st.just("FailedCreate"), _words),
    foreign_template_managers=st.sampled_from([(), ("kubectl-edit",)]),
)
_pools = st.builds(
    pool,
    scaling__mode=st.sampled_from(["Active", "Shadow", "Manual"]),
    paused=st.booleans(),
)


@st.composite
def _views(draw: st.DrawFn) -> PoolView:
    problem = st.builds(PoolProblem, reason=st.sampled_from(_PROBLEMS), message=_words.filter(bool))
    plan = decision(
        draw(st.integers(0, 6)),
        constraint=draw(st.sampled_from(Constraint)),
        required=draw(st.integers(0, 20)),
        reason=draw(st.sampled_from(["So.", "x" * 3000])),
        eta_seconds=draw(st.none() | st.floats(0, 1e6)),
    )
    return view(
        draw(st.integers(0, 6)),
        pool=draw(_pools),
        lanes=draw(_lanes),
        plan=plan,
        deployment=draw(_deployments),
        pods=draw(_pods),
        problems=tuple(draw(st.lists(problem, max_size=2))),
        template_hash=draw(st.sampled_from([None, "0f1e2d3c", "newer"])),
    )


def _ready(status: FluxWorkerPoolStatus) -> bool:
    return any(
        condition.type is ConditionType.READY and condition.status is ConditionStatus.TRUE
        for condition in status.conditions
    )


@given(_views())
def test_a_status_can_be_stored_and_read_again(seen: PoolView) -> None:
    status = assess(seen)
    assert FluxWorkerPoolStatus.model_validate(status.to_manifest()) == status
    assert [condition.type for condition in status.conditions] == list(ConditionType)
    assert all(condition.message for condition in status.conditions)


@given(_views())
def test_a_second_assessment_at_the_same_moment_changes_and_posts_nothing(seen: PoolView) -> None:
    status = assess(seen)
    settled = assess(later(seen, status))
    again = assess(later(seen, settled))
    assert again == settled
    assert not worth_writing(settled, again, seconds_since_write=math.inf)
    assert events_of(settled, again) == ()


@given(_views())
def test_a_pool_with_fewer_workers_than_desired_or_a_problem_is_never_ready(seen: PoolView) -> None:
    if _ready(assess(seen)):
        assert not seen.problems
        assert seen.deployment is not None
        assert seen.deployment.ready >= seen.desired_replicas
        assert seen.deployment.replica_failure is None


@given(_views(), _views())
def test_events_are_the_transitions(one: PoolView, other: PoolView) -> None:
    before = assess(one)
    after = assess(later(other, before, 5))
    events = events_of(before, after)
    assert all(event.message for event in events)
    scaled = {Reason.ACTIVATED, Reason.SCALED_UP, Reason.SCALED_DOWN, Reason.SCALED_TO_ZERO}
    told = [event for event in events if event.reason in scaled]
    assert len(told) == (before.desired_replicas != after.desired_replicas)
    assert set(status_patch(before, after)) >= {"conditions", "replicas", "plan"}
