"""Two tenants whose tasks have one id: each route answers with the caller's own."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_contract.header_names import TENANT
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_gateway.identity.caller import ANYBODY
from fluxpool_gateway.projection.barrier import ProjectionBarrier
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_state import (
    ProgressSeen,
    ResultSeen,
    TaskKey,
    TaskSeen,
    TaskStatus,
    version_of,
)
from fluxpool_gateway.tasks.lookup import RecentTasks, TaskLookup
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings

ID = "same"
PATH = f"/v1/generations/{ID}"


def seen(tenant: str, *, created_at_ms: int = 1000) -> TaskSeen:
    body = f'{{"request_id":"{ID}","prompt":"of {tenant}","group_id":"g"}}'
    return TaskSeen(
        request_id=ID, tenant=tenant, body=body, priority="standard", created_at_ms=created_at_ms, group_id="g"
    )


def running(tenant: str) -> ProgressSeen:
    return ProgressSeen(request_id=ID, tenant=tenant, status=TaskStatus.RUNNING, at_ms=2000, started=True)


def succeeded(tenant: str, folder: Path) -> ResultSeen:
    """With its image in the folder of the tenant."""
    key, content = f"{tenant}/2026/04/05/{ID}/0.png", f"picture of {tenant}".encode()
    stored = folder / "images" / key
    stored.parent.mkdir(parents=True)
    stored.write_bytes(content)
    image = ImageDescription(
        index=0,
        url=f"http://images/{tenant}.png",
        object=key,
        width=64,
        height=64,
        seed=7,
        format="png",
        content_type="image/png",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    result = GenerationResult(request_id=ID, image_url=image.url, status=ResultStatus.SUCCESS, images=(image,))
    return ResultSeen(
        request_id=ID, tenant=tenant, status=TaskStatus.SUCCEEDED, body=result.model_dump_json(), completed_at_ms=9000
    )


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as started:
        yield started


async def test_each_sees_its_own_state_image_list_and_group(gateway: Gateway, tmp_path: Path) -> None:
    keys = {tenant: await gateway.create(tenant=tenant) for tenant in ("acme", "other", "third")}
    gateway.project(seen("acme"), running("other"), seen("other", created_at_ms=2000), succeeded("acme", tmp_path))
    states = {tenant: await gateway.one.ask("GET", PATH, key) for tenant, key in keys.items()}
    assert {tenant: state.status_code for tenant, state in states.items()} == {"acme": 200, "other": 200, "third": 404}
    assert [states[tenant].json()["status"] for tenant in ("acme", "other")] == ["succeeded", "running"]

    images = {tenant: await gateway.one.ask("GET", f"{PATH}/images/0", key) for tenant, key in keys.items()}
    assert images["acme"].content == b"picture of acme"
    assert [images[tenant].status_code for tenant in ("other", "third")] == [409, 404]

    for tenant, status in (("acme", "succeeded"), ("other", "running")):
        page = (await gateway.one.ask("GET", "/v1/generations", keys[tenant])).json()
        assert [(task["request_id"], task["status"]) for task in page["data"]] == [(ID, status)]
        counts = (await gateway.one.ask("GET", "/v1/groups/g", keys[tenant])).json()["counts"]
        assert {name for name, count in counts.items() if count} == {status}


UUID = "01890a5d-ac96-774b-bcce-b302099a8057"
CHOSEN = f"/v1/generations/{UUID}"


async def test_each_tenant_may_choose_the_same_id(gateway: Gateway) -> None:
    acme, other = await gateway.create(tenant="acme"), await gateway.create(tenant="other")
    for key, prompt in ((acme, "a fox"), (other, "a cat")):
        answer = await gateway.one.ask("PUT", CHOSEN, key, json={"prompt": prompt})
        assert (answer.status_code, answer.json()["request_id"]) == (202, UUID)
        assert answer.headers["location"] == f"http://gateway{CHOSEN}"
    assert [value["prompt"] for value in gateway.records.values] == ["a fox", "a cat"]
    assert [headers[TENANT] for headers in gateway.records.headers] == [b"acme", b"other"]
    assert {(await gateway.one.ask("GET", CHOSEN, key)).status_code for key in (acme, other)} == {200}


async def test_a_repeat_is_the_same_task_on_every_process_and_another_body_is_refused(gateway: Gateway) -> None:
    key = await gateway.create(tenant="acme")
    first = await gateway.one.ask("PUT", CHOSEN, key, json={"prompt": "a fox", "guidance": 4})
    again = await gateway.two.ask("PUT", CHOSEN, key, json={"guidance": 4.0, "prompt": "a fox"})
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == first.json()
    refused = await gateway.two.ask("PUT", CHOSEN, key, json={"prompt": "a cat"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_conflict")
    assert refused.json()["detail"] == "request_id: was used for a request with another body; use a new id"
    assert refused.json()["instance"] == CHOSEN
    assert len(gateway.records.values) == 1
    # As it is once only the store knows it.
    body = json.dumps(gateway.records.values[0])
    gateway.project(TaskSeen(request_id=UUID, tenant="acme", body=body, priority="standard", created_at_ms=1))
    (gateway.settings.task_store_file().with_name("tasks.sqlite.reservations")).unlink()
    assert (await gateway.one.ask("PUT", CHOSEN, key, json={"prompt": "a fox", "guidance": 4})).status_code == 200
    assert (await gateway.one.ask("PUT", CHOSEN, key, json={"prompt": "a cat"})).status_code == 409
    assert len(gateway.records.values) == 1


@pytest.mark.parametrize("chosen", [UUID.upper(), UUID.replace("-", ""), f"{{{UUID}}}", "fox-1", "cancel", UUID + "0"])
async def test_a_chosen_id_is_a_canonical_uuid(gateway: Gateway, chosen: str) -> None:
    answer = await gateway.one.ask("PUT", f"/v1/generations/{chosen}", gateway.admin, json={"prompt": "a fox"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/request_id")
    assert gateway.records.values == []


async def test_a_put_that_is_not_confirmed_is_to_be_repeated_with_its_id(gateway: Gateway) -> None:
    gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no acknowledgement")
    answer = await gateway.one.ask("PUT", CHOSEN, gateway.admin, json={"prompt": "a fox"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")
    assert "repeat it with the same id" in answer.json()["detail"]
    gateway.records.failure = None
    assert (await gateway.two.ask("PUT", CHOSEN, gateway.admin, json={"prompt": "a fox"})).status_code == 202


async def test_a_cancel_is_of_the_callers_task(gateway: Gateway, tmp_path: Path) -> None:
    acme, other = await gateway.create(tenant="acme"), await gateway.create(tenant="other")
    gateway.project(seen("acme"), seen("other"), succeeded("acme", tmp_path))
    ended = await gateway.one.ask("POST", f"{PATH}/cancel", acme)
    assert (ended.status_code, ended.json()["outcome"]) == (200, "ended")
    many = await gateway.one.ask("POST", "/v1/generations/cancel", other, json={"request_ids": [ID]})
    assert [task["outcome"] for task in many.json()["data"]] == ["requested"]
    ((key, headers, _),) = gateway.records.commands
    assert (key, headers[TENANT]) == (ID, b"other")


async def test_a_wait_ends_with_the_callers_task(gateway: Gateway, tmp_path: Path) -> None:
    other = await gateway.create(tenant="other")
    gateway.project(seen("acme"), seen("other"), succeeded("acme", tmp_path))
    answer = await gateway.one.ask("GET", PATH, other, headers={"prefer": "wait=1"})
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("queued", "wait=1")


async def test_what_counts_as_admitted_until_it_is_stored_is_of_one_tenant(gateway: Gateway) -> None:
    gateway.project(seen("acme"))
    reader = TaskStoreReader(gateway.settings.task_store_file())
    assert reader.count_unfinished("acme", known=[ID], most=9) == (1, [ID])
    assert reader.count_unfinished("other", known=[ID], most=9) == (0, [])
    assert await reader.versions([ID]) == {
        TaskKey(ID, "acme"): version_of(status=TaskStatus.QUEUED, epoch=0, attempt=1)
    }
    reader.close()


async def test_without_authentication_a_task_of_any_tenant_is_found_and_the_default_one_first(gateway: Gateway) -> None:

    gateway.project(seen("acme"))
    reader = TaskStoreReader(gateway.settings.task_store_file())
    async with asyncio.TaskGroup() as group:
        barrier = ProjectionBarrier(group, ends=reader.positions, projected=reader.positions)
        lookup = TaskLookup(store=reader, recent=RecentTasks(lambda: 0.0), barrier=barrier)
        assert (await lookup.find(ID, ANYBODY)).key == TaskKey(ID, "acme")
        gateway.project(seen("default"))
        assert (await lookup.find(ID, ANYBODY)).key == TaskKey(ID, "default")
    reader.close()
