"""What a failure means and what the worker does about it. Pure: a table of decisions.

A task has two budgets. *Attempts* are its own failures. *Crashes* are engines and workers that died while they had the
task. A task that uses up one of them is dead-lettered. An outage of the store or the brokers costs neither: the worker
waits, and releases the task when the outage lasts too long.

| class | attempts | crashes | what happens |
| --- | --- | --- | --- |
| invalid | - | - | dead letter and failed result at once |
| rejected | - | - | failed result, no dead letter |
| transient | +1 | - | retry topic, or dead letter after the last attempt |
| worker-fatal | - | +1 | another engine; retry topic, or dead letter after the last crash |
| infra | - | - | hold, then release |
| expired, canceled | - | - | their own result; released when the pod drains |
"""

from dataclasses import KW_ONLY, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, assert_never

from fluxpool_contract.kafka import LedgerEntry
from fluxpool_contract.messages import CancelCommand, Disposition, format_time
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_worker.engine.protocol import FailureKind

MAX_ENGINE_DEATHS_IN_A_ROW: Final = 5
"""Deaths without a finished job in between after which the worker ends and Kubernetes backs off. Above the default
of `max_crashes`: one bad prompt alone must not end a pod."""


class Action(StrEnum):
    """What happens to the task next."""

    TRY_LOW_MEMORY = "try-low-memory"
    """At once and here, in the way that needs the least memory; costs no attempt."""
    TRY_AGAIN = "try-again"
    """At once and here: there is no retry topic."""
    RETRY_LATER = "retry-later"
    """By way of a retry topic, perhaps on another worker."""
    DEAD_LETTER = "dead-letter"
    FAIL = "fail"
    """A result without images, and nothing for operators to look at."""
    RELEASE = "release"
    """Uncommitted; another worker gets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What a task may cost before it is dead-lettered."""

    max_attempts: int
    max_crashes: int
    retry_tiers: int
    """How many retry topics there are; without any, retries happen at once and here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a task has cost so far."""

    attempt: int = 1
    """Number of the attempt under way, from 1."""
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judged failure."""

    action: Action
    error_class: ErrorClass
    code: ErrorCode
    _: KW_ONLY
    spent: Spent
    """As the task's next attempt begins, or as it ends."""
    disposition: Disposition = Disposition.EXHAUSTED
    tier: int | None = None
    """Index of the retry topic; only for `RETRY_LATER`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """No images from this worker: the verdict is to retry later, to dead-letter or to fail."""

    verdict: Verdict
    attempt: int
    """Number of the attempt that failed."""
    message: str
    stack: str = ""


def invalid(message: str, *, spent: Spent) -> Failed:
    """The failure of a task that can never become an image; the message begins with the field."""
    return Failed(verdict=_invalid(spent), attempt=spent.attempt, message=message)


def _invalid(spent: Spent) -> Verdict:
    verdict = Verdict(Action.DEAD_LETTER, ErrorClass.INVALID, ErrorCode.INVALID_FIELD, spent=spent)
    return replace(verdict, disposition=Disposition.INVALID)


def judge_generation(kind: FailureKind, *, spent: Spent, budgets: Budgets, low_memory: bool) -> Verdict:
    """What a failed generation means; `low_memory`: it already ran in the way that needs the least."""
    match kind:
        case FailureKind.INVALID:
            return _invalid(spent)
        case FailureKind.REJECTED:
            return Verdict(Action.FAIL, ErrorClass.REJECTED, ErrorCode.REJECTED, spent=spent)
        case FailureKind.OUT_OF_MEMORY if not low_memory:
            return Verdict(Action.TRY_LOW_MEMORY, ErrorClass.TRANSIENT, ErrorCode.OUT_OF_MEMORY, spent=spent)
        case FailureKind.OUT_OF_MEMORY:
            return judge_attempt(ErrorCode.OUT_OF_MEMORY, spent=spent, budgets=budgets)
        case FailureKind.NOT_FINITE:
            return judge_attempt(ErrorCode.NOT_FINITE, spent=spent, budgets=budgets)
        case FailureKind.ERROR:
            return judge_attempt(ErrorCode.GENERATION_FAILED, spent=spent, budgets=budgets)
        case FailureKind.DEVICE_LOST:
            return judge_engine_death(spent=spent, budgets=budgets, suspected=True)
        case FailureKind.CANCELED:
            return Verdict(Action.RELEASE, ErrorClass.CANCELED, ErrorCode.CANCELED, spent=spent)
        case _:
            assert_never(kind)


def judge_attempt(code: ErrorCode, *, spent: Spent, budgets: Budgets) -> Verdict:
    """What a failure of the task's own means: one attempt less."""
    if spent.attempt >= budgets.max_attempts:
        return Verdict(Action.DEAD_LETTER, ErrorClass.TRANSIENT, code, spent=spent)
    return Verdict(
        Action.RETRY_LATER if budgets.retry_tiers else Action.TRY_AGAIN,
        ErrorClass.TRANSIENT,
        code,
        spent=Spent(attempt=spent.attempt + 1, crashes=spent.crashes),
        tier=_tier(spent.attempt, budgets),
    )


