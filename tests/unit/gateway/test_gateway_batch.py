"""Many submissions in one request: each has the outcome that it would have alone."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.messages.derived import idempotent_request_id
from fluxpool_gateway.settings import TenantLimits
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings

PATH = "/v1/generations/batch"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    settings = keyed_settings(tmp_path).model_copy(update={"tenant_limits": {"few": TenantLimits(outstanding=2)}})
    async with keyed_gateway(settings) as started:
        yield started


async def sent(gateway: Gateway, *requests: Any, key: str | None = None) -> httpx.Response:
    content = json.dumps({"requests": requests})
    headers = {"content-type": "application/json"}
    return await gateway.one.ask("POST", PATH, key or gateway.admin, content=content, headers=headers)


def codes(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 202, answer.text
    return [item["code"] for item in answer.json()["items"]]


async def test_each_request_has_its_outcome_and_those_that_are_valid_are_queued(gateway: Gateway) -> None:
    answer = await sent(
        gateway,
        {"prompt": "one", "group_id": "g", "priority": "vip"},
        {"prompt": ""},
        {"prompt": "two", "stepps": 3},
        {"prompt": "x" * 70_000},
        {"prompt": "\ud800"},
        {"prompt": "three", "idempotency_key": 7},
        {"prompt": "four", "idempotency_key": "snow ☃"},
        {"prompt": "five"},
    )
    assert codes(answer) == [202, 422, 400, 413, 400, 422, 400, 202]
    assert answer.json()["accepted"] == 2
    assert [value["prompt"] for value in gateway.records.values] == ["one", "five"]
    items = answer.json()["items"]
    assert [item["request_id"] for item in items if "request_id" in item] == [
        value["request_id"] for value in gateway.records.values
    ]
    assert items[0]["status_url"] == f"http://gateway/v1/generations/{items[0]['request_id']}"
    assert (items[2]["error"]["code"], items[2]["error"]["param"]) == ("unsupported_parameter", "stepps")
    assert items[2]["errors"][0]["pointer"] == "#/stepps"
    assert gateway.records.values[0]["group_id"] == "g"
    found = await gateway.one.ask("GET", f"/v1/generations/{items[0]['request_id']}", gateway.admin)
    assert (found.json()["status"], found.json()["priority"]) == ("queued", "vip")


async def test_a_repeat_of_a_batch_goes_on_where_it_was_cut_off(gateway: Gateway) -> None:
    requests = [{"prompt": f"fox {number}", "idempotency_key": f"fox-{number}"} for number in range(20)]
    first = await sent(gateway, *requests[:12])
    again = await gateway.two.ask("POST", PATH, gateway.admin, json={"requests": requests})
    assert (codes(first), codes(again)) == ([202] * 12, [202] * 20)
    ids = [item["request_id"] for item in again.json()["items"]]
    assert ids == [idempotent_request_id("default", f"fox-{number}") for number in range(20)]
    assert sorted(value["request_id"] for value in gateway.records.values) == sorted(ids)
    # A key holds for submissions of both kinds.
    other = await sent(gateway, {"prompt": "a cat", "idempotency_key": "fox-1"}, {"prompt": "a cat"})
    assert codes(other) == [422, 202]
    assert other.json()["items"][0]["error"]["code"] == "idempotency_conflict"
    alone = await gateway.one.ask(
        "POST", "/v1/generations", gateway.admin, json={"prompt": "fox 3"}, headers={"idempotency-key": "fox-3"}
    )
    assert alone.json()["request_id"] == ids[3]
    assert len(gateway.records.values) == 21


async def test_one_key_twice_in_a_batch_is_one_task(gateway: Gateway) -> None:
    answer = await sent(gateway, *[{"prompt": "a fox", "idempotency_key": "same"}] * 5)
    assert codes(answer) == [202] * 5
    assert len({item["request_id"] for item in answer.json()["items"]}) == 1
    assert len(gateway.records.values) == 1


async def test_a_limit_counts_each_request(gateway: Gateway) -> None:
    key = await gateway.create(tenant="few")
    answer = await sent(gateway, {"prompt": "1"}, {"prompt": ""}, {"prompt": "2"}, {"prompt": "3"}, key=key)
    assert codes(answer) == [202, 422, 202, 429]
    assert answer.json()["items"][3]["error"]["code"] == "outstanding_limit_exceeded"
    assert answer.headers["ratelimit"] == '"outstanding";r=0'
    assert [value["prompt"] for value in gateway.records.values] == ["1", "2"]


async def test_rights_of_the_key_are_checked_for_each_request(gateway: Gateway) -> None:
    key = await gateway.create(priorities=["standard"])
    assert codes(await sent(gateway, {"prompt": "a"}, {"prompt": "b", "priority": "vip"}, key=key)) == [202, 403]


async def test_a_request_that_is_not_confirmed_is_said_to_be_unknown(gateway: Gateway) -> None:
    gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no acknowledgement")
    answer = await sent(gateway, {"prompt": "a fox", "idempotency_key": "k"})
    assert codes(answer) == [503]
    assert answer.json()["items"][0]["error"]["code"] == "queue_unavailable"
    gateway.records.failure = None
    assert codes(await sent(gateway, {"prompt": "a fox", "idempotency_key": "k"})) == [202]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "requests"),
        ({"requests": []}, 422, "requests"),
        ({"requests": [{"prompt": "a"}] * 257}, 422, "requests"),
        ({"requests": ["a fox"]}, 422, "requests.0"),
        ({"requests": [{"prompt": "a"}], "n": 2}, 422, "n"),
    ],
)
async def test_what_is_no_batch_is_refused_as_a_whole(gateway: Gateway, body: Any, status: int, field: str) -> None:
    answer = await gateway.one.ask("POST", PATH, gateway.admin, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, field)
    assert gateway.records.values == []


async def test_a_key_for_a_whole_batch_is_refused(gateway: Gateway) -> None:
    headers = {"idempotency-key": "one"}
    answer = await gateway.one.ask("POST", PATH, gateway.admin, json={"requests": [{"prompt": "a"}]}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert gateway.records.values == []


async def test_the_largest_batch_is_accepted(gateway: Gateway) -> None:
    answer = await sent(gateway, *({"prompt": f"{number} " + "x" * 2900} for number in range(256)))
    assert codes(answer) == [202] * 256
    assert len({value["request_id"] for value in gateway.records.values}) == 256


async def test_many_batches_at_once_do_not_mix(gateway: Gateway) -> None:
    answers = await asyncio.gather(
        *(sent(gateway, *({"prompt": f"{batch}-{number}"} for number in range(30))) for batch in range(8))
    )
    prompts = {value["request_id"]: value["prompt"] for value in gateway.records.values}
    for batch, answer in enumerate(answers):
        ids = [item["request_id"] for item in json.loads(answer.content)["items"]]
        assert [prompts[name] for name in ids] == [f"{batch}-{number}" for number in range(30)]
