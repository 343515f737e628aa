"""The open loop of `fluxpool bench`: requests have their times, whatever became of those before."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from fluxpool_cli.bench import open_loop
from fluxpool_cli.bench.open_loop import Load, Tally, offer, percentile
from fluxpool_client import AsyncClient

ACCEPTED = {"request_id": "a", "status": "queued", "status_url": "http://gateway/a"}


def load(requests: int) -> Load:
    return Load(
        rate_per_second=1000.0, duration_seconds=requests / 1000, prompt="a fox", fields={"group_id": "bench-1"}
    )


async def offered(answer: Callable[[httpx.Request], Any], requests: int) -> Tally:
    tally = Tally()
    sent: list[None] = []
    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with http, AsyncClient("http://gateway", http=http, max_attempts=1) as client:
        await offer(client, load(requests), tally, on_sent=lambda: sent.append(None))
    assert len(sent) == tally.sent
    return tally


async def test_a_stalled_gateway_is_sent_every_request_at_its_time() -> None:
    waiting: list[httpx.Request] = []
    all_there = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        waiting.append(request)
        if len(waiting) == 20:
            all_there.set()
        # A closed loop would wait here for ever.
        await all_there.wait()
        return httpx.Response(202, json=ACCEPTED)

    tally = await offered(answer, 20)
    assert (tally.sent, tally.accepted, tally.unsent, tally.open) == (20, 20, 0, 0)
    assert {json.loads(request.content)["group_id"] for request in waiting} == {"bench-1"}
    # The first one has waited for the last one, which was due 19 ms after it.
    assert max(tally.accepted_seconds) >= 0.019


async def test_what_is_refused_or_not_answered_is_counted_by_its_reason() -> None:
    count = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal count
        count += 1
        match count % 4:
            case 0:
                raise httpx.ReadTimeout("late", request=request)
            case 1:
                raise httpx.ConnectError("refused", request=request)
            case 2:
                return httpx.Response(429, json=problem("rate_limited"))
            case _:
                return httpx.Response(502, text="a proxy")

    tally = await offered(answer, 8)
    assert tally.refused == {"rate_limited": 2, "HTTP 502": 2}
    assert tally.unanswered == {"no answer in time": 2, "no connection, or a broken one": 2}
    assert (tally.accepted, tally.open) == (0, 0)


def problem(code: str) -> dict[str, Any]:
    return {
        "type": "about:blank",
        "title": code,
        "status": 429,
        "detail": "too many",
        "instance": "/",
        "correlation_id": "c",
        "error": {"message": "too many", "type": "rate_limit_error", "param": None, "code": code},
        "errors": [],
    }


async def test_requests_beyond_the_limit_of_open_ones_are_not_sent_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_loop, "MAX_OPEN", 3)
    release = asyncio.Event()

    async def answer(_request: httpx.Request) -> httpx.Response:
        await release.wait()
        return httpx.Response(202, json=ACCEPTED)

    asyncio.get_running_loop().call_later(0.2, release.set)
    tally = await offered(answer, 10)
    assert tally.sent + tally.unsent == 10
    assert tally.sent >= 3
    assert tally.accepted == tally.sent


async def test_an_interrupted_run_keeps_its_counts() -> None:
    tally = Tally()
    begun = asyncio.Event()

    async def answer(_request: httpx.Request) -> httpx.Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with http, AsyncClient("http://gateway", http=http, max_attempts=1) as client:
        running = asyncio.create_task(offer(client, load(5), tally, on_sent=lambda: None))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert tally.sent == tally.unanswered["interrupted"] > 0
    assert tally.elapsed_seconds > 0


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 99, None), ([7.0], 50, 7.0), ([3.0, 1.0, 2.0], 50, 2.0), ([*map(float, range(1, 101))], 99, 99.0)],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], percent: float, expected: float | None) -> None:
    assert percentile(values, percent) == expected