def judge_engine_death(*, spent: Spent, budgets: Budgets, suspected: bool) -> Verdict:
    """What the engine's death means for a job that it held.

    `suspected`: the job had been begun. One that was only queued is tried again at once and costs nothing.
    """
    if not suspected:
        return Verdict(Action.TRY_AGAIN, ErrorClass.WORKER_FATAL, ErrorCode.ENGINE_DIED, spent=spent)
    crashed = Spent(attempt=spent.attempt, crashes=spent.crashes + 1)
    if verdict := judge_crashes(spent=crashed, budgets=budgets):
        return verdict
    return Verdict(
        Action.RETRY_LATER if budgets.retry_tiers else Action.TRY_AGAIN,
        ErrorClass.WORKER_FATAL,
        ErrorCode.ENGINE_DIED,
        spent=crashed,
        tier=_tier(crashed.crashes, budgets),
    )


def judge_crashes(*, spent: Spent, budgets: Budgets) -> Verdict | None:
    """The verdict on a task that has killed too many engines or workers to be started again; None when it may be."""
    if spent.crashes < budgets.max_crashes:
        return None
    return Verdict(
        Action.DEAD_LETTER,
        ErrorClass.WORKER_FATAL,
        ErrorCode.CRASH_LOOP,
        spent=spent,
        disposition=Disposition.CRASH_LOOP,
    )


def judge_deadline(deadline: datetime | None, *, now: datetime, needed_seconds: float, spent: Spent) -> Verdict | None:
    """Whether the task ends after its deadline, needing so long from now on; None when it may still be in time."""
    if deadline is None or now + timedelta(seconds=needed_seconds) < deadline:
        return None
    return Verdict(Action.FAIL, ErrorClass.EXPIRED, ErrorCode.DEADLINE_EXCEEDED, spent=spent)


def expired_or_canceled(
    deadline: datetime | None,
    command: CancelCommand | None,
    *,
    now: datetime,
    spent: Spent,
    needed_seconds: float = 0.0,
) -> Failed | None:
    """The failure of a task that was canceled or ends after its deadline, needing so long from now on."""
    if command is not None:
        verdict = Verdict(Action.FAIL, ErrorClass.CANCELED, ErrorCode.CANCELED, spent=spent)
        by = f" by {command.requested_by}" if command.requested_by else ""
        why = f": {command.reason}" if command.reason else ""
        return Failed(verdict=verdict, attempt=spent.attempt, message=f"canceled{by}{why}")
    late = judge_deadline(deadline, now=now, needed_seconds=needed_seconds, spent=spent)
    if late is None or deadline is None:
        return None
    message = f"the deadline, {format_time(deadline)}, has passed"
    if needed_seconds > 0:
        message = (
            f"the deadline, {format_time(deadline)}, would have passed: "
            f"the images take {needed_seconds:.1f} s at the least"
        )
    return Failed(verdict=late, attempt=spent.attempt, message=message)


def crashed_too_often(crashes: int) -> str:
    """The message of a task in a crash loop."""
    return f"{crashes} engines or workers died while they worked on this task"


def inherited_crashes(
    entry: LedgerEntry, *, worker: str, worker_started_at: int, outage_ended_at: float | None = None
) -> int:
    """How many crashes to count for a task in the ledger of a newly assigned partition.

    One more than the ledger says, unless the former owner released the task, had generated its images, is this process
    (the partition was revoked and assigned again), or may have lost its membership to an outage that this worker had
    too; the last one ended at `outage_ended_at`. All times are in seconds since 1970.
    """
    own = entry.worker == worker and entry.started_at >= worker_started_at
    cut_off = outage_ended_at is not None and entry.started_at <= outage_ended_at
    return entry.crashes if entry.released or entry.generated or own or cut_off else entry.crashes + 1


def orphan_is_worth_finishing(fraction_done: float) -> bool:
    """Whether a task whose partition was revoked is finished here: its new owner then finds the stored result.

    Beyond a third the rest of this run is cheaper than the new owner's whole run, even if both run for a while.
    """
    return fraction_done > 1 / 3


def _tier(failures: int, budgets: Budgets) -> int | None:
    """The first failure is sent to the first retry topic, and so on; the last topic takes all further ones."""
    return min(failures, budgets.retry_tiers) - 1 if budgets.retry_tiers else None
