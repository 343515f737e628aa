"""Requests that limit their wait: compared with the estimate before anything is written, on every route."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fluxpool_contract.messages import PoolLane, PoolState
from fluxpool_contract.messages.headers import parse_time
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.scaling.lag_readings import GROUPS, VIP, lag, partition, teach_speed

CHOSEN = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as opened:
        yield opened


def pool_in(gateway: Gateway, seconds: float) -> None:
    """The pool sleeps, and its plan says that the first worker is ready in so many seconds."""
    lanes, wall_seconds = gateway.one.app.state.services.lanes, gateway.clock.now_ms / 1000
    told = PoolState(
        namespace="images",
        pool="standard",
        lanes=tuple(PoolLane(name=topic, topic=topic, consumer_group=group) for topic, group in GROUPS.items()),
        desired_replicas=1,
        ready_replicas=0,
        starting_replicas=1,
        min_replicas=0,
        max_replicas=6,
        constraint="lag",
        reason="The lag is 1; at 5 per replica it requires 1 replica.",
        next_ready_at=datetime.fromtimestamp(wall_seconds, UTC) + timedelta(seconds=seconds),
        decided_at=datetime.fromtimestamp(wall_seconds, UTC),
    )
    lanes.pools.take(told.key.encode(), told.to_json(), written_at=wall_seconds)
    read(gateway, waiting=0, owned={})


def read(gateway: Gateway, *, waiting: int, **members: Any) -> None:
    reading = lag(partition(0, 20, 20 + waiting), **members) | lag(partition(0, 0, 0), topic=VIP, **members)
    gateway.one.app.state.services.lanes.observe(reading, gateway.clock.monotonic())


def busy(gateway: Gateway, *, waiting: int) -> None:
    """One worker, that takes 4 s for a task, has so many to do."""
    lanes, now = gateway.one.app.state.services.lanes, gateway.clock.monotonic()
    teach_speed(lanes, seconds_per_task=4, until=now, tasks=20)
    read(gateway, waiting=waiting)


async def submit(gateway: Gateway, *, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    body = {"prompt": "a fox", **fields}
    return await gateway.one.ask("POST", "/v1/generations", gateway.admin, json=body, headers=headers)


async def outcomes(gateway: Gateway) -> dict[str, float]:
    text = (await gateway.one.ask("GET", "/metrics")).text
    return {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "fluxpool_gateway_admissions_total"
    }


async def test_a_plan_of_ten_minutes_refuses_a_start_within_one(gateway: Gateway) -> None:
    pool_in(gateway, 600)
    answer = await submit(gateway, start_within_s=60)
    problem = answer.json()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "120"
    assert (problem["error"]["code"], problem["error"]["param"]) == ("would_start_late", "start_within_s")
    assert problem["wait"] == {
        "limit": "start_within_s",
        "position": 0,
        "starts_in_seconds": 600.0,
        "eta_seconds": None,
        "why": problem["wait"]["why"],
    }
    assert "the first is expected in about 600 s" in problem["wait"]["why"]
    assert problem["errors"][0]["pointer"] == "#/start_within_s"
    assert gateway.records.values == []
    assert (await submit(gateway, start_within_s=601)).status_code == 202
    assert (await submit(gateway)).status_code == 202
    assert await outcomes(gateway) == {"would_start_late": 1, "accepted": 1}


async def test_an_accepted_request_is_told_its_place_and_eta(gateway: Gateway) -> None:
    busy(gateway, waiting=10)
    answer = await submit(gateway, start_within_s=3600)
    assert answer.status_code == 202
    assert answer.headers["fluxpool-queue-position"] == "10"
    assert 40 <= int(answer.headers["fluxpool-eta-seconds"]) <= 48
    # One that limits nothing pays nothing.
    assert "fluxpool-eta-seconds" not in (await submit(gateway)).headers


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"max_queue_position": 9}, "queue_too_long"),
        ({"start_within_s": 30}, "would_start_late"),
        ({"deadline_s": 30}, "would_end_late"),
        ({"deadline_s": 30, "max_queue_position": 9}, "queue_too_long"),
        ({"deadline_s": 600, "start_within_s": 600, "max_queue_position": 10}, None),
    ],
    ids=str,
)
async def test_each_limit_is_compared(gateway: Gateway, fields: dict[str, Any], code: str | None) -> None:
    busy(gateway, waiting=10)
    answer = await submit(gateway, **fields)
    if code is None:
        assert answer.status_code == 202
        return
    problem = answer.json()
    assert (answer.status_code, problem["error"]["code"]) == (429, code)
    assert problem["wait"]["limit"] in fields
    assert 1 <= int(answer.headers["retry-after"]) <= 120
    assert gateway.records.values == []


async def test_the_time_to_repeat_is_when_the_queue_is_short_enough(gateway: Gateway) -> None:
    busy(gateway, waiting=10)
    answer = await submit(gateway, max_queue_position=5)
    assert int(answer.headers["retry-after"]) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("fields", [{"max_queue_position": 0}, {"start_within_s": 1}, {"deadline_s": 1}], ids=str)
async def test_without_an_estimate_a_request_is_accepted(gateway: Gateway, fields: dict[str, Any]) -> None:
    assert (await submit(gateway, **fields)).status_code == 202
    # A queue, but neither a worker nor a plan.
    read(gateway, waiting=0, owned={})
    assert (await submit(gateway, start_within_s=1)).status_code == 202
    assert (await outcomes(gateway))["unknown"] == 2


async def test_each_lane_has_an_estimate_of_its_own(gateway: Gateway) -> None:
    busy(gateway, waiting=10)
    assert (await submit(gateway, max_queue_position=3)).status_code == 429
    assert (await submit(gateway, max_queue_position=3, priority="vip")).status_code == 202


async def test_a_repeat_of_an_accepted_request_is_not_refused(gateway: Gateway) -> None:
    busy(gateway, waiting=10)
    first = await submit(gateway, key="fox", max_queue_position=10)
    busy(gateway, waiting=500)
    again = await submit(gateway, key="fox", max_queue_position=10)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    # With another limit, or none, it is the same request.
    assert (await submit(gateway, key="fox")).json() == first.json()
    assert len(gateway.records.values) == 1
    assert (await submit(gateway, key="bear", max_queue_position=10)).status_code == 429


async def test_a_refused_key_is_free_for_the_same_request_later(gateway: Gateway) -> None:
    busy(gateway, waiting=500)
    assert (await submit(gateway, key="fox", max_queue_position=10)).status_code == 429
    busy(gateway, waiting=10)
    assert (await submit(gateway, key="fox", max_queue_position=10)).status_code == 202


async def test_a_request_under_an_id_is_refused_alike(gateway: Gateway) -> None:
    busy(gateway, waiting=10)
    body = {"prompt": "a fox", "start_within_s": 1}
    path = f"/v1/generations/{CHOSEN}"
    refused = await gateway.one.ask("PUT", path, gateway.admin, json=body)
    assert (refused.status_code, refused.json()["wait"]["limit"]) == (429, "start_within_s")
    assert (await gateway.one.ask("PUT", path, gateway.admin, json={"prompt": "a fox"})).status_code == 202
    assert (await gateway.one.ask("PUT", path, gateway.admin, json=body)).status_code == 200


async def test_each_request_of_a_batch_is_behind_those_before_it(gateway: Gateway) -> None:
    busy(gateway, waiting=2)
    requests = [{"prompt": "a fox", "max_queue_position": 4}] * 5 + [{"prompt": "a bear"}]
    answer = await gateway.one.ask("POST", "/v1/generations/batch", gateway.admin, json={"requests": requests})
    items = answer.json()["items"]
    assert sorted(item["code"] for item in items) == [202, 202, 202, 202, 429, 429]
    assert sorted(item["queue_position"] for item in items if "queue_position" in item) == [2, 3, 4]
    refused = [item for item in items if item["code"] == 429]
    assert {item["wait"]["limit"] for item in refused} == {"max_queue_position"}
    assert {item["error"]["param"] for item in refused} == {"max_queue_position"}
    assert "fluxpool-eta-seconds" not in answer.headers
    # A reading has what was admitted before it.
    read(gateway, waiting=0)
    assert (await submit(gateway, max_queue_position=0)).headers["fluxpool-queue-position"] == "0"


async def test_the_openai_route_refuses_with_the_name_of_the_field(gateway: Gateway) -> None:
    pool_in(gateway, 600)
    body = {"prompt": "a fox", "start_within_s": 60}
    answer = await gateway.one.ask("POST", "/v1/images/generations", gateway.admin, json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (429, "would_start_late", "start_within_s")
    assert answer.headers["retry-after"] == "120"
    assert gateway.records.values == []


async def test_a_deadline_goes_with_the_task_and_other_limits_do_not(gateway: Gateway) -> None:
    before = datetime.now(UTC)
    assert (await submit(gateway, deadline_s=90, start_within_s=60, max_queue_position=3)).status_code == 202
    assert gateway.records.values[0].keys() == {"request_id", "prompt"}
    deadline = parse_time(gateway.records.headers[0]["fluxpool-deadline"].decode())
    first_seen = parse_time(gateway.records.headers[0]["fluxpool-first-seen"].decode())
    assert deadline - first_seen == timedelta(seconds=90)
    assert first_seen >= before - timedelta(seconds=1)
    await submit(gateway, start_within_s=60)
    assert "fluxpool-deadline" not in gateway.records.headers[1]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_queue_position", -1),
        ("start_within_s", 0),
        ("deadline_s", 86_401),
        ("deadline_s", "5"),
        ("deadline_s", 1.5),
    ],
)
async def test_an_impossible_limit_is_named(gateway: Gateway, field: str, value: Any) -> None:
    answer = await submit(gateway, **{field: value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == f"#/{field}"


async def test_a_refused_request_uses_up_no_limit_of_the_tenant(tmp_path: Path) -> None:
    settings = keyed_settings(tmp_path)
    limited = settings.model_validate(settings.model_dump() | {"tenant_limits": {"*": {"outstanding": 1}}})
    async with keyed_gateway(limited) as gateway:
        busy(gateway, waiting=10)
        assert (await submit(gateway, max_queue_position=1)).status_code == 429
        assert (await submit(gateway)).status_code == 202
        assert (await submit(gateway)).json()["error"]["code"] == "outstanding_limit_exceeded"
