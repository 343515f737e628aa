"""The route that deletes a task, over a real task store and a real folder of objects, and what is shown of it then."""

import asyncio
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
from fluxpool_transport.dlq.replay import ResolutionInterruptedError
from fluxpool_transport.storage.object_store import ObjectStore, open_object_store
from fluxpool_transport.storage.task_objects import claim_task, store_image
from kit.gateways.dead_letter_topic import MemoryReplayer, letter_at
from kit.gateways.keyed_gateway import IMAGE, Gateway, keyed_gateway, keyed_settings, succeeded
from kit.waiting import wait_until

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

    def of_acme(self, request_id: str) -> list[tuple[str, bytes]]:
        """The headers of a task of the tenant, which the gateway has proven."""
        proof = self.trust.prove(tenant="acme", request_id=request_id)
        assert proof is not None
        return [(header_names.TENANT, b"acme"), (header_names.TENANT_PROOF, proof.encode())]

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


async def lists(bench: Bench, key: str) -> list[int]:
    """How many dead letters list, summary, export and one by its id have, and a replay would look at."""
    ask = bench.gateway.one.ask
    listed = (await ask("GET", "/v1/dlq", key)).json()["matching"]
    causes = (await ask("GET", "/v1/dlq/summary", key)).json()["data"]
    lines = (await ask("GET", "/v1/dlq/export?records=true", key)).text.splitlines()
    one = (await ask("GET", "/v1/dlq/0/0", key)).status_code == 200
    dry = {"ids": ["0/0"], "dry_run": True, "patch": {"width": 96}}
    preview = (await ask("POST", "/v1/dlq/replay", bench.gateway.admin, json=dry)).json()
    return [listed, sum(cause["open"] + cause["resolved"] for cause in causes), len(lines), one, preview["matching"]]


async def fail_with_a_dead_letter(bench: Bench, request_id: str) -> None:
    proven = bench.of_acme(request_id)
    bench.gateway.dead_letters.add(
        letter_at(0, request_id=request_id, message="width: of a secret fox", original=proven)
    )
    failed = replace(succeeded(request_id, "acme"), status=TaskStatus.FAILED)
    bench.gateway.project(accepted(request_id), failed)


async def test_with_a_task_its_dead_letter_disappears_and_no_replay_sends_it(bench: Bench) -> None:
    await fail_with_a_dead_letter(bench, "r-1")
    reader = await bench.gateway.create("read", tenant="acme")
    for key in (reader, bench.gateway.admin):
        assert await lists(bench, key) == [1, 1, 1, True, 1]
    assert await bench.ask("DELETE", "r-1") == (204, "")
    for key in (reader, bench.gateway.admin):
        assert await lists(bench, key) == [0, 0, 0, False, 0]
    discard = await bench.gateway.one.ask("POST", "/v1/dlq/0/0/discard", bench.gateway.admin, json={"reason": "late"})
    assert discard.status_code == 404
    asked = {"ids": ["0/0"], "patch": {"request_id": "r-2"}}
    job = (await bench.gateway.one.ask("POST", "/v1/dlq/replay", bench.gateway.admin, json=asked)).json()
    assert (job["total"], bench.gateway.dead_letters.sent) == (0, [])
    (told,) = bench.gateway.dead_letters.resolutions()
    assert (told.action, told.request_id) == ("deleted", "r-1"), "it outlives the record of the deletion"
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert len(bench.gateway.dead_letters.resolutions()) == 1


async def test_a_dead_letter_that_is_projected_after_the_deletion_of_its_task_is_not_shown(bench: Bench) -> None:
    bench.gateway.dead_letters.waiting = []
    await fail_with_a_dead_letter(bench, "r-1")
    other = letter_at(1, request_id="r-1")
    bench.gateway.dead_letters.add(other)
    assert await bench.ask("DELETE", "r-1") == (204, "")
    bench.gateway.dead_letters.project_waiting()
    reader = await bench.gateway.create("read", tenant="acme")
    assert await lists(bench, reader) == [0, 0, 0, False, 0]
    found = (await bench.gateway.one.ask("GET", "/v1/dlq", bench.gateway.admin)).json()["data"]
    assert [(one["id"], one["tenant"]) for one in found] == [("0/1", "default")], "another tenant's has the same id"


async def test_a_job_that_runs_refuses_a_task_that_was_deleted_before_its_turn(bench: Bench) -> None:
    topic, one = bench.gateway.dead_letters, bench.gateway.one
    await fail_with_a_dead_letter(bench, "r-1")
    asked = {"ids": ["0/0"], "patch": {"width": 96}}
    job = (await one.ask("POST", "/v1/dlq/replay", bench.gateway.admin, json=asked)).json()

    async def deleted() -> None:
        # By another client of Kafka: the dead letter itself is not marked.
        bench.gateway.project(DeletionSeen(request_id="r-1", tenant="acme"))

    topic.before_task = deleted
    path = f"/v1/dlq/replays/{job['job_id']}"

    async def ended() -> bool:
        return bool((await one.ask("GET", path, bench.gateway.admin)).json()["state"] == "ended")

    running = asyncio.create_task(one.dead_letters.runner.run())
    try:
        await wait_until(ended, deadline_seconds=60, what="the job to end")
    finally:
        running.cancel()
        await asyncio.wait({running})
    (item,) = (await one.ask("GET", path, bench.gateway.admin)).json()["items"]
    assert (item["outcome"], topic.sent) == ("refused", [])
    assert item["detail"]["problems"][0]["message"] == "r-1 was deleted; submit it as a new task"


async def test_without_its_dead_letter_marked_a_task_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await fail_with_a_dead_letter(bench, "r-1")

    async def away(*_: object) -> None:
        raise ResolutionInterruptedError("topic flux-dlq: a record was not confirmed")

    monkeypatch.setattr(MemoryReplayer, "mark_deleted", away)
    assert await bench.ask("DELETE", "r-1") == (503, "queue_unavailable")
    assert await bench.ask("GET", "r-1") == (200, "failed")
    monkeypatch.undo()
    assert await bench.ask("DELETE", "r-1") == (204, "")
    assert await lists(bench, bench.acme) == [0, 0, 0, False, 0]


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
