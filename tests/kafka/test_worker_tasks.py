"""A real worker, a real broker and the tiny pipeline: the endings of all kinds of records."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from PIL import Image

from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.decoding import peek_request_id
from fluxpool_contract.messages.derived import derive_seed
from fluxpool_worker.image_parameters import read_parameters
from kit.brokers.kafka import TopicRecord, produce
from kit.waiting import wait_until
from kit.workers.worker import LOOK_SECONDS, UNHURRIED, WorkerBench, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

SEED_TASK = (
    b'{"request_id": "req_20250405_flux_001", '
    b'"prompt": "a futuristic city at sunset, cyberpunk style, highly detailed", '
    b'"negative_prompt": "blurry, low resolution", "width": 1024, "height": 1024, "steps": 50, "seed": 12345}'
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> AsyncIterator[WorkerBench]:
    folder = tmp_path_factory.mktemp("bench")
    async with worker_bench(bootstrap_servers, folder, model=str(tiny_checkpoint), executed_engines=True) as bench:
        await bench.start_ready(**UNHURRIED, foreign_tenant_topics=(bench.topics.tasks_vip,))
        yield bench


async def results_of(bench: WorkerBench, request_id: str, *, count: int) -> list[TopicRecord]:
    async def found() -> list[TopicRecord]:
        records = await bench.records(bench.topics.results)
        matching = [record for record in records if json.loads(record.value or b"{}")["request_id"] == request_id]
        if len(matching) >= count:
            return matching
        await asyncio.sleep(LOOK_SECONDS)
        return []

    return await wait_until(found, deadline_seconds=480, what=f"{count} results of {request_id}")


async def result_of(bench: WorkerBench, request_id: str) -> dict[str, Any]:
    [record] = await results_of(bench, request_id, count=1)
    result: dict[str, Any] = json.loads(record.value or b"")
    return result


def event_id(record: TopicRecord) -> bytes | None:
    return dict(record.headers)["ce_id"]


async def dead_letter_of(bench: WorkerBench, value: bytes) -> DeadLetter:
    [record] = [record for record in await bench.records(bench.topics.dead_letters) if (record.value or b"") == value]
    return DeadLetter.from_headers(record.headers)


async def wait_committed_beyond(bench: WorkerBench, partition: int, offset: int) -> None:
    async def beyond() -> bool:
        return (await bench.committed()).get(partition, 0) > offset

    await wait_until(beyond, deadline_seconds=90, what=f"offset {offset} of partition {partition} to be committed")


async def test_the_seed_task_of_a_foreign_client_becomes_an_image(bench: WorkerBench) -> None:
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, SEED_TASK)])
    result = await result_of(bench, "req_20250405_flux_001")

    assert result["request_id"] == "req_20250405_flux_001"
    assert result["status"] == "success"
    [image] = result["images"]
    path = bench.images / image["object"]
    assert result["image_url"] == path.as_uri()
    assert path.match(f"default/{datetime.now(UTC):%Y}/*/*/req_20250405_flux_001/0.png")
    payload = path.read_bytes()
    assert (hashlib.sha256(payload).hexdigest(), len(payload)) == (image["sha256"], image["bytes"])
    with Image.open(path) as opened:
        assert opened.size == (1024, 1024)
    embedded = read_parameters(payload)
    task = json.loads(SEED_TASK)
    assert {name: embedded[name] for name in task} == task
    assert (result["seed"], result["steps"], result["width"], result["attempt"]) == (12345, 50, 1024, 1)
    assert any("true_cfg_scale" in warning for warning in result["warnings"])
    await wait_committed_beyond(bench, partition, offset)


async def test_a_task_sent_twice_has_one_image_and_one_result(bench: WorkerBench) -> None:
    body = task_body("twice", "the same words")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body), (None, body)])
    first, second = await results_of(bench, "twice", count=2)

    assert first.value == second.value
    assert event_id(first) == event_id(second)
    assert len([path for path in bench.stored_images() if path.parent.name == "twice"]) == 1


async def test_the_same_body_in_other_order_and_spacing_is_the_same_task(bench: WorkerBench) -> None:
    spaced = b'{ "steps": 2, "height": 64,\n "width": 64, "prompt": "a lighthouse", "request_id": "spaced" }'
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("spaced"))])
    await result_of(bench, "spaced")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, spaced)])
    first, second = await results_of(bench, "spaced", count=2)

    assert first.value == second.value


async def test_another_prompt_under_a_used_id_is_a_conflict_and_the_first_result_is_kept(bench: WorkerBench) -> None:
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("taken", "first"))])
    result = await result_of(bench, "taken")
    image = (bench.images / result["images"][0]["object"]).read_bytes()
    other = task_body("taken", "second")
    [(partition, offset)] = await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, other)])
    await wait_committed_beyond(bench, partition, offset)

    dead_letter = await dead_letter_of(bench, other)
    assert (dead_letter.error_code, dead_letter.error_class, dead_letter.request_id) == (
        "id-conflict",
        "invalid",
        "taken",
    )
    assert "choose a new request_id" in dead_letter.message
    assert await results_of(bench, "taken", count=1) == await results_of(bench, "taken", count=1)
    assert [json.loads(record.value or b"") for record in await results_of(bench, "taken", count=1)] == [result]
    assert (bench.images / result["images"][0]["object"]).read_bytes() == image


async def test_a_copy_that_arrives_on_another_day_finds_the_first_one(bench: WorkerBench) -> None:
    body = task_body("yesterday")
    yesterday = [("fluxpool-first-seen", b"2026-01-31T23:59:59Z")]
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)], headers=yesterday)
    first = await result_of(bench, "yesterday")
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)])
    await results_of(bench, "yesterday", count=2)

    assert first["images"][0]["object"] == "default/2026/01/31/yesterday/0.png"
    assert len([path for path in bench.stored_images() if path.parent.name == "yesterday"]) == 1


async def test_every_parameter_reaches_the_image(bench: WorkerBench) -> None:
    body = task_body(
        "everything",
        "ein Leuchtturm im Nebel, 灯台",
        negative_prompt="people",
        true_cfg_scale=2.5,
        guidance=4.5,
        seed=7,
        n=2,
        width=96,
        height=64,
        steps=3,
        output_format="webp",
        metadata={"owner": "café"},
        a_field_of_the_future=[1],
    )
    tenant = [("fluxpool-tenant", b"acme")]
    await produce(bench.bootstrap_servers, bench.topics.tasks_vip, [(b"k", body)], headers=tenant)
    [record] = await results_of(bench, "everything", count=1)
    result = json.loads(record.value or b"")

    assert dict(record.headers)["fluxpool-tenant"] == b"acme"
    assert [image["seed"] for image in result["images"]] == [7, 8]
    assert result["metadata"] == {"owner": "café"}
    assert result["warnings"] == []
    for image in result["images"]:
        assert image["object"].startswith("acme/")
        assert (image["format"], image["content_type"]) == ("webp", "image/webp")
        embedded = read_parameters((bench.images / image["object"]).read_bytes())
        assert embedded["prompt"] == "ein Leuchtturm im Nebel, 灯台"
        assert (embedded["guidance"], embedded["true_cfg_scale"], embedded["negative_prompt"]) == (4.5, 2.5, "people")
        assert (embedded["width"], embedded["height"], embedded["steps"], embedded["seed"]) == (
            96,
            64,
            3,
            image["seed"],
        )


async def test_a_missing_seed_is_the_same_on_every_worker(bench: WorkerBench) -> None:
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("unseeded"))])

    assert (await result_of(bench, "unseeded"))["seed"] == derive_seed("unseeded")


@pytest.mark.parametrize(
    ("value", "code", "reason"),
    [
        (b"\x00\xff\xfenot json", "undecodable", "not valid JSON"),
        (b"", "undecodable", "no value"),
        (b"[1, 2]", "undecodable", "JSON object"),
        (b'{"request_id": "huge", "prompt": "' + b"x" * 900 * 1024 + b'"}', "too-large", "at most 65536"),
        (task_body("types", steps="20"), "invalid-field", "steps: must be a whole number"),
        (
            task_body("w1000", width=1000),
            "invalid-field",
            "width: 1000 is not a multiple of 16; the nearest",
        ),
        (task_body("s0", steps=0), "invalid-field", "steps: must be at least 1"),
        (task_body("fast", quality="fast"), "invalid-field", "quality: fast is not allowed in this pool; use exact"),
        (b'{"prompt": "x"}', "invalid-field", "request_id: is required"),
        (b'{"request_id": "noprompt"}', "invalid-field", "prompt: is required"),
    ],
    ids=["garbage", "empty", "list", "900-KiB", "wrong-types", "width-1000", "steps-0", "fast", "no-id", "no-prompt"],
)
async def test_an_invalid_record_is_dead_lettered_and_affects_no_other(
    bench: WorkerBench, value: bytes, code: str, reason: str
) -> None:
    before, after = f"before-{code}-{len(value)}", f"after-{code}-{len(value)}"
    sent = await produce(
        bench.bootstrap_servers,
        bench.topics.tasks,
        [(None, task_body(before)), (b"\x01key", value), (None, task_body(after))],
        partition=0,
    )
    assert (await result_of(bench, before))["status"] == "success"
    assert (await result_of(bench, after))["status"] == "success"
    await wait_committed_beyond(bench, *sent[-1])

    dead_letter = await dead_letter_of(bench, value)
    assert (dead_letter.error_code, dead_letter.error_class) == (code, "invalid")
    assert reason in dead_letter.message
    assert (dead_letter.origin_topic, dead_letter.origin_partition, dead_letter.origin_offset) == (
        bench.topics.tasks,
        *sent[1],
    )
    request_id = peek_request_id(value)
    assert dead_letter.request_id == request_id
    failed = [
        result
        for result in await bench.results()
        if result["error"] and result["error"]["message"] == dead_letter.message
    ]
    assert [(result["request_id"], result["status"], result["image_url"]) for result in failed[:1]] == [
        (request_id, "failed", None)
    ]


async def test_a_malformed_header_is_named(bench: WorkerBench) -> None:
    body = task_body("bad-header")
    headers = [("fluxpool-deadline", b"tomorrow"), ("x-own", b"\xff")]
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)], headers=headers)
    result = await result_of(bench, "bad-header")

    assert (result["status"], result["error"]["code"]) == ("failed", "invalid-header")
    assert "fluxpool-deadline" in result["error"]["message"]
    [record] = [record for record in await bench.records(bench.topics.dead_letters) if record.value == body]
    assert set(headers) <= set(record.headers)


async def test_metrics_and_probes_show_the_tasks(bench: WorkerBench) -> None:
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("counted"))])
    await result_of(bench, "counted")
    async with httpx.AsyncClient(base_url=bench.workers[0].health_url, timeout=60) as client:
        assert (await client.get("/healthz")).status_code == 200

        async def counted() -> bool:
            return 'fluxpool_tasks_total{outcome="success"}' in (await client.get("/metrics")).text

        # A result is published before its task has ended.
        await wait_until(counted, deadline_seconds=20, what="the task to be counted")


async def test_progress_is_published_while_the_task_runs(bench: WorkerBench) -> None:
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, task_body("slow", steps=40))])
    await result_of(bench, "slow")

    async def all_events() -> list[dict[str, Any]]:
        events = [json.loads(record.value or b"") for record in await bench.records(bench.topics.progress)]
        own = [event for event in events if event["request_id"] == "slow"]
        return own if own and own[-1].get("step") == 40 else []

    events = await wait_until(all_events, deadline_seconds=60, what="the last step's event")
    assert [events[0]["type"], *{event["type"] for event in events[1:]}] == ["started", "step"]
    assert (events[-1]["total_steps"], events[-1]["worker"], events[-1]["attempt"]) == (40, "worker-1", 1)
