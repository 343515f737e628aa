"""The operator's memory of a retry topic, and which records are a pool's due retries."""

import pytest

from fluxpool_contract.kafka.retries import MAX_JITTER
from fluxpool_operator.backlog.retries.retry_log import MAX_ENTRIES, MAX_IDLE_ORIGINS, RetryEntry, RetryLog

NOW = 1_700_000_000.0
DELAY = 60.0


def entry(offset: int, *, age_seconds: float = 2 * DELAY, not_before: float | None = None) -> RetryEntry:
    return RetryEntry(offset, NOW - age_seconds, not_before)


def log_with(*records: tuple[str | None, RetryEntry]) -> RetryLog:
    log = RetryLog(position=0)
    for origin, item in records:
        log.add(origin, item)
    return log


def due(log: RetryLog, *origins: str) -> list[int]:
    assert log.knows(origins)
    return log.due(origins, NOW, delay_seconds=DELAY)


@pytest.mark.parametrize(
    ("item", "is_due"),
    [
        (entry(0, age_seconds=DELAY - 1), False),
        (entry(0, age_seconds=DELAY + 1), True),
        (entry(0, age_seconds=DELAY + 1, not_before=NOW + 1), False),
        (entry(0, age_seconds=1, not_before=NOW - 1), True),
        (entry(0, age_seconds=DELAY * (1 + MAX_JITTER) + 1, not_before=NOW + 1e9), True),
    ],
    ids=["waits", "delay is over", "says later", "says sooner", "says never"],
)
def test_a_record_counts_from_when_a_worker_relays_it(item: RetryEntry, *, is_due: bool) -> None:
    assert due(log_with(("tasks", item)), "tasks") == ([0] if is_due else [])


def test_only_records_of_the_pools_own_lanes_count() -> None:
    log = log_with(("tasks", entry(0)), ("others", entry(1)), (None, entry(2)), ("tasks-vip", entry(3)))
    assert due(log, "tasks", "tasks-vip") == [0, 3]
    assert due(log, "others") == [1]
    assert log.position == 4


def test_relayed_records_are_dropped_for_that_pool_only() -> None:
    log = log_with(("tasks", entry(0)), ("others", entry(1)), ("tasks", entry(2)))
    assert due(log, "tasks") == [0, 2]
    log.forget_before(2, ("tasks",))
    assert (due(log, "tasks"), due(log, "others")) == ([2], [1])


def test_memory_is_bounded_and_dropped_origins_are_read_again() -> None:
    log = log_with(("tasks", entry(0)))
    for offset in range(1, MAX_IDLE_ORIGINS + 2):
        log.add(f"origin-{offset}", entry(offset))
    assert not log.knows(["tasks"]), "its record was dropped, which does not count as relayed"

    again = log.restarted(position=0)
    again.add("tasks", entry(0))
    for offset in range(1, 2 * MAX_IDLE_ORIGINS):
        again.add(f"origin-{offset}", entry(offset))
    assert again.due(["tasks"], NOW, delay_seconds=DELAY) == [0], "records of a pool that reads the log are kept"


def test_of_too_many_records_of_one_pool_the_newest_count() -> None:
    log = log_with(*(("tasks", entry(offset)) for offset in range(MAX_ENTRIES + 5)))
    assert due(log, "tasks") == list(range(5, MAX_ENTRIES + 5))
