"""How long tasks wait when several senders place them, in simulated time: compared with one queue for all workers."""

import statistics
from collections.abc import Iterable
from functools import cache

import pytest

from kit.models.placement import Setup, SimulatedQueue

SEEDS = range(4)
SENDERS = 4


def p95(waits: Iterable[float]) -> float:
    return statistics.quantiles(waits, n=20)[-1]


@cache
def p95_to_ideal(
    *,
    senders: int = SENDERS,
    arrivals_seconds: float | None = None,
    announced: bool = False,
    round_robin: bool = False,
) -> float:
    queues = [
        SimulatedQueue(
            Setup(
                seed=seed,
                senders=senders,
                arrivals_seconds=arrivals_seconds,
                announced=announced,
                round_robin=round_robin,
            )
        )
        for seed in SEEDS
    ]
    return sum(p95(queue.waits()) for queue in queues) / sum(p95(queue.ideal_waits()) for queue in queues)


@pytest.mark.parametrize("arrivals_seconds", [0.002, 0.01])
def test_senders_that_know_each_others_tasks_come_near_to_one_queue(arrivals_seconds: float) -> None:
    assert p95_to_ideal(arrivals_seconds=arrivals_seconds) <= 1.5


@pytest.mark.parametrize(
    ("arrivals_seconds", "most"),
    [(0.01, 1.25), (0.05, 1.25), pytest.param(None, 1.5, id="records are not read as they arrive")],
)
def test_senders_that_announce_their_choices_wait_as_one(arrivals_seconds: float | None, most: float) -> None:
    assert p95_to_ideal(arrivals_seconds=arrivals_seconds, announced=True) <= most


def test_one_sender_comes_near_to_one_queue() -> None:
    assert p95_to_ideal(senders=1) <= 1.1


def test_news_that_come_late_are_better_than_none() -> None:
    assert p95_to_ideal(arrivals_seconds=0.5) < p95_to_ideal(round_robin=True)


def test_senders_that_estimate_what_others_send_wait_less_than_round_robin() -> None:
    assert p95_to_ideal() < p95_to_ideal(round_robin=True)
