"""Events: one for each transition, none for an unchanged state."""

import math
from dataclasses import replace
from typing import Any

import pytest

from fluxpool_contract.problems import FieldProblem
from fluxpool_operator.api import FluxWorkerPoolStatus, InvalidPoolError, Reason
from fluxpool_operator.assessment import PoolEvent, PoolProblem, PoolView, assess, events_of
from fluxpool_operator.planning import Constraint
from fluxpool_operator.reconcile.apply.status_writer import invalid_status
from fluxpool_operator.workload import PodStage
from fluxpool_operator.workload.pods import ContainerExit
from kit.scaling.pool_views import NOON, decision, deployment, lane, later, pod, pods, pool, view


def events(before: PoolView, **fields: Any) -> tuple[PoolEvent, ...]:
    """Events when the view of a pool changes in these fields."""
    status = assess(before)
    return events_of(status, assess(later(before, status, 5, **fields)))


def types_and_reasons(before: PoolView, **fields: Any) -> list[tuple[str, Reason]]:
    return [(event.type, event.reason) for event in events(before, **fields)]


SLEEPING = view(0)
BUSY = view(3)
CRASH = ContainerExit(1, "Error")
PROBLEM = PoolProblem(reason=Reason.SECRET_NOT_FOUND, message="missing: hub/token")


@pytest.mark.parametrize(
    ("before", "fields", "expected"),
    [
        (BUSY, {}, []),
        (BUSY, {"lanes": (lane(9),)}, []),
        (SLEEPING, {"desired_replicas": 3, "plan": decision(3)}, [("Normal", Reason.ACTIVATED)]),
        (BUSY, {"desired_replicas": 5, "plan": decision(5)}, [("Normal", Reason.SCALED_UP)]),
        (BUSY, {"desired_replicas": 2, "plan": decision(2)}, [("Normal", Reason.SCALED_DOWN)]),
        (BUSY, {"desired_replicas": 0, "plan": decision(0)}, [("Normal", Reason.SCALED_TO_ZERO)]),
        (BUSY, {"lanes": (lane(age_seconds=99),)}, [("Warning", Reason.LAG_UNAVAILABLE)]),
        (view(3, lanes=(lane(age_seconds=99),)), {"lanes": (lane(),)}, [("Normal", Reason.LAG_RESTORED)]),
        (
            BUSY,
            {"plan": decision(3, constraint=Constraint.MAXIMUM, required=9)},
            [("Normal", Reason.AT_MAX_REPLICAS)],
        ),
        (BUSY, {"plan": decision(3, constraint=Constraint.CAPACITY, required=9)}, [("Warning", Reason.CAPACITY_SHORT)]),
        (view(3, plan=decision(3, constraint=Constraint.MAXIMUM, required=9)), {"plan": decision(3)}, []),
        (BUSY, {"template_hash": "newer"}, [("Normal", Reason.ROLLOUT_STARTED)]),
        (SLEEPING, {"template_hash": "newer"}, []),
        (
            view(3, deployment=deployment(3, updated=1)),
            {"deployment": deployment(3)},
            [("Normal", Reason.READY), ("Normal", Reason.ROLLOUT_COMPLETE)],
        ),
        (BUSY, {"lanes": (lane(expired_records_total=4),)}, [("Warning", Reason.RETENTION_PASSED)]),
        (
            view(3, lanes=(lane(expired_records_total=4),)),
            {"lanes": (lane(expired_records_total=6),)},
            [("Warning", Reason.RETENTION_PASSED)],
        ),
        (BUSY, {"deployment": deployment(3, ready=2), "pods": pods(2, pod("a", PodStage.STARTING))}, []),
        (
            view(3, deployment=deployment(3, ready=2), pods=pods(2, pod("a", PodStage.STARTING))),
            {"deployment": deployment(3), "pods": pods(3)},
            [("Normal", Reason.READY)],
        ),
        (
            BUSY,
            {"deployment": deployment(3, ready=2), "pods": pods(2, pod("a", PodStage.UNSCHEDULABLE))},
            [("Warning", Reason.PODS_UNSCHEDULABLE), ("Warning", Reason.CAPACITY_SHORT)],
        ),
        (BUSY, {"problems": (PROBLEM,)}, [("Warning", Reason.SECRET_NOT_FOUND)]),
        (view(3, problems=(PROBLEM,)), {"problems": ()}, [("Normal", Reason.READY)]),
        (BUSY, {"pool": pool(paused=True)}, [("Normal", Reason.PAUSED)]),
        (view(3, pool=pool(paused=True)), {"pool": pool()}, [("Normal", Reason.RESUMED)]),
        (
            BUSY,
            {"lanes": (lane(partitions=4),)},
            [("Warning", Reason.PARTITIONS_FEWER_THAN_REPLICAS)],
        ),
        (
            BUSY,
            {"deployment": deployment(3, foreign_template_managers=("kubectl-edit",))},
            [("Warning", Reason.FOREIGN_FIELDS)],
        ),
    ],
)
def test_each_transition_has_one_event(
    before: PoolView, fields: dict[str, Any], expected: list[tuple[str, Reason]]
) -> None:
    written = assess(before)
    if "pool" in fields:
        fields = fields | {"pool": fields["pool"].model_copy(update={"status": written})}
    after = later(before, written, 5, **fields)
    status = assess(after)
    assert [(event.type, event.reason) for event in events_of(written, status)] == expected
    assert events_of(status, assess(later(after, status, 5))) == ()


