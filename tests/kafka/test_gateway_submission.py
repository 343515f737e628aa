"""Submissions over real HTTP to a real broker: records, refusals, and the meaning of 202."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.header_names import TYPE_REQUESTED
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.decoding import decode_task
from fluxpool_contract.messages.derived import idempotent_request_id
from kit.brokers.kafka import KafkaFactory, TopicRecord, read_topic
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway, told
from kit.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.kafka

SUBMIT = "v1/generations"
ANSWER_SECONDS = 60.0
"""For an answer of a gateway on a busy machine; most take milliseconds."""
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def gateway(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        topics = runner.run(gateway_topics(kafka.bootstrap_servers))
    folder = tmp_path_factory.mktemp("gateway")
    with running_gateway(gateway_settings(kafka.bootstrap_servers, folder, topics, processes=2)) as running:
        running.wait_ready()
        yield running


@pytest.fixture
async def client(gateway: GatewayProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as opened:
        await wait_ready(opened)
        yield opened


async def wait_ready(client: httpx.AsyncClient) -> None:
    async def ready() -> bool:
        return (await client.get("readyz")).status_code == 200

    await wait_until(ready, deadline_seconds=30, what="readiness")


async def record_of(topics: TopicNames, bootstrap_servers: str, request_id: str) -> list[TopicRecord]:
    records = [
        record for topic in (topics.tasks, topics.tasks_vip) for record in await read_topic(bootstrap_servers, topic)
    ]
    return [record for record in records if record.key == request_id.encode()]


async def test_an_accepted_request_is_one_record_with_the_given_fields_and_its_envelope(
    gateway: GatewayProcess, client: httpx.AsyncClient, kafka: KafkaCluster
) -> None:
    answer = await client.post(
        SUBMIT, json={"width": 512, "prompt": "a cat", "guidance_scale": 3}, headers={"traceparent": TRACE}
    )
    assert answer.status_code == 202
    request_id = answer.json()["request_id"]
    assert uuid.UUID(request_id).version == 7
    assert answer.json() == {
        "request_id": request_id,
        "status": "queued",
        "status_url": f"{gateway.url}v1/generations/{request_id}",
    }
    assert answer.headers["location"] == answer.json()["status_url"]
    assert int(answer.headers["retry-after"]) >= 1
    (record,) = await record_of(gateway.settings.topics, kafka.bootstrap_servers, request_id)
    assert record.topic == gateway.settings.topics.tasks
    assert record.value == f'{{"request_id":"{request_id}","prompt":"a cat","width":512,"guidance":3.0}}'.encode()
    headers = dict(record.headers)
    assert len(headers) == len(record.headers)
    assert headers.pop("ce_time") == headers.pop("fluxpool-first-seen")
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": request_id.encode(),
        "ce_type": TYPE_REQUESTED.encode(),
        "ce_source": b"/fluxpool/gateway",
        "ce_subject": request_id.encode(),
        "content-type": b"application/json",
        "traceparent": TRACE.encode(),
        "fluxpool-priority": b"standard",
        "fluxpool-tenant": b"default",
    }
    envelope = decode_task(record.value, record.headers).envelope
    assert envelope.first_seen is not None
    assert abs(envelope.first_seen.timestamp() - time.time()) < 60 * PATIENCE


async def test_a_vip_request_goes_to_the_vip_topic(
    gateway: GatewayProcess, client: httpx.AsyncClient, kafka: KafkaCluster
) -> None:
    answer = await client.post(SUBMIT, json={"prompt": "a cat", "priority": "vip"})
    (record,) = await record_of(gateway.settings.topics, kafka.bootstrap_servers, answer.json()["request_id"])
    assert record.topic == gateway.settings.topics.tasks_vip
    assert (await client.get(answer.headers["location"])).json()["priority"] == "vip"


async def test_requests_are_spread_evenly_over_the_partitions(
    gateway: GatewayProcess, client: httpx.AsyncClient, kafka: KafkaCluster
) -> None:
    ids = [(await client.post(SUBMIT, json={"prompt": "turns"})).json()["request_id"] for _ in range(9)]
    records = await read_topic(kafka.bootstrap_servers, gateway.settings.topics.tasks)
    partitions = [record.partition for record in records if record.key is not None and record.key.decode() in ids]
    assert sorted(partitions) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


async def test_a_repeat_with_the_same_idempotency_key_is_the_same_task_and_the_same_bytes(
    gateway: GatewayProcess, client: httpx.AsyncClient, kafka: KafkaCluster
) -> None:
    key = uuid.uuid4().hex
    bodies: list[dict[str, Any]] = [{"prompt": "twice", "steps": 4}, {"num_inference_steps": 4, "prompt": "twice"}]
    answers = [await client.post(SUBMIT, json=body, headers={"Idempotency-Key": key}) for body in bodies]
    assert [answer.status_code for answer in answers] == [202, 202]
    ids = {answer.json()["request_id"] for answer in answers}
    assert ids == {idempotent_request_id("default", key)}
    records = await record_of(gateway.settings.topics, kafka.bootstrap_servers, ids.pop())
    assert len({record.value for record in records}) == 1


async def test_a_used_idempotency_key_with_another_body_is_refused_on_every_process(
    client: httpx.AsyncClient, gateway: GatewayProcess
) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = await client.post(SUBMIT, json={"prompt": "one"}, headers=headers)

    async def on_every_process(method: str, path: str, **arguments: Any) -> list[httpx.Response]:
        answers = []
        # A new connection each time, so that both server processes answer.
        for _ in range(8):
            async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as fresh:
                answers.append(await fresh.request(method, path, **arguments))
        return answers

    async def known_everywhere() -> bool:
        return {found.status_code for found in await on_every_process("GET", first.headers["location"])} == {200}

    await wait_until(known_everywhere, deadline_seconds=60, what="the task to be known to both processes")
    refused = await on_every_process("POST", SUBMIT, json={"prompt": "two"}, headers=headers)
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in refused} == {
        (422, "idempotency_conflict")
    }


async def test_of_two_bodies_sent_at_once_under_one_key_one_is_accepted_and_written_once(
    client: httpx.AsyncClient, gateway: GatewayProcess, kafka: KafkaCluster
) -> None:
    key = uuid.uuid4().hex

    async def submit(prompt: str) -> tuple[str, int]:
        # Separate connections, so that both server processes answer.
        async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as fresh:
            answer = await fresh.post(SUBMIT, json={"prompt": prompt}, headers={"Idempotency-Key": key})
        return prompt, answer.status_code

    answers = await asyncio.gather(*(submit(("one", "two")[number % 2]) for number in range(40)))
    records = await record_of(gateway.settings.topics, kafka.bootstrap_servers, idempotent_request_id("default", key))
    assert len(records) == 1
    winner = json.loads(records[0].value or b"")["prompt"]
    assert {status for prompt, status in answers if prompt == winner} == {202}
    assert {status for prompt, status in answers if prompt != winner} <= {409, 422}
    refused = await client.post(SUBMIT, json={"prompt": "three"}, headers={"Idempotency-Key": key})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_conflict")


@pytest.mark.parametrize(
    ("announced_bytes", "half_close", "status", "tasks"),
    [(4000, False, None, 0), (4000, True, 400, 0), (None, True, 202, 1)],
)
async def test_the_end_of_a_connection_is_not_the_end_of_a_body(
    client: httpx.AsyncClient,
    gateway: GatewayProcess,
    kafka: KafkaCluster,
    *,
    announced_bytes: int | None,
    half_close: bool,
    status: int | None,
    tasks: int,
) -> None:
    mark = uuid.uuid4().hex
    body = b'{"prompt":"%s"}' % mark.encode()
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    length = len(body) if announced_bytes is None else announced_bytes
    writer.write(b"POST /v1/generations HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (length, body))
    await writer.drain()
    if half_close:
        writer.write_eof()
        assert int((await reader.read()).split(b" ")[1]) == status
    writer.close()
    # Its record follows any record of the connection.
    await client.post(SUBMIT, json={"prompt": "after"})
    records = await read_topic(kafka.bootstrap_servers, gateway.settings.topics.tasks)
    assert sum(mark.encode() in (record.value or b"") for record in records) == tasks


@pytest.mark.parametrize(
    ("content", "headers", "expected"),
    [
        (b"{", {}, (400, "invalid_request", None)),
        (b'{"prompt":"a","stepz":1}', {}, (400, "unsupported_parameter", "stepz")),
        (b'{"prompt":"a"}', {"Idempotency-Key": "a b"}, (400, "invalid_request", "Idempotency-Key")),
        (b"x" * 70_000, {}, (413, "payload_too_large", None)),
        (b'{"prompt":"a"}', {"Content-Type": "text/plain"}, (415, "unsupported_media_type", "Content-Type")),
        (b"{}", {}, (422, "invalid_request", "prompt")),
        (b'{"prompt":"a","width":1000}', {}, (422, "invalid_size", "width")),
    ],
)
async def test_a_bad_request_is_refused_with_a_problem_document(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str], expected: tuple[int, str, str | None]
) -> None:
    status, code, named = expected
    answer = await client.post(SUBMIT, content=content, headers=headers | {"x-request-id": "mine-1"})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "mine-1"
    document = answer.json()
    assert (document["status"], document["correlation_id"], document["instance"]) == (
        status,
        "mine-1",
        "/v1/generations",
    )
    assert (document["error"]["code"], document["error"]["param"]) == (code, named)
    assert document["detail"] == document["error"]["message"] != ""


async def test_a_body_without_a_length_is_limited_as_well(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 10_000

    answer = await client.post(SUBMIT, content=endless())
    assert answer.status_code == 413


@pytest.mark.parametrize("encoding", ["gzip", "br", "gzip, identity"])
async def test_a_body_that_is_encoded_is_refused_by_name(client: httpx.AsyncClient, encoding: str) -> None:
    answer = await client.post(SUBMIT, content=b"x", headers={"Content-Encoding": encoding})
    assert (answer.status_code, answer.json()["error"]["param"]) == (415, "Content-Encoding")
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("name", ["Idempotency-Key", "Content-Type", "Content-Encoding"])
async def test_a_header_of_fluxpool_may_be_sent_once_only(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post(SUBMIT, content=b'{"prompt":"a"}', headers=[(name, "identity"), (name, "identity")])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
async def test_all_media_types_of_json_are_accepted(client: httpx.AsyncClient, content_type: str) -> None:
    answer = await client.post(SUBMIT, content=b'{"prompt":"a"}', headers={"Content-Type": content_type})
    assert answer.status_code == 202


async def test_other_methods_and_paths_are_answered_with_problem_documents(client: httpx.AsyncClient) -> None:
    refused = await client.patch(SUBMIT)
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, POST")
    missing = await client.get("v2/anything")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert missing.headers["x-request-id"] == missing.json()["correlation_id"]


async def test_the_openapi_document_describes_the_submission_route(client: httpx.AsyncClient) -> None:
    document = (await client.get("openapi.json")).json()
    operation = document["paths"]["/v1/generations"]["post"]
    refusals = {"400", "401", "403", "408", "409", "410", "413", "414", "415", "422", "429", "431", "503"}
    assert set(operation["responses"]) == {"202", *refusals}
    schema = document["components"]["schemas"]["GenerationRequest"]
    assert schema["required"] == ["prompt"]
    assert {"steps", "guidance", "priority", "metadata"} <= set(schema["properties"])
    text = json.dumps(document)
    names = set(document["components"]["schemas"])
    assert {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]} <= names


async def test_while_the_broker_is_paused_nothing_is_accepted_and_the_gateway_is_not_ready(
    kafka_factory: KafkaFactory, tmp_path: Path
) -> None:
    cluster = await kafka_factory()
    topics = await gateway_topics(cluster.bootstrap_servers)
    settings = gateway_settings(
        cluster.bootstrap_servers, tmp_path / "g", topics, produce_deadline_seconds=1.5 * PATIENCE
    )
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS) as client:
            await wait_ready(client)
            headers = {"Idempotency-Key": "paused"}
            cluster.brokers[0].pause()
            try:
                began = time.monotonic()
                refused = await client.post(SUBMIT, json={"prompt": "a cat"}, headers=headers)
                waited_seconds = time.monotonic() - began
                await wait_until(lambda: not_ready(client), deadline_seconds=15, what="an unready gateway")
                unready = await client.get("readyz")
                unknown = await client.get("v1/generations/never-accepted")
            finally:
                cluster.brokers[0].resume()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_unavailable")
            assert "Idempotency-Key" in refused.json()["detail"]
            assert waited_seconds < 4 * PATIENCE
            assert not unready.json()["parts"]["queue"]["ready"]
            assert unready.json()["parts"]["projection"]["ready"]
            # Not 404: another gateway may have accepted it.
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (503, "store_unavailable")
            assert "retry-after" in unknown.headers
            await wait_ready(client)
            again = await client.post(SUBMIT, json={"prompt": "a cat"}, headers=headers)
            assert again.status_code == 202
            records = await read_topic(cluster.bootstrap_servers, topics.tasks)
            assert {record.key for record in records} == {idempotent_request_id("default", "paused").encode()}
            assert len({record.value for record in records}) == 1


async def not_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("readyz")).status_code == 503


async def test_equal_puts_at_once_to_both_processes_are_one_record(
    gateway: GatewayProcess, client: httpx.AsyncClient, kafka: KafkaCluster
) -> None:
    request_id = str(uuid.uuid4())
    path = f"{SUBMIT}/{request_id}"
    # A connection of its own for each request: the kernel then spreads them over the processes.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS, limits=limits) as spread:
        answers = await asyncio.gather(*(spread.put(path, json={"prompt": "a fox"}) for _ in range(40)))
        assert sorted(answer.status_code for answer in answers) == [200] * 39 + [202]
        assert (await spread.put(path, json={"prompt": "a cat"})).status_code == 409
    records = await record_of(gateway.settings.topics, kafka.bootstrap_servers, request_id)
    assert [json.loads(record.value or b"")["prompt"] for record in records] == ["a fox"]
    assert (await told(lambda: client.get(path))).json()["request_id"] == request_id


async def test_a_batch_is_a_record_for_each_request_and_its_repeat_none(
    gateway: GatewayProcess, client: httpx.AsyncClient, kafka: KafkaCluster
) -> None:
    group = f"g-{uuid.uuid4()}"
    requests = [
        {"prompt": f"fox {number}", "group_id": group, "idempotency_key": f"{group}-{number}"} for number in range(256)
    ]
    answer = await client.post(f"{SUBMIT}/batch", json={"requests": requests})
    assert (answer.status_code, answer.json()["accepted"]) == (202, 256), answer.text
    again = await client.post(f"{SUBMIT}/batch", json={"requests": requests})
    assert again.json() == answer.json()
    counted = await told(lambda: client.get(f"v1/groups/{group}"))
    assert counted.json()["counts"]["queued"] == 256
    records = [
        json.loads(record.value or b"")
        for record in await read_topic(kafka.bootstrap_servers, gateway.settings.topics.tasks)
    ]
    written = {record["request_id"]: record["prompt"] for record in records if record.get("group_id") == group}
    assert len([record for record in records if record.get("group_id") == group]) == 256
    assert [written[item["request_id"]] for item in answer.json()["items"]] == [item["prompt"] for item in requests]
