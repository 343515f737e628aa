"""The routes that cancel and retry tasks, over a real task store: what is written, and what is answered."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_gateway.http.change_routes import MAX_CANCELED_AT_ONCE
from fluxpool_gateway.store.task_state import ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.gateways.keyed_gateway import Gateway, key_id, keyed_gateway, keyed_settings

TIME_MS = 1_775_000_000_000
"""2026-03-31T23:33:20Z."""
MANY = "/v1/generations/cancel"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def task(request_id: str, *, tenant: str = "default", group_id: str | None = None, number: int = 0) -> TaskSeen:
    return TaskSeen(
        request_id=request_id,
        body="{}",
        priority="standard",
        tenant=tenant,
        created_at_ms=TIME_MS + 1000 * number,
        group_id=group_id,
    )


def running(request_id: str, *, tenant: str = "default") -> ProgressSeen:
    return ProgressSeen(request_id=request_id, tenant=tenant, status=TaskStatus.RUNNING, at_ms=TIME_MS, started=True)


def ended(request_id: str, *, epoch: int = 0) -> ResultSeen:
    return ResultSeen(
        tenant="default",
        request_id=request_id,
        status=TaskStatus.FAILED,
        body="{}",
        completed_at_ms=TIME_MS,
        epoch=epoch,
    )


async def cancel(gateway: Gateway, path: str, body: Any = None, key: str | None = None) -> httpx.Response:
    return await gateway.one.ask("POST", path, key or gateway.admin, **({} if body is None else {"json": body}))


def outcomes(answer: httpx.Response) -> dict[str, str | None]:
    assert answer.status_code == 202, answer.text
    return {entry["request_id"]: entry["outcome"] for entry in answer.json()["data"]}


def canceled(gateway: Gateway) -> list[str]:
    """The ids in the commands, in their order."""
    return [key for key, _, _ in gateway.records.commands]


async def test_a_task_is_canceled_whether_it_waits_or_runs(gateway: Gateway) -> None:
    gateway.project(task("r-1", tenant="acme"), task("r-2", tenant="acme"), running("r-2", tenant="acme"))
    acme = await gateway.create(tenant="acme")
    for request_id, status in (("r-1", "queued"), ("r-2", "running")):
        answer = await cancel(gateway, f"/v1/generations/{request_id}/cancel", {"reason": "a typo"}, acme)
        assert answer.status_code == 202
        assert answer.json() == {
            "request_id": request_id,
            "outcome": "requested",
            "status": status,
            "status_url": f"http://gateway/v1/generations/{request_id}",
        }
    key, headers, command = gateway.records.commands[0]
    assert (key, command["request_id"], command["reason"]) == ("r-1", "r-1", "a typo")
    assert (command["requested_by"], command["waiting_only"]) == (f"API key {key_id(acme)}", False)
    assert (headers["fluxpool-tenant"], headers["fluxpool-epoch"]) == (b"acme", b"0")


async def test_a_task_that_has_ended_gets_no_command(gateway: Gateway) -> None:
    gateway.project(task("r-1"), ended("r-1"))
    answer = await cancel(gateway, "/v1/generations/r-1/cancel")
    assert (answer.status_code, answer.json()["outcome"], answer.json()["status"]) == (200, "ended", "failed")
    assert gateway.records.commands == []


async def test_a_replay_is_canceled_by_a_command_for_its_epoch(gateway: Gateway) -> None:
    gateway.project(task("r-1"), ended("r-1"))
    replay = ProgressSeen(
        tenant="default", request_id="r-1", status=TaskStatus.RUNNING, at_ms=TIME_MS, started=True, epoch=3
    )
    gateway.project(replay)
    assert (await cancel(gateway, "/v1/generations/r-1/cancel")).status_code == 202
    assert gateway.records.commands[0][1]["fluxpool-epoch"] == b"3"


async def test_only_waiting_tasks_can_be_canceled(gateway: Gateway) -> None:
    gateway.project(task("r-1"), task("r-2"), running("r-2"))
    answer = await cancel(gateway, "/v1/generations/r-2/cancel", {"waiting_only": True})
    assert (answer.status_code, answer.json()["outcome"]) == (200, "running")
    assert (await cancel(gateway, "/v1/generations/r-1/cancel", {"waiting_only": True})).status_code == 202
    # A worker may begin it before it reads the command, and is to leave it alone then.
    assert [command["waiting_only"] for _, _, command in gateway.records.commands] == [True]
    assert outcomes(await cancel(gateway, MANY, {"all": True, "waiting_only": True})) == {"r-1": "requested"}


async def test_a_task_that_was_just_accepted_can_be_canceled(gateway: Gateway) -> None:
    accepted = (await gateway.one.submit(gateway.admin)).json()
    answer = await cancel(gateway, f"/v1/generations/{accepted['request_id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert canceled(gateway) == [accepted["request_id"]]


async def test_many_are_canceled_by_id_each_with_its_outcome(gateway: Gateway) -> None:
    gateway.project(task("r-1"), task("r-2"), ended("r-2"), task("r-3", tenant="acme"))
    answer = await cancel(gateway, MANY, {"request_ids": ["r-1", "r-2", "r-3", "r-4", "r-1"]})
    # A task of another tenant and one that never was look alike.
    assert outcomes(answer) == {"r-1": "requested", "r-2": "ended", "r-3": None, "r-4": None}
    assert canceled(gateway) == ["r-1"]


async def test_a_group_is_canceled_and_what_has_ended_is_left_out(gateway: Gateway) -> None:
    gateway.project(task("r-1", group_id="g"), task("r-2", group_id="g"), task("r-3"), ended("r-2"))
    gateway.project(task("r-4", tenant="acme", group_id="g"))
    assert outcomes(await cancel(gateway, MANY, {"group_id": "g"})) == {"r-1": "requested"}


async def test_tasks_of_a_time_are_canceled(gateway: Gateway) -> None:
    gateway.project(*(task(f"r-{number}", number=number) for number in range(4)))
    wanted = {"created_after": "2026-03-31T23:33:21Z", "created_before": "2026-04-01T01:33:23+02:00"}
    assert list(outcomes(await cancel(gateway, MANY, wanted))) == ["r-1", "r-2"]


async def test_more_than_fit_into_a_request_are_canceled_with_its_cursor(gateway: Gateway) -> None:
    names = [f"r-{number:04}" for number in range(MAX_CANCELED_AT_ONCE + 20)]
    gateway.project(*(task(name) for name in names))
    first = await cancel(gateway, MANY, {"all": True})
    assert (len(outcomes(first)), first.json()["has_more"]) == (MAX_CANCELED_AT_ONCE, True)
    second = await cancel(gateway, MANY, {"all": True, "cursor": first.json()["next_cursor"]})
    assert (len(outcomes(second)), second.json()["has_more"]) == (20, False)
    assert canceled(gateway) == names


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        ({}, "request_ids", "give either request_ids, or a filter"),
        ({"waiting_only": True}, "request_ids", "give either request_ids, or a filter"),
        ({"request_ids": ["r-1"], "all": True}, "request_ids", "give either request_ids, or a filter"),
        ({"group_id": "g", "all": True}, "request_ids", "give either request_ids, or a filter"),
        ({"request_ids": []}, "request_ids", "must have at least 1 entries"),
        ({"request_ids": ["r"] * 501}, "request_ids", "must have at most 500 entries"),
        ({"all": "yes"}, "all", "must be true or false"),
        ({"group_id": "g", "waiting_only": 1}, "waiting_only", "must be true or false"),
        ({"created_before": 0.5}, "created_before", "must be a time such as 2026-04-05T10:00:00Z"),
        ({"al": True}, "al", "is not a known field; check its spelling"),
        ({"all": True, "cursor": "r"}, "cursor", "is not a cursor"),
        ({"all": True, "reason": "x" * 1001}, "reason", "must be at most 1,000 characters long"),
    ],
)
async def test_a_wrong_request_cancels_nothing_and_is_named(
    gateway: Gateway, body: dict[str, Any], field: str, detail: str
) -> None:
    gateway.project(task("r-1"))
    answer = await cancel(gateway, MANY, body)
    problem = answer.json()
    assert (answer.status_code, problem["error"]["param"]) == (422, field)
    assert problem["errors"][0]["detail"].startswith(detail)
    assert gateway.records.commands == []


@pytest.mark.parametrize(("path", "body"), [("/v1/generations/r-1/cancel", None), (MANY, {"all": True})])
async def test_a_command_that_is_not_confirmed_is_to_be_repeated(gateway: Gateway, path: str, body: Any) -> None:
    gateway.project(task("r-1"))
    gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no acknowledgement within 3 s")
    answer = await cancel(gateway, path, body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")
    assert "repeat the request" in answer.json()["detail"]
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("path", ["/v1/generations/r-1/cancel", MANY])
async def test_a_body_that_is_not_said_to_be_json_is_refused_with_the_remedy(gateway: Gateway, path: str) -> None:
    gateway.project(task("r-1"))
    for content_type in ("application/x-www-form-urlencoded", "text/plain", None):
        headers = {} if content_type is None else {"content-type": content_type}
        answer = await gateway.one.ask("POST", path, gateway.admin, content=b'{"all": true}', headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (415, "Content-Type")
        assert answer.json()["detail"].endswith("send application/json")
    assert gateway.records.commands == []


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"[" * 60_000, 400), (b"\xff", 400), (b'{"reason":' + b"1" * 5000 + b"}", 400), (b'{"reason":"\\ud800"}', 422)],
)
@pytest.mark.parametrize("path", ["/v1/generations/r-1/cancel", MANY])
async def test_a_body_of_any_bytes_is_no_failure(gateway: Gateway, path: str, body: bytes, status: int) -> None:
    gateway.project(task("r-1"))
    headers = {"content-type": "application/json"}
    answer = await gateway.one.ask("POST", path, gateway.admin, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, "invalid_request")
    assert status == 422 or answer.json()["detail"] == "the body cannot be read; send one JSON object in UTF-8"
    assert gateway.records.commands == []


# Retries


def written(request_id: str, body: str, priority: str = "standard") -> TaskSeen:
    return TaskSeen(request_id=request_id, body=body, priority=priority, tenant="default", created_at_ms=TIME_MS)


async def retry(gateway: Gateway, request_id: str = "r-1") -> httpx.Response:
    return await gateway.one.ask("POST", f"/v1/generations/{request_id}/retry", gateway.admin)


async def test_a_retry_is_a_new_task_with_the_same_inputs_and_its_parent(gateway: Gateway) -> None:
    body = '{"request_id":"r-1","prompt":"a fox","steps":4,"group_id":"g","metadata":{"owner":"me"}}'
    gateway.project(written("r-1", body, "vip"), ended("r-1"))
    answer = await retry(gateway)
    assert answer.status_code == 202
    new_id = answer.json()["request_id"]
    assert answer.headers["location"] == answer.json()["status_url"] == f"http://gateway/v1/generations/{new_id}"
    (task_value,) = gateway.records.values
    assert task_value == {**json.loads(body), "request_id": new_id, "parent_id": "r-1"}
    assert gateway.records.headers[0]["fluxpool-priority"] == b"vip"
    gateway.project(written(new_id, json.dumps(task_value)))
    assert (await gateway.one.ask("GET", f"/v1/generations/{new_id}", gateway.admin)).json()["parent_id"] == "r-1"


async def test_a_second_retry_of_one_end_is_the_same_task_and_of_its_retry_another(gateway: Gateway) -> None:
    gateway.project(written("r-1", '{"request_id":"r-1","prompt":"a fox"}'), ended("r-1"))
    first, again = await retry(gateway), await retry(gateway)
    assert first.json()["request_id"] == again.json()["request_id"]
    new_id = first.json()["request_id"]
    gateway.project(written(new_id, json.dumps(gateway.records.values[0])), ended(new_id))
    second = await retry(gateway, new_id)
    assert second.json()["request_id"] not in {"r-1", new_id}
    assert gateway.records.values[-1]["parent_id"] == new_id


async def test_a_task_that_has_not_ended_is_not_retried(gateway: Gateway) -> None:
    gateway.project(written("r-1", '{"request_id":"r-1","prompt":"a fox"}'))
    answer = await retry(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_finished")
    accepted = (await gateway.one.submit(gateway.admin)).json()
    assert (await retry(gateway, accepted["request_id"])).status_code == 409
    assert (await retry(gateway, "r-9")).status_code == 404


async def test_a_task_of_which_only_the_result_is_stored_is_gone(gateway: Gateway) -> None:
    alone = replace(ended("r-1"), tenant="default")
    gateway.project(alone)
    answer = await retry(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (410, "gone")


async def test_what_a_request_may_not_hold_any_more_is_named(gateway: Gateway) -> None:
    gateway.project(written("r-1", '{"request_id":"r-1","prompt":"a fox","of_a_producer":1}'), ended("r-1"))
    answer = await retry(gateway)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "of_a_producer")
    assert gateway.records.headers == []