def test_offsets_about_to_expire_have_one_event() -> None:
    slept = view(0, lanes=(lane(is_foreign=True, member_count=0),))
    status = assess(slept).model_copy(update={"last_scale_time": NOON})
    after = later(slept, status, 5 * 86_400)
    (event,) = events_of(status, assess(after))
    assert (event.type, event.reason) == ("Warning", Reason.OFFSETS_MAY_EXPIRE)
    assert events_of(assess(after), assess(later(after, assess(after), 5))) == ()


def test_a_scaling_event_has_the_numbers_and_the_reason_of_the_plan() -> None:
    (event,) = events(SLEEPING, desired_replicas=3, plan=decision(3, reason="12 tasks are unfinished."))
    assert event.message == "Scaled from zero to 3 workers. 12 tasks are unfinished."
    (event,) = events(view(1), desired_replicas=0, plan=decision(0, reason="No task is waiting."))
    assert event.message == "Scaled from 1 worker to zero. No task is waiting."


def test_the_event_of_a_manual_number_has_no_reason_of_the_plan() -> None:
    manual = view(1, pool=pool(scaling__mode="Manual"))
    (event,) = events(manual, desired_replicas=2)
    assert event.message == "Scaled from 1 to 2 workers."


def test_an_event_of_expired_tasks_has_the_increase() -> None:
    (event,) = events(view(3, lanes=(lane(expired_records_total=4),)), lanes=(lane(expired_records_total=5),))
    assert "deleted 1 task of lane standard" in event.message


def test_a_first_status_has_the_important_events_only() -> None:
    new = FluxWorkerPoolStatus()
    assert [event.reason for event in events_of(new, assess(SLEEPING))] == [Reason.READY]
    unread = view(0, lanes=(lane(partitions=0, age_seconds=math.inf, problem="no broker answers"),))
    assert Reason.LAG_UNAVAILABLE in [event.reason for event in events_of(new, assess(unread))]


def test_an_invalid_pool_has_one_event_that_names_its_fields() -> None:
    error = InvalidPoolError((FieldProblem(field="spec.scaling", message="min_replicas: 7 is above"),))
    paused = assess(view(3, pool=pool(paused=True)))
    refused = invalid_status(paused, pool(), error, now=NOON)
    (event,) = events_of(paused, refused)
    assert (event.type, event.reason) == ("Warning", Reason.INVALID_SPEC)
    assert "spec.scaling: min_replicas: 7 is above" in event.message
    assert events_of(refused, invalid_status(refused, pool(), error, now=NOON)) == ()


def test_a_crash_loop_has_one_event_however_often_it_crashes() -> None:
    first = replace(BUSY, deployment=deployment(3, ready=2))
    waiting = pod("a", PodStage.NOT_READY, waiting_reason="CrashLoopBackOff", restarts=3)
    again = pod("a", PodStage.STARTING, restarts=3)
    crashed = assess(replace(first, pods=pods(2, replace(waiting, last_exit=CRASH))))
    running = assess(later(first, crashed, 5, pods=pods(2, replace(again, last_exit=CRASH))))
    assert events_of(crashed, running) == ()


def test_a_changed_message_alone_has_no_event() -> None:
    assert (
        types_and_reasons(
            view(3, lanes=(lane(age_seconds=47, problem="a"),)), lanes=(lane(age_seconds=77, problem="b"),)
        )
        == []
    )
