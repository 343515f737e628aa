"""The pools on the page: their state in a word, the last hour as plots with words, decisions, and one that sleeps."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages import PoolLane, PoolState
from fluxpool_gateway.page.pools.plots import HEIGHT, WIDTH, plot
from fluxpool_gateway.queue.pool_history import HISTORY_SECONDS, SAMPLE_SECONDS, PoolHistory, PoolSample
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings
from kit.http.page_visitor import Visitor, text_of
from kit.scaling.lag_readings import VIP, lag, partition

NOW = NOW_MS / 1000


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as made:
        yield made


def told(gateway: Gateway, *, ago: float, **fields: object) -> None:
    """The operator wrote a state."""
    settings = gateway.settings
    state = PoolState.model_validate(
        {
            "namespace": "images",
            "pool": "flux-dev",
            "lanes": [
                PoolLane(name="standard", topic=TopicNames().tasks, consumer_group=settings.consumer_group),
            ],
            "desired_replicas": 0,
            "ready_replicas": 0,
            "min_replicas": 0,
            "max_replicas": 6,
            "constraint": "idle",
            "reason": "Nothing waits.",
            "start_seconds": 90,
            "model": "black-forest-labs/FLUX.1-dev",
            "model_family": "flux-1-dev",
            "license": "FLUX.1 [dev] Non-Commercial",
            "decided_at": NOW - ago,
        }
        | fields
    )
    pools = gateway.one.app.state.services.lanes.pools
    pools.take(state.key.encode(), state.to_json(), written_at=NOW - ago)


async def test_a_pool_has_its_plan_its_decisions_and_its_licence(gateway: Gateway) -> None:
    told(gateway, ago=1800, desired_replicas=2, ready_replicas=2, constraint="lag", reason="The lag is 9.")
    told(gateway, ago=60, desired_replicas=5, ready_replicas=2, constraint="lag", reason="The lag is 24.")
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(await gateway.create("read", tenant="acme"))
    answer = await visitor.get("/ui/pools")
    text = text_of(answer)
    for words in ("flux-dev", "The lag is 24.", "flux-1-dev", "Non-Commercial", "0 to 6", "2 → 5 lag The lag is 24."):
        assert words in text, words
    assert (
        'aria-label="Workers in the last hour. Ready: from 2 to 2, now 2. Desired: from 2 to 5, now 5."' in answer.text
    )
    assert "style=" not in answer.text


async def test_a_pool_that_sleeps_says_so(gateway: Gateway) -> None:
    told(gateway, ago=10)
    without_members = lag(partition(0, 5, 5), owned={}) | lag(partition(0, 0, 0), topic=VIP, owned={})
    gateway.one.app.state.services.lanes.observe(without_members, gateway.clock.monotonic())
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(await gateway.create("read"))
    text = text_of(await visitor.get("/ui/pools"))
    assert "flux-dev Asleep" in text
    assert "The first task wakes it, and a worker is ready about 1 min 30 s later." in text


async def test_a_pool_that_sleeps_is_woken_by_a_task_after_a_question_alone(gateway: Gateway) -> None:
    told(gateway, ago=10, min_replicas=0)
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(await gateway.create("submit", "read"))
    fields = {"prompt": "a fox", "width": "512", "height": "512", "key": "k-1"}
    asked = await visitor.post("/ui/create", **fields)
    assert asked.status_code == 200
    assert "Nothing was sent yet: the task would wake the pool flux-dev" in text_of(asked)
    assert "a fox</textarea>" in asked.text
    assert 'name="key" value="k-1"' in asked.text
    assert gateway.records.values == []
    assert (await visitor.post("/ui/create", **fields, wake="1")).status_code == 303
    assert [task["prompt"] for task in gateway.records.values] == ["a fox"]


def test_an_hour_of_samples_is_kept() -> None:
    history = PoolHistory()
    for number in range(1000):
        at = NOW + number * SAMPLE_SECONDS
        history.add([PoolSample(pool="a", at=at, ready=1, lag=number, completed_per_minute=None)])
    kept = history.of_pool("a")
    assert (kept[-1].lag, kept[-1].at - kept[0].at) == (999, HISTORY_SECONDS)
    assert history.of_pool("b") == ()


def test_a_plot_stays_within_its_frame_breaks_at_gaps_and_says_the_same_in_words() -> None:
    points = [(NOW - 4000, 99), (NOW - 3600, 0), (NOW - 3590, 24), (NOW - 1000, None), (NOW - 500, 6), (NOW, 3.5)]
    made = plot("Lag", [("Tasks", points)], now=NOW)
    (line,) = made.lines
    assert len(line.segments) == 3
    drawn = [tuple(map(float, point.split(","))) for part in line.segments for point in part.split()]
    assert all(-1 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)
    assert (made.top, made.now) == ("40", "3.5")
    assert made.words == "Lag in the last hour. Tasks: from 0 to 24, now 3.5."
    assert plot("Lag", [("Tasks", [])], now=NOW).words == "Lag: not known yet."


def test_steps_hold_a_value_until_the_next_and_until_now() -> None:
    made = plot("Workers", [("Ready", [(NOW - 100, 1), (NOW - 40, 2)])], now=NOW, steps=True)
    assert made.lines[0].segments == ("350.0,40.0 356.0,40.0 356.0,0.0 360.0,0.0",)
