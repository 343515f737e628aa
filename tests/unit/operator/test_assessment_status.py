"""The numbers of a status, when they are written, and the patch."""

import copy
import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_operator.api import FluxWorkerPoolStatus, LaneStatus, PlanStatus
from fluxpool_operator.assessment import PoolView, assess, status_patch, worth_writing
from fluxpool_operator.assessment.view import coarse_count, coarse_seconds, duration_text
from fluxpool_operator.planning import Constraint
from fluxpool_operator.workload import PodStage
from kit.scaling.pool_views import GENERATION, NOON, TEMPLATE, decision, deployment, lane, later, pod, pods, pool, view


def test_a_status_has_the_observation_and_the_plan() -> None:
    seen = view(
        4,
        lanes=(lane(1234, in_flight=3, due_retries=20, oldest_age_seconds=47.3), lane(5, name="vip")),
        plan=decision(
            4, constraint=Constraint.MAXIMUM, required=9, eta_seconds=331.0, reason="Many. The maximum is 4."
        ),
        deployment=deployment(5, ready=3, updated=4),
        pods=pods(3, pod("x", PodStage.TERMINATING)),
    )
    status = assess(seen)
    assert status.model_dump(exclude={"conditions", "lanes", "plan"}) == {
        "observed_generation": GENERATION,
        "replicas": 5,
        "ready_replicas": 3,
        "updated_replicas": 4,
        "terminating_replicas": 1,
        "desired_replicas": 4,
        "selector": "app.kubernetes.io/name=fluxpool-worker,fluxpool.dev/pool=standard",
        "pending": 1300,
        "in_flight": 3,
        "oldest_age_seconds": 45,
        "lag_observed_time": NOON - timedelta(seconds=1),
        "start_seconds": None,
        "model_family": "FLUX.1-dev",
        "license": "FLUX.1 [dev] Non-Commercial License",
        "last_scale_time": NOON,
        "last_active_time": NOON,
        "template_hash": TEMPLATE,
    }
    assert status.plan == PlanStatus(
        required_replicas=9,
        replicas=4,
        constraint=Constraint.MAXIMUM,
        reason="Many. The maximum is 4.",
        eta_seconds=300,
    )
    assert status.lanes[0] == LaneStatus(
        name="standard",
        consumer_group="group-standard",
        partitions=6,
        pending=1300,
        in_flight=3,
        oldest_age_seconds=45,
        expired=0,
    )


def test_unknown_numbers_are_absent() -> None:
    unread = lane(partitions=0, age_seconds=math.inf, problem="no broker answers")
    status = assess(view(0, lanes=(unread,), deployment=None, pods=(), template_hash=None))
    absent = (
        status.pending,
        status.in_flight,
        status.oldest_age_seconds,
        status.lag_observed_time,
        status.template_hash,
    )
    assert absent == (None,) * 5
    assert status.lanes == (LaneStatus(name="standard", consumer_group="group-standard"),)
    assert (status.replicas, status.ready_replicas) == (0, 0)


def test_times_and_expired_tasks_remain_while_kafka_cannot_be_read() -> None:
    first = view(2, lanes=(lane(3, expired_records_total=7),))
    status = assess(first)
    silent = later(
        first,
        status,
        60,
        lanes=(lane(partitions=0, age_seconds=math.inf, expired_records_total=7),),
        template_hash=None,
    )
    after = assess(silent)
    assert after.lag_observed_time == status.lag_observed_time
    assert after.template_hash == TEMPLATE
    assert after.lanes[0].expired == 7


def test_an_eta_is_shown_only_while_the_lag_is_known() -> None:
    seen = view(2, lanes=(lane(3, age_seconds=99),), plan=decision(2, eta_seconds=60.0))
    assert assess(seen).plan is not None
    assert assess(seen).plan.eta_seconds is None  # type: ignore[union-attr]


def test_shadow_shows_the_planned_number_without_applying_it() -> None:
    status = assess(view(1, pool=pool(scaling__mode="Shadow"), plan=decision(4)))
    assert status.plan is not None
    assert (status.desired_replicas, status.plan.replicas) == (1, 4)


def test_the_scale_time_changes_only_with_the_number() -> None:
    first = view(2)
    status = assess(first)
    assert status.last_scale_time == NOON
    same = assess(later(first, status, 60))
    assert same.last_scale_time == NOON
    more = assess(later(first, status, 60, desired_replicas=3))
    assert more.last_scale_time == NOON + timedelta(seconds=60)
    assert assess(view(0)).last_scale_time is None


