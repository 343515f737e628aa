"""Backoff while a dependency is unavailable."""

import asyncio
import itertools

import pytest
import structlog

from fluxpool_transport.process.backoff import LOG_INTERVAL_SECONDS, Backoff, retry_forever


class DownError(Exception):
    """Worth another try."""


class Outage:
    """Fails a number of times, then answers."""

    def __init__(self, failures: int, error: type[Exception] = DownError) -> None:
        self._failures = failures
        self._error = error
        self.tries = 0

    async def __call__(self) -> int:
        self.tries += 1
        if self.tries <= self._failures:
            raise self._error(f"try {self.tries}")
        return self.tries


def test_the_bound_of_a_delay_doubles_up_to_the_maximum_and_starts_over_after_a_success() -> None:
    backoff = Backoff(initial_seconds=0.5, maximum_seconds=5.0, jitter=0.0)
    assert [backoff.next_seconds() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff.failures == 6
    backoff.reset()
    assert backoff.next_seconds() == 0.5


@pytest.mark.parametrize(("fraction", "delay_seconds"), [(0.0, 4.0), (0.5, 3.0), (1.0, 2.0)])
def test_half_of_a_delay_is_random_by_default(fraction: float, delay_seconds: float) -> None:
    backoff = Backoff(initial_seconds=4.0, maximum_seconds=4.0, random_fraction=lambda: fraction)
    assert backoff.next_seconds() == delay_seconds


def test_the_delay_of_a_very_long_outage_is_still_the_maximum() -> None:
    backoff = Backoff(initial_seconds=0.2, maximum_seconds=10.0, jitter=0.0)
    assert {backoff.next_seconds() for _ in range(5000)} >= {0.2, 10.0}
    assert backoff.next_seconds() == 10.0


async def test_it_returns_what_the_operation_returns() -> None:
    assert await retry_forever(Outage(0), retry_on=(DownError,)) == 1


async def test_it_tries_again_until_the_outage_is_over() -> None:
    assert await retry_forever(Outage(40), retry_on=(DownError,), initial_seconds=0.0001, maximum_seconds=0.001) == 41


async def test_other_errors_pass_through_at_once() -> None:
    outage = Outage(5, error=KeyError)
    with pytest.raises(KeyError):
        await retry_forever(outage, retry_on=(DownError,))
    assert outage.tries == 1


async def test_each_wait_is_announced_and_bounded() -> None:
    waits: list[tuple[str, float]] = []
    await retry_forever(
        Outage(30),
        retry_on=(DownError,),
        on_retry=lambda error, delay_seconds: waits.append((str(error), delay_seconds)),
        initial_seconds=0.0004,
        maximum_seconds=0.002,
    )
    assert [error for error, _ in waits] == [f"try {number}" for number in range(1, 31)]
    assert all(0.0002 <= delay <= 0.002 for _, delay in waits)
    assert max(delay for _, delay in waits) > 0.0004
    assert len({delay for _, delay in waits}) > 10


async def test_cancellation_ends_the_wait_and_the_operation() -> None:
    waiting = asyncio.Event()
    held = asyncio.create_task(
        retry_forever(Outage(5), retry_on=(DownError,), on_retry=lambda *_: waiting.set(), initial_seconds=600)
    )
    await waiting.wait()
    held.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held

    started = asyncio.Event()

    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(retry_forever(hang, retry_on=(DownError,)))
    await started.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_an_outage_is_logged_when_it_begins_now_and_then_and_when_it_ends() -> None:
    minutes = itertools.count()
    with structlog.testing.capture_logs() as logs:
        await retry_forever(
            Outage(20),
            name="store image",
            retry_on=(DownError,),
            initial_seconds=0.0001,
            maximum_seconds=0.0002,
            clock=lambda: next(minutes) * LOG_INTERVAL_SECONDS / 5,
        )
    held = [entry for entry in logs if entry["event"] == "operation_held"]
    assert [entry["attempt"] for entry in held] == [1, 6, 11, 16]
    assert {(entry["operation"], entry["error_type"]) for entry in held} == {("store image", "DownError")}
    assert [entry["event"] for entry in logs].count("operation_resumed") == 1
