"""The outcome of each failure: three separate budgets, and an end for every task."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.kafka.ledger import LedgerEntry
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.dead_letter import Disposition
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_worker.agent.task.outcome import (
    Action,
    Budgets,
    Spent,
    expired_or_canceled,
    inherited_crashes,
    judge_attempt,
    judge_crashes,
    judge_deadline,
    judge_engine_death,
    judge_generation,
    orphan_is_worth_finishing,
)
from fluxpool_worker.engine.protocol import FailureKind

NOON = datetime(2026, 4, 5, 12, tzinfo=UTC)
BUDGETS = Budgets(max_attempts=3, max_crashes=3, retry_tiers=3)
WITHOUT_TIERS = Budgets(max_attempts=3, max_crashes=3, retry_tiers=0)


@pytest.mark.parametrize(
    ("kind", "attempt", "action", "code", "next_attempt", "tier"),
    [
        (FailureKind.ERROR, 1, Action.RETRY_LATER, ErrorCode.GENERATION_FAILED, 2, 0),
        (FailureKind.ERROR, 2, Action.RETRY_LATER, ErrorCode.GENERATION_FAILED, 3, 1),
        (FailureKind.ERROR, 3, Action.DEAD_LETTER, ErrorCode.GENERATION_FAILED, 3, None),
        (FailureKind.NOT_FINITE, 1, Action.RETRY_LATER, ErrorCode.NOT_FINITE, 2, 0),
        (FailureKind.INVALID, 1, Action.DEAD_LETTER, ErrorCode.INVALID_FIELD, 1, None),
        (FailureKind.REJECTED, 1, Action.FAIL, ErrorCode.REJECTED, 1, None),
        (FailureKind.CANCELED, 3, Action.RELEASE, ErrorCode.CANCELED, 3, None),
    ],
)
def test_the_outcome_of_a_failed_generation_depends_on_kind_and_attempt(  # noqa: PLR0917 - a table's columns
    kind: FailureKind, attempt: int, action: Action, code: ErrorCode, next_attempt: int, tier: int | None
) -> None:
    verdict = judge_generation(kind, spent=Spent(attempt=attempt, crashes=1), budgets=BUDGETS, low_memory=False)
    assert (verdict.action, verdict.code, verdict.tier) == (action, code, tier)
    assert verdict.spent == Spent(attempt=next_attempt, crashes=1)


def test_out_of_memory_is_repeated_at_once_before_it_uses_up_an_attempt() -> None:
    first = judge_generation(FailureKind.OUT_OF_MEMORY, spent=Spent(), budgets=BUDGETS, low_memory=False)
    assert (first.action, first.spent) == (Action.TRY_LOW_MEMORY, Spent())
    second = judge_generation(FailureKind.OUT_OF_MEMORY, spent=Spent(), budgets=BUDGETS, low_memory=True)
    assert (second.action, second.spent, second.tier) == (Action.RETRY_LATER, Spent(attempt=2), 0)


def test_a_lost_device_counts_as_a_crash_and_not_as_an_attempt() -> None:
    verdict = judge_generation(FailureKind.DEVICE_LOST, spent=Spent(attempt=3), budgets=BUDGETS, low_memory=False)
    assert (verdict.action, verdict.error_class) == (Action.RETRY_LATER, ErrorClass.WORKER_FATAL)
    assert verdict.spent == Spent(attempt=3, crashes=1)


def test_only_a_started_job_is_suspected_after_an_engine_crash() -> None:
    innocent = judge_engine_death(spent=Spent(crashes=2), budgets=BUDGETS, suspected=False)
    assert (innocent.action, innocent.spent) == (Action.TRY_AGAIN, Spent(crashes=2))
    suspect = judge_engine_death(spent=Spent(crashes=1), budgets=BUDGETS, suspected=True)
    assert (suspect.action, suspect.spent, suspect.tier) == (Action.RETRY_LATER, Spent(crashes=2), 1)
    guilty = judge_engine_death(spent=Spent(crashes=2), budgets=BUDGETS, suspected=True)
    assert (guilty.action, guilty.code, guilty.disposition) == (
        Action.DEAD_LETTER,
        ErrorCode.CRASH_LOOP,
        Disposition.CRASH_LOOP,
    )


def test_without_retry_topics_a_task_is_repeated_at_once() -> None:
    failed = judge_generation(FailureKind.ERROR, spent=Spent(), budgets=WITHOUT_TIERS, low_memory=False)
    died = judge_engine_death(spent=Spent(), budgets=WITHOUT_TIERS, suspected=True)
    assert [failed.action, died.action] == [Action.TRY_AGAIN, Action.TRY_AGAIN]
    assert [failed.tier, died.tier] == [None, None]


def test_a_task_that_crashed_too_often_is_not_begun_again() -> None:
    assert judge_crashes(spent=Spent(crashes=2), budgets=BUDGETS) is None
    verdict = judge_crashes(spent=Spent(crashes=3), budgets=BUDGETS)
    assert verdict is not None
    assert (verdict.action, verdict.code) == (Action.DEAD_LETTER, ErrorCode.CRASH_LOOP)


_failures = st.one_of(st.sampled_from(FailureKind), st.just("died"))


@given(
    st.lists(_failures, min_size=200, max_size=200),
    st.builds(Budgets, max_attempts=st.integers(1, 10), max_crashes=st.integers(1, 10), retry_tiers=st.integers(0, 8)),
)
def test_every_row_of_failures_ends_and_no_budget_is_overdrawn(
    failures: list[FailureKind | str], budgets: Budgets
) -> None:
    spent, low_memory = Spent(), False
    for tries, failure in enumerate(failures, start=1):
        if isinstance(failure, FailureKind):
            verdict = judge_generation(failure, spent=spent, budgets=budgets, low_memory=low_memory)
        else:
            verdict = judge_engine_death(spent=spent, budgets=budgets, suspected=True)
        assert spent.attempt <= verdict.spent.attempt <= budgets.max_attempts
        assert spent.crashes <= verdict.spent.crashes <= budgets.max_crashes
        assert (verdict.tier is not None) == (verdict.action is Action.RETRY_LATER)
        assert verdict.tier is None or 0 <= verdict.tier < budgets.retry_tiers
        if verdict.action in {Action.DEAD_LETTER, Action.FAIL, Action.RELEASE}:
            assert tries <= 2 * (budgets.max_attempts + budgets.max_crashes)
            return
        low_memory = verdict.action is Action.TRY_LOW_MEMORY
        spent = verdict.spent
    raise AssertionError("no end after two hundred failures")


@given(st.integers(1, 10), st.integers(1, 8))
def test_later_attempts_never_have_a_shorter_delay(max_attempts: int, tiers: int) -> None:
    budgets = Budgets(max_attempts=max_attempts, max_crashes=3, retry_tiers=tiers)
    verdicts = [
        judge_attempt(ErrorCode.GENERATION_FAILED, spent=Spent(attempt=attempt), budgets=budgets)
        for attempt in range(1, max_attempts)
    ]
    chosen = [verdict.tier for verdict in verdicts if verdict.tier is not None]
    assert chosen == sorted(chosen)
    assert len(chosen) == max_attempts - 1


@pytest.mark.parametrize(
    ("changes", "crashes"),
    [
        ({}, 2),
        ({"released": True}, 1),
        ({"generated": True}, 1),
        ({"worker": "me", "started_at": 500}, 1),
        ({"worker": "me", "started_at": 499}, 2),
    ],
    ids=["died", "released", "had-its-images", "this-process", "this-pod-before-its-restart"],
)
def test_a_task_of_a_lost_worker_counts_one_more_crash_unless_it_was_released(
    changes: dict[str, object], crashes: int
) -> None:
    fields: dict[str, object] = {"task": "t", "worker": "other", "started_at": 100, "crashes": 1, **changes}
    entry = LedgerEntry(**fields)  # type: ignore[arg-type]  # a table of changes
    assert inherited_crashes(entry, worker="me", worker_started_at=500) == crashes


@pytest.mark.parametrize(("outage_ended_at", "crashes"), [(None, 2), (99.0, 2), (100.0, 1), (400.0, 1)])
def test_a_task_in_flight_during_an_outage_counts_no_crash(outage_ended_at: float | None, crashes: int) -> None:
    entry = LedgerEntry(task="t", worker="other", started_at=100, crashes=1)
    found = inherited_crashes(entry, worker="me", worker_started_at=500, outage_ended_at=outage_ended_at)
    assert found == crashes


def test_an_orphan_is_finished_when_more_than_a_third_is_done() -> None:
    assert not orphan_is_worth_finishing(0.33)
    assert orphan_is_worth_finishing(0.34)


@pytest.mark.parametrize(
    ("deadline", "needed_seconds", "too_late"),
    [
        (None, 1e6, False),
        (NOON + timedelta(seconds=10), 9.9, False),
        (NOON + timedelta(seconds=10), 10, True),
        (NOON, 0, True),
    ],
)
def test_a_task_expires_when_it_cannot_be_in_time(
    deadline: datetime | None, needed_seconds: float, *, too_late: bool
) -> None:
    spent = Spent(attempt=2)
    verdict = judge_deadline(deadline, now=NOON, needed_seconds=needed_seconds, spent=spent)
    assert (verdict is not None) is too_late
    if verdict is not None:
        assert (verdict.action, verdict.error_class) == (Action.FAIL, ErrorClass.EXPIRED)
        assert (verdict.code, verdict.spent) == (ErrorCode.DEADLINE_EXCEEDED, spent)


def test_a_canceled_task_uses_up_no_attempt() -> None:
    command = CancelCommand(request_id="r", at=NOON, requested_by="ops", reason="a test")
    failed = expired_or_canceled(NOON, command, now=NOON, spent=Spent(attempt=2, crashes=1))
    assert failed is not None
    assert (failed.attempt, failed.message) == (2, "canceled by ops: a test")
    verdict = failed.verdict
    assert (verdict.action, verdict.error_class, verdict.spent) == (
        Action.FAIL,
        ErrorClass.CANCELED,
        Spent(attempt=2, crashes=1),
    )