def test_the_active_time_advances_while_there_is_lag_and_stops_afterwards() -> None:
    busy = view(2, lanes=(lane(3),))
    status = assess(busy)
    assert status.last_active_time == NOON
    status = assess(later(busy, status, 61))
    assert status.last_active_time == NOON + timedelta(seconds=61)
    done = later(busy, status, 75, lanes=(lane(),))
    status = assess(done)
    assert status.last_active_time == NOON + timedelta(seconds=75)
    assert assess(later(done, status, 900)).last_active_time == NOON + timedelta(seconds=75)


def test_lag_that_cannot_be_read_does_not_end() -> None:
    busy = view(2, lanes=(lane(3),))
    status = assess(busy)
    unseen = later(busy, status, 70, lanes=(lane(age_seconds=99),))
    assert assess(unseen).last_active_time == NOON


@pytest.mark.parametrize(
    ("exact", "coarse"),
    [(0, 0), (7, 7), (99, 99), (100, 100), (104, 100), (105, 110), (995, 1000), (1234, 1200), (98_765, 99_000)],
)
def test_counts_have_two_significant_digits(exact: int, coarse: int) -> None:
    assert coarse_count(exact) == coarse


@pytest.mark.parametrize(
    ("exact", "coarse", "text"),
    [
        (0.0, 0, "0 s"),
        (4.9, 0, "0 s"),
        (59.0, 55, "55 s"),
        (75.0, 75, "75 s"),
        (301.0, 300, "5 min"),
        (4000.0, 3600, "60 min"),
        (9000.0, 9000, "2 h"),
        (100_000.0, 97_200, "27 h"),
    ],
)
def test_ages_have_steps(exact: float, coarse: int, text: str) -> None:
    assert (coarse_seconds(exact), duration_text(exact)) == (coarse, text)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_coarse_numbers_keep_their_order_and_are_near(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert coarse_count(low) <= coarse_count(high)
    assert coarse_seconds(low) <= coarse_seconds(high) <= high
    assert abs(coarse_count(high) - high) <= high * 0.05
    assert (coarse_count(high) == 0) == (high == 0)
    assert coarse_count(coarse_count(high)) == coarse_count(high)


def test_equal_statuses_are_never_written() -> None:
    status = assess(view())
    assert not worth_writing(status, status, seconds_since_write=math.inf)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"deployment": deployment(2, ready=1)}, 0),
        ({"pods": pods(2, pod("x", PodStage.TERMINATING))}, 0),
        ({"desired_replicas": 3}, 0),
        ({"lanes": (lane(age_seconds=99),)}, 0),
        ({"template_hash": "newer"}, 0),
        ({"lanes": (lane(12),)}, 10),
        ({"plan": decision(2, reason="Another reason.")}, 10),
    ],
)
def test_conditions_and_counts_of_pods_are_written_at_once_and_other_numbers_later(
    fields: dict[str, Any], seconds: float
) -> None:
    first = view()
    written = assess(first)
    new = assess(later(first, written, **fields))
    assert written != new
    assert worth_writing(written, new, seconds_since_write=seconds)
    if seconds:
        assert not worth_writing(written, new, seconds_since_write=seconds - 0.1)


@pytest.mark.parametrize("seen", [view(0, lanes=(lane(),)), view(2, lanes=(lane(30),))], ids=["sleeping", "waiting"])
def test_a_pool_in_which_nothing_changes_writes_nothing(seen: PoolView) -> None:
    written = assess(seen)
    for second in range(5, 3600, 5):
        new = assess(later(seen, written, second))
        assert new.lag_observed_time != written.lag_observed_time
        assert not worth_writing(written, new, seconds_since_write=math.inf)


_counts = st.none() | st.integers(0, 3)
_statuses = st.builds(
    FluxWorkerPoolStatus,
    conditions=st.sampled_from([(), assess(view()).conditions, assess(view(0)).conditions]),
    replicas=_counts,
    pending=_counts,
    oldest_age_seconds=_counts,
    lanes=st.sampled_from([(), assess(view()).lanes]),
    plan=st.none() | st.builds(PlanStatus, required_replicas=st.integers(0, 3), constraint=st.just(Constraint.LAG),
                               reason=st.just("So."), eta_seconds=_counts),
    last_scale_time=st.sampled_from([None, NOON]),
)  # fmt: skip


@given(_statuses, _statuses)
def test_the_patch_leaves_exactly_the_new_status(written: FluxWorkerPoolStatus, new: FluxWorkerPoolStatus) -> None:
    stored = _merged(written.to_manifest(), status_patch(written, new))
    assert stored == new.to_manifest()
    assert FluxWorkerPoolStatus.model_validate(stored) == new


def _merged(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = _merged(result.get(name), value)
    return result
