"""A condition's lastTransitionTime changes only with its status."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fluxpool_operator.api import (
    ConditionStatus,
    ConditionType,
    FluxWorkerPoolStatus,
    LaneStatus,
    PlanStatus,
    Reason,
    Verdict,
    with_condition,
)
from fluxpool_operator.api.conditions import MAX_MESSAGE_CHARACTERS, Condition
from fluxpool_operator.planning import Constraint

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def _conditions_after(
    conditions: tuple[Condition, ...],
    *,
    status: ConditionStatus,
    now: datetime,
    kind: ConditionType = ConditionType.READY,
    reason: Reason = Reason.READY,
    message: str = "",
) -> tuple[Condition, ...]:
    return with_condition(conditions, kind, Verdict(status, reason, message), observed_generation=1, now=now)


def test_a_first_condition_transitions_now() -> None:
    (condition,) = _conditions_after((), status=ConditionStatus.TRUE, now=NOON + timedelta(milliseconds=7))
    assert condition.last_transition_time == NOON


def test_another_reason_is_no_transition() -> None:
    first = _conditions_after((), status=ConditionStatus.FALSE, now=NOON, reason=Reason.WORKERS_LOADING)
    later = NOON + timedelta(minutes=1)
    (condition,) = _conditions_after(
        first, status=ConditionStatus.FALSE, now=later, reason=Reason.WAITING_FOR_GPU, message="2"
    )
    assert (condition.reason, condition.message) == (Reason.WAITING_FOR_GPU, "2")
    assert condition.last_transition_time == NOON


def test_another_status_is_a_transition() -> None:
    first = _conditions_after((), status=ConditionStatus.FALSE, now=NOON)
    (condition,) = _conditions_after(first, status=ConditionStatus.TRUE, now=NOON + timedelta(minutes=1))
    assert condition.last_transition_time == NOON + timedelta(minutes=1)


@given(st.permutations(list(ConditionType)))
def test_conditions_have_one_order(order: list[ConditionType]) -> None:
    conditions: tuple[Condition, ...] = ()
    for kind in [*order, order[0]]:
        conditions = _conditions_after(conditions, status=ConditionStatus.TRUE, now=NOON, kind=kind)
    assert [condition.type for condition in conditions] == list(ConditionType)


def test_a_message_that_is_too_long_is_truncated() -> None:
    (condition,) = _conditions_after((), status=ConditionStatus.TRUE, now=NOON, message="x" * 40_000)
    assert len(condition.message) == MAX_MESSAGE_CHARACTERS


def test_a_status_is_written_as_kubernetes_spells_it() -> None:
    status = FluxWorkerPoolStatus(
        observed_generation=3,
        conditions=_conditions_after((), status=ConditionStatus.TRUE, now=NOON),
        desired_replicas=2,
        pending=12,
        oldest_age_seconds=30,
        lanes=(LaneStatus(name="standard", consumer_group="flux-worker-group", pending=12),),
        plan=PlanStatus(required_replicas=3, constraint=Constraint.PARTITIONS, reason="Two partitions."),
        last_scale_time=NOON,
    )
    written = status.to_manifest()
    assert written == {
        "observedGeneration": 3,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Ready",
                "message": "",
                "lastTransitionTime": "2026-05-04T12:00:00Z",
                "observedGeneration": 1,
            }
        ],
        "desiredReplicas": 2,
        "pending": 12,
        "oldestAgeSeconds": 30,
        "lanes": [{"name": "standard", "consumerGroup": "flux-worker-group", "pending": 12}],
        "plan": {"requiredReplicas": 3, "constraint": "partitions", "reason": "Two partitions."},
        "lastScaleTime": "2026-05-04T12:00:00Z",
    }
    assert FluxWorkerPoolStatus.model_validate(written) == status
