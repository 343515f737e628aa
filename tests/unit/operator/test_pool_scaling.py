"""The number of replicas that is applied, and the history of a plan after a restart."""

from datetime import UTC, datetime, timedelta

import pytest

from fluxpool_operator.api import FluxWorkerPoolStatus
from fluxpool_operator.planning import PlanState
from fluxpool_operator.reconcile.apply.scaler import desired_replicas, restored_state
from kit.scaling.pool_views import decision, pool

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(("mode", "replicas"), [("Active", 4), ("Shadow", 1), ("Manual", 1)])
def test_the_plan_is_applied_only_in_mode_active(mode: str, replicas: int) -> None:
    assert desired_replicas(pool(scaling__mode=mode), decision(4)) == replicas


def test_a_new_pool_has_no_history() -> None:
    assert restored_state(FluxWorkerPoolStatus(), NOON) == PlanState()


def test_observed_idle_time_survives_a_restart_and_the_time_between_does_not_count() -> None:
    status = FluxWorkerPoolStatus(
        pending=0,
        in_flight=0,
        last_active_time=NOON - timedelta(minutes=9),
        lag_observed_time=NOON - timedelta(minutes=5),
    )
    assert restored_state(status, NOON).idle_seconds == 240


@pytest.mark.parametrize("numbers", [{"pending": 3, "in_flight": 0}, {"pending": 0, "in_flight": 1}, {"pending": 0}])
def test_lag_or_an_unreadable_lag_restores_no_idle_time(numbers: dict[str, int]) -> None:
    status = FluxWorkerPoolStatus(last_active_time=NOON - timedelta(hours=1), lag_observed_time=NOON, **numbers)
    assert restored_state(status, NOON).idle_seconds == 0


def test_a_clock_that_went_back_restores_nothing_below_zero() -> None:
    ahead = NOON + timedelta(hours=1)
    status = FluxWorkerPoolStatus(
        pending=0, in_flight=0, last_active_time=ahead, lag_observed_time=ahead, last_scale_time=ahead
    )
    state = restored_state(status, NOON)
    assert state.idle_seconds == 0
    assert {change.seconds_ago for change in state.pace.changes} == {0}


def test_a_restart_grants_no_second_step_within_the_period() -> None:
    pace = restored_state(FluxWorkerPoolStatus(last_scale_time=NOON - timedelta(seconds=40)), NOON).pace
    assert (pace.may_add(step=2, period_seconds=60), pace.may_remove(step=2, period_seconds=60)) == (0, 0)
    assert (pace.may_add(step=2, period_seconds=30), pace.may_remove(step=2, period_seconds=30)) == (2, 2)
