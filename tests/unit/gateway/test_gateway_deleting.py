"""The route that deletes a task, over a real task store and a real folder of objects, and what is shown of it then."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path

import pytest

from fluxpool_contract import header_names
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.derived import claim_key, deletion_key
from fluxpool_contract.tenants import NO_TENANT, TenantTrust
from fluxpool_gateway.http import change_routes
from fluxpool_gateway.projection.projected_records import read_change
from fluxpool_gateway.store.task_state import (
    DELETED_VERSION,
    Change,
    DeletionSeen,
    ProgressSeen,
    TaskSeen,
    TaskState,
    TaskStatus,
    fold,
)
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from fluxpool_transport.storage.object_store import ObjectStore, open_object_store
from fluxpool_transport.storage.task_objects import claim_task, store_image
from kit.keyed_gateway import IMAGE, Gateway, keyed_gateway, keyed_settings, succeeded

TOPICS = TopicNames()
PATH = "/v1/generations/"
DAY = datetime(2026, 4, 5, tzinfo=UTC)


def accepted(request_id: str, *, tenant: str = "acme") -> TaskSeen:
    return TaskSeen(
        request_id=request_id,
        body='{"prompt": "a secret fox"}',
        priority="standard",
        tenant=tenant,
        created_at_ms=1,
        group_id="g",
    )


@dataclass(slots=True)
class Bench:
    gateway: Gateway
    trust: TenantTrust
    objects: ObjectStore
    folder: Path
    acme: str
    """A key of the tenant with every scope."""

    async def store(self, request_id: str, *, tenant: str = "acme", epoch: int = 0) -> str:
        """A claim and an image as a worker stores them; returns the key of the image."""
        claimed = await claim_task(
            self.objects, tenant=tenant, request_id=request_id, epoch=epoch, digest="d", first_seen=DAY
        )
        image = await store_image(
            self.objects, claimed.claim, index=0, extension="png", payload=IMAGE, content_type="image/png"
        )
        return image.key

    async def end(self, request_id: str, *, tenant: str = "acme") -> str:
        """A task that has succeeded; returns the key of its image."""
        key = await self.store(request_id, tenant=tenant)
        self.gateway.project(accepted(request_id, tenant=tenant), succeeded(request_id, tenant, object_key=key))
        return key

    def project(self, key: bytes, headers: dict[str, bytes]) -> None:
        change = read_change(
            TOPICS,
            topic=TOPICS.results,
            key=key,
            value=None,
            headers=list(headers.items()),
            timestamp_ms=1,
            trust=self.trust,
        )
        assert change is not None
        self.gateway.project(change)

    async def ask(self, method: str, request_id: str, key: str | None = None) -> tuple[int, str]:
        """The status, and the code of the refusal or the state of the task, if any."""
        answer = await self.gateway.one.ask(method, PATH + request_id, key or self.acme)
        if not answer.content:
            return answer.status_code, ""
        body = answer.json()
        return answer.status_code, body["error"]["code"] if answer.status_code >= 400 else body["status"]

    def files(self) -> set[str]:
        return {str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()}


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    settings = keyed_settings(tmp_path)
    async with keyed_gateway(settings) as gateway:
        trust = TenantTrust(secret=await gateway.one.gate.store.secret())
        objects = open_object_store(settings.storage)
        made = Bench(gateway, trust, objects, tmp_path / "images", await gateway.create(tenant="acme"))
        gateway.records.on_deletion = made.project
        yield made


async def test_a_deleted_task_is_gone_with_its_images_on_every_route(bench: Bench) -> None:
    await bench.end("r-1")
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert bench.files() == {claim_key("acme", "r-1"), deletion_key("acme", "r-1")}
    for method, path in (("GET", "r-1"), ("GET", "r-1/images/0"), ("POST", "r-1/retry"), ("POST", "r-1/cancel")):
        assert await bench.ask(method, path) == (410, "gone")
    listed = await bench.gateway.one.ask("GET", "/v1/generations", bench.acme)
    assert listed.json()["data"] == []
    assert (await bench.gateway.one.ask("GET", "/v1/groups/g", bench.acme)).status_code == 404
    known = await bench.gateway.one.app.state.services.store.find("r-1", tenant="acme")
    assert known is not None
    assert (known.status, known.body, known.result, known.group_id) == (TaskStatus.DELETED, None, None, None)


async def test_to_delete_a_task_again_changes_nothing(bench: Bench) -> None:
    await bench.end("r-1")
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert len(bench.gateway.records.deletions) == 1


async def test_a_deletion_that_is_not_projected_in_time_is_accepted_and_shown_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_routes, "DELETION_SHOWN_SECONDS", 0.05)
    bench.gateway.records.on_deletion = None
    await bench.end("r-1")
    assert await bench.ask("DELETE", "r-1") == (202, "")
    assert await bench.ask("GET", "r-1") == (200, "succeeded")
    assert await bench.ask("GET", "r-1/images/0") == (404, "not_found")
    bench.project(*bench.gateway.records.deletions[0])
    assert await bench.ask("GET", "r-1") == (410, "gone")
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert len(bench.gateway.records.deletions) == 1


async def test_objects_of_replays_are_deleted_too_and_those_of_other_tasks_stay(bench: Bench) -> None:
    others = {await bench.end("r-10"), await bench.end("r-1", tenant="other")}
    await bench.end("r-1")
    replayed = await bench.store("r-1", epoch=2)
    bench.gateway.project(replace(succeeded("r-1", "acme", object_key=replayed), epoch=2))
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert {file for file in bench.files() if file.endswith(".png")} == others


async def test_a_result_that_names_the_image_of_another_task_deletes_nothing_of_it(bench: Bench) -> None:
    others = await bench.end("r-2")
    bench.gateway.project(accepted("r-1"), succeeded("r-1", "acme", object_key=others))
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert others in bench.files()


async def test_a_task_that_has_not_ended_is_not_deleted_and_the_remedy_is_named(bench: Bench) -> None:
    started = ProgressSeen(request_id="r-2", tenant="acme", status=TaskStatus.RUNNING, at_ms=1, started=True)
    bench.gateway.project(accepted("r-1"), accepted("r-2"), started)
    for request_id in ("r-1", "r-2"):
        answer = await bench.gateway.one.ask("DELETE", PATH + request_id, bench.acme)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_finished")
        assert f"POST /v1/generations/{request_id}/cancel" in answer.json()["detail"]
    submitted = (await bench.gateway.one.submit(bench.acme)).json()["request_id"]
    assert await bench.ask("DELETE", submitted) == (409, "not_finished")
    assert bench.gateway.records.deletions == []


async def test_only_the_tenant_with_the_scope_deletes(bench: Bench) -> None:
    await bench.end("r-1")
    other = await bench.gateway.create(tenant="other")
    reader = await bench.gateway.create("read", "submit", tenant="acme")
    assert await bench.ask("DELETE", "r-1", other) == (404, "not_found")
    assert await bench.ask("DELETE", "unknown") == (404, "not_found")
    assert await bench.ask("DELETE", "r-1", reader) == (403, "insufficient_scope")
    assert await bench.ask("GET", "r-1") == (200, "succeeded")


async def test_an_unconfirmed_deletion_can_be_repeated(bench: Bench) -> None:
    await bench.end("r-1")
    bench.gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no acknowledgement")
    assert await bench.ask("DELETE", "r-1") == (503, "queue_unavailable")
    assert await bench.ask("GET", "r-1") == (200, "succeeded")
    bench.gateway.records.failure = None
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert await bench.ask("GET", "r-1") == (410, "gone")


async def test_without_its_objects_deleted_a_task_stays(bench: Bench) -> None:
    await bench.end("r-1")
    (bench.folder / claim_key("acme", "r-1")).write_text("no claim")
    assert await bench.ask("DELETE", "r-1") == (503, "storage_failed")
    assert bench.gateway.records.deletions == []
    assert await bench.ask("GET", "r-1") == (200, "succeeded")


async def test_the_key_and_the_id_of_a_deleted_task_are_not_used_again(bench: Bench) -> None:
    chosen = "01890a5d-ac96-774b-bcce-b302099a8057"
    one, body, key = bench.gateway.one, {"prompt": "a secret fox"}, {"idempotency-key": "k"}
    assert (await one.ask("PUT", PATH + chosen, bench.acme, json=body)).status_code == 202
    keyed = (await one.submit(bench.acme, headers=key)).json()["request_id"]
    for request_id in (chosen, keyed):
        bench.gateway.project(accepted(request_id), succeeded(request_id, "acme"))
        assert await bench.ask("DELETE", request_id) == (204, "")
    written = len(bench.gateway.records.values)
    put = await one.ask("PUT", PATH + chosen, bench.acme, json=body)
    assert (put.status_code, put.json()["errors"][0]["pointer"]) == (410, "#/request_id")
    repeated = await one.submit(bench.acme, headers=key)
    assert (repeated.status_code, repeated.json()["error"]["code"]) == (410, "gone")
    assert len(bench.gateway.records.values) == written


def test_a_deletion_is_final_in_whatever_order_records_are_read() -> None:
    records: list[Change] = [accepted("r"), succeeded("r", "acme"), DeletionSeen(request_id="r", tenant="acme")]
    records.append(replace(succeeded("r", "acme"), epoch=999_999))
    states: set[TaskState] = set()
    for order in permutations(records):
        state: TaskState | None = None
        for record in order:
            state = fold(state, record)
        assert state is not None
        states.add(state)
    assert states == {
        TaskState(request_id="r", tenant="acme", version=DELETED_VERSION, status=TaskStatus.DELETED, attempts=0)
    }


@pytest.mark.parametrize(
    ("key", "headers", "expected"),
    [
        (b"r", [(header_names.TENANT, b"acme")], "default"),
        (b"r", [(header_names.TENANT, b"acme"), (header_names.TENANT_PROOF, b"0" * 32)], NO_TENANT),
        (b"r", [], "default"),
        (None, [], None),
        (b"no id!", [], None),
        (b"\xff", [], None),
    ],
)
def test_a_record_without_a_value_deletes_for_a_proven_tenant_alone(
    key: bytes | None, headers: list[tuple[str, bytes]], expected: str | None
) -> None:
    change = read_change(
        TOPICS,
        topic=TOPICS.results,
        key=key,
        value=None,
        headers=headers,
        timestamp_ms=1,
        trust=TenantTrust(secret=b"s"),
    )
    assert (None if change is None else change.tenant) == expected


@pytest.mark.parametrize("topic", [TOPICS.tasks, TOPICS.tasks_vip, TOPICS.progress])
def test_only_on_the_results_topic_a_record_without_a_value_deletes(topic: str) -> None:
    change = read_change(TOPICS, topic=topic, key=b"r", value=None, headers=[], timestamp_ms=1, trust=TenantTrust())
    assert change is None
