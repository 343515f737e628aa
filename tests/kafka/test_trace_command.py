"""`fluxpool trace` on a real broker: the events of one task from all topics, in order of time."""

import json
import secrets
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_contract.kafka.retries import due_headers, retry_group, retry_headers
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.dead_letter import DeadLetter, Disposition
from fluxpool_contract.messages.headers import Envelope
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_contract.messages.resolution import Resolution, ResolutionAction
from fluxpool_contract.messages.result import GenerationResult, ResultStatus, TaskError
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_transport.kafka.clients import aiokafka_options
from kit.brokers.kafka import create_topics, produce, unique_name
from kit.commands.command import Ended, fluxpool

pytestmark = pytest.mark.kafka

Headers = list[tuple[str, bytes]]


@dataclass(slots=True)
class TraceBench:
    """The topics of one test, with records of another task around those it writes."""

    bootstrap_servers: str
    folder: Path
    topics: TopicNames
    group: str

    async def trace(self, *arguments: str) -> Ended:
        environment = {
            "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "FLUXPOOL_CONSUMER_GROUP": self.group,
            "FLUXPOOL_TOPICS_TASKS": self.topics.tasks,
            "FLUXPOOL_TOPICS_TASKS_VIP": self.topics.tasks_vip,
            "FLUXPOOL_TOPICS_RESULTS": self.topics.results,
            "FLUXPOOL_TOPICS_PROGRESS": self.topics.progress,
            "FLUXPOOL_TOPICS_RETRY": ",".join(self.topics.retry),
            "FLUXPOOL_TOPICS_CONTROL": self.topics.control,
            "FLUXPOOL_TOPICS_DEAD_LETTERS": self.topics.dead_letters,
        }
        return await fluxpool("trace", *arguments, folder=self.folder, environment=environment)

    async def put(
        self, topic: str, value: bytes | None, *, key: bytes | None = None, headers: Headers | None = None, at: int = 0
    ) -> tuple[int, int]:
        [place] = await produce(self.bootstrap_servers, topic, [(key, value)], partition=at, headers=headers or [])
        return place

    async def progress(self, kind: str, *, attempt: int, worker: str, step: int | None = None) -> None:
        event = ProgressEvent(
            request_id="r-1",
            type=kind,
            attempt=attempt,
            step=step,
            total_steps=None if step is None else 3,
            worker=worker,
            pool="standard",
            at=datetime.now(UTC),
        )
        await self.put(self.topics.progress, event.to_json(), key=b"r-1")

    async def result(self, status: ResultStatus, *, worker: str, epoch: int = 0) -> None:
        failed = TaskError(code=ErrorCode.OUT_OF_MEMORY, error_class=ErrorClass.TRANSIENT, message="too large")
        result = GenerationResult(
            request_id="r-1",
            image_url=None if status is ResultStatus.FAILED else "file:///0.png",
            status=status,
            error=failed if status is ResultStatus.FAILED else None,
            attempt=2,
            worker=worker,
            timings={"queue_ms": 12.5},
        )
        headers = [("fluxpool-epoch", str(epoch).encode())] if epoch else []
        await self.put(self.topics.results, result.to_json(), key=b"r-1", headers=headers)

    async def commit(self, group: str, topic: str, offset: int, *, partition: int = 0, metadata: str = "") -> None:
        connection = KafkaConnection(bootstrap_servers=(self.bootstrap_servers,))
        consumer = AIOKafkaConsumer(
            group_id=group, enable_auto_commit=False, **aiokafka_options(connection, client_id="test")
        )
        await consumer.start()
        try:
            consumer.assign([TopicPartition(topic, partition)])
            await consumer.commit({TopicPartition(topic, partition): OffsetAndMetadata(offset, metadata)})
        finally:
            await consumer.stop()


@pytest_asyncio.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> TraceBench:
    prefix = unique_name("trace")
    topics = TopicNames(
        tasks=f"{prefix}-tasks",
        tasks_vip=f"{prefix}-vip",
        results=f"{prefix}-results",
        progress=f"{prefix}-progress",
        retry=(f"{prefix}-retry-15s", f"{prefix}-retry-2m"),
        control=f"{prefix}-control",
        dead_letters=f"{prefix}-dlq",
    )
    names = dict.fromkeys([topics.tasks_vip, topics.results, topics.progress, topics.control, topics.dead_letters], 1)
    await create_topics(bootstrap_servers, {**names, topics.tasks: 3, **dict.fromkeys(topics.retry, 1)})
    found = TraceBench(bootstrap_servers, tmp_path, topics, group=f"{prefix}-group")
    await found.put(topics.tasks, task("r-2", prompt="of r-1"), at=1)
    return found


def task(request_id: str, *, prompt: str = "a fox") -> bytes:
    return json.dumps({"request_id": request_id, "prompt": prompt}).encode()


def made_by_gateway(seconds: float) -> str:
    """A UUIDv7 (RFC 9562): milliseconds since 1970 first."""
    return str(uuid.UUID(int=int(seconds * 1000) << 80 | 7 << 76 | 2 << 62 | secrets.randbits(60)))


def went_to_retry(topic: str, partition: int, offset: int) -> Headers:
    now = datetime.now(UTC)
    return retry_headers(
        [],
        Envelope(),
        attempt=2,
        crashes=0,
        first_seen=now,
        not_before=now + timedelta(seconds=15),
        origin=(topic, partition, offset),
        error=(ErrorClass.TRANSIENT, ErrorCode.OUT_OF_MEMORY),
    )


async def test_a_life_through_retry_dead_letter_and_replay_is_one_timeline(bench: TraceBench) -> None:
    topics = bench.topics
    partition, offset = await bench.put(topics.tasks, task("r-1"), at=1)
    await bench.progress("started", attempt=1, worker="worker-1")
    retry = went_to_retry(topics.tasks, partition, offset)
    await bench.put(topics.retry[0], task("r-1"), headers=retry)
    await bench.put(topics.tasks, task("r-1"), headers=due_headers(retry), at=2)
    await bench.progress("started", attempt=2, worker="worker-2")
    for step in (1, 2, 3):
        await bench.progress("step", attempt=2, worker="worker-2", step=step)
    dead_letter = DeadLetter(
        origin_topic=topics.tasks,
        origin_partition=2,
        origin_offset=0,
        origin_timestamp_ms=-1,
        disposition=Disposition.EXHAUSTED,
        error_class=ErrorClass.TRANSIENT,
        error_code=ErrorCode.OUT_OF_MEMORY,
        message="too large",
        attempts=2,
        worker="worker-2",
        failed_at=datetime.now(UTC),
        request_id="r-1",
    )
    await bench.put(topics.dead_letters, task("r-1"), headers=dead_letter.to_headers([]))
    await bench.result(ResultStatus.FAILED, worker="worker-2")
    replay: Headers = [("fluxpool-epoch", b"1"), ("fluxpool-replay-of", f"{topics.dead_letters}/0/0".encode())]
    await bench.put(topics.tasks, task("r-1"), headers=replay, at=0)
    note = Resolution(
        partition=0,
        offset=0,
        action=ResolutionAction.REPLAYED,
        at=datetime.now(UTC),
        by="ops",
        request_id="r-1",
        epoch=1,
    )
    await bench.put(topics.dead_letters, note.to_json(), headers=note.to_headers(source="/test"))
    await bench.result(ResultStatus.SUCCESS, worker="worker-3", epoch=1)

    traced = (await bench.trace("r-1", "-o", "json")).document

    assert traced["state"] == "success"
    assert [(event["event"], event["topic"]) for event in traced["events"]] == [
        ("sent", topics.tasks),
        ("started", topics.progress),
        ("retry", topics.retry[0]),
        ("back", topics.tasks),
        ("started", topics.progress),
        *[("step", topics.progress)] * 3,
        ("dead-letter", topics.dead_letters),
        ("result", topics.results),
        ("replayed", topics.tasks),
        ("resolved", topics.dead_letters),
        ("result", topics.results),
    ]
    sent, first_start, went, back = traced["events"][:4]
    assert (sent["partition"], sent["offset"], sent["attempt"]) == (1, 1, 1)
    assert first_start["worker"] == "worker-1"
    assert went["attempt"] == 2
    assert f"after out-of-memory in {topics.tasks} 1/1, not before" in went["detail"]
    assert (back["partition"], back["offset"], back["attempt"]) == (2, 0, 2)
    failed, replayed, resolved, success = traced["events"][-4:]
    assert [event["epoch"] for event in (failed, replayed, resolved, success)] == [0, 1, 1, 1]
    assert (failed["status"], success["status"], success["worker"]) == ("failed", "success", "worker-3")
    assert [event["at"] for event in traced["events"]] == sorted(event["at"] for event in traced["events"])

    text = (await bench.trace("r-1")).output
    assert "1-3 of 3" in text
    assert f"replay 1, of {topics.dead_letters}/0/0" in text
    assert "r-1: success; 13 records over" in text
    assert "by worker-1, worker-2, worker-3" in text
    assert "of r-1" not in text


async def test_a_task_in_flight_names_its_worker_and_a_pending_one_the_tasks_before_it(bench: TraceBench) -> None:
    topics = bench.topics
    began = int(time.time())
    _, offset = await bench.put(topics.tasks, task("r-1"), at=1)
    queued = (await bench.trace("r-1", "--json")).document
    ledger = encode_ledger({offset: LedgerEntry(task="r-1", worker="worker-9", started_at=began, crashes=1)})
    await bench.commit(bench.group, topics.tasks, offset, partition=1, metadata=ledger)
    running = (await bench.trace("r-1", "--json")).document
    text = await bench.trace("r-1")
    await bench.commit(bench.group, topics.tasks, offset + 1, partition=1)
    committed = (await bench.trace("r-1", "--json")).document

    assert queued["state"] == "queued"
    [record] = queued["records"]
    assert (record["state"], record["ahead_records"], record["group"]) == ("pending", 1, bench.group)
    assert running["state"] == "running"
    [record] = running["records"]
    assert (record["state"], record["worker"], record["crashes"]) == ("in-flight", "worker-9", 1)
    assert f"{topics.tasks} 1/{offset} is in flight on worker-9 since" in text.output
    assert (committed["state"], committed["records"][0]["state"]) == ("unknown", "done")


async def test_a_task_on_a_retry_topic_waits_for_the_pools_relay(bench: TraceBench) -> None:
    topics = bench.topics
    _, offset = await bench.put(topics.tasks, task("r-1"), at=1)
    await bench.commit(bench.group, topics.tasks, offset + 1, partition=1)
    await bench.put(topics.retry[1], task("r-1"), headers=went_to_retry(topics.tasks, 1, offset))

    traced = (await bench.trace("r-1", "--json")).document
    await bench.commit(retry_group(f"{bench.group}-vip"), topics.retry[1], 1)
    relayed = (await bench.trace("r-1", "--json")).document

    assert traced["state"] == "waiting-for-retry"
    waiting = traced["records"][-1]
    assert (waiting["state"], waiting["group"]) == ("pending", retry_group(bench.group))
    assert (relayed["records"][-1]["group"], relayed["records"][-1]["state"]) == (
        retry_group(f"{bench.group}-vip"),
        "done",
    )


async def test_a_cancel_request_and_unreadable_records_are_shown(bench: TraceBench) -> None:
    topics = bench.topics
    await bench.put(topics.tasks, b'{"broken', key=b"r-1")
    await bench.put(topics.results, b"not a result", key=b"r-1")
    command = CancelCommand(request_id="r-1", requested_by="ops", reason="a typo", at=datetime.now(UTC))
    await bench.put(topics.control, command.model_dump_json().encode(), key=b"r-1")
    await bench.put(topics.control, None, key=b"r-1")

    events = (await bench.trace("r-1", "--json")).document["events"]

    assert [(event["event"], event.get("detail")) for event in events] == [
        ("sent", None),
        ("cancel", "requested by ops a typo"),
        ("cancel", "withdrawn"),
    ]


async def test_a_discard_and_a_replay_under_a_new_id_belong_to_the_old_one_too(bench: TraceBench) -> None:
    dead_letters = bench.topics.dead_letters
    dead_letter = DeadLetter(
        origin_topic=bench.topics.tasks,
        origin_partition=0,
        origin_offset=0,
        origin_timestamp_ms=-1,
        disposition=Disposition.INVALID,
        error_class=ErrorClass.INVALID,
        error_code=ErrorCode.ID_CONFLICT,
        message="in use",
        attempts=1,
        failed_at=datetime.now(UTC),
        request_id="old",
    )
    await bench.put(dead_letters, task("old"), headers=dead_letter.to_headers([]))
    common = {"partition": 0, "offset": 0, "at": datetime.now(UTC)}
    fresh = Resolution(**common, action=ResolutionAction.REPLAYED, request_id="fresh", epoch=1)
    await bench.put(dead_letters, fresh.to_json(), headers=fresh.to_headers(source="/test"))

    old = (await bench.trace("old", "--json")).document
    new = (await bench.trace("fresh", "--json")).document

    assert [event["event"] for event in old["events"]] == ["dead-letter", "resolved"]
    assert old["events"][1]["detail"] == f"replayed {dead_letters} 0/0 as fresh"
    assert [event["event"] for event in new["events"]] == ["resolved"]


async def test_nothing_found_ends_with_1_and_missing_topics_are_named(bench: TraceBench) -> None:
    nothing = await bench.trace("r-unknown")
    bench.topics = bench.topics.model_copy(update={"progress": "no-such-progress"})
    without = await bench.trace("r-2", "--json")

    assert (nothing.code, nothing.output) == (1, "")
    assert "nothing about r-unknown in all that the topics hold" in nothing.complaints
    assert without.code == 0
    assert "topic no-such-progress does not exist" in without.complaints
    assert without.document["missing_topics"] == ["no-such-progress"]
    bench.topics = TopicNames(
        **{role: ("no-1",) if role == "retry" else f"no-{role}" for role in TopicNames.model_fields}
    )
    none = await bench.trace("r-2")
    assert (none.code, none.output) == (2, "")
    assert "none of the topics no-tasks" in none.complaints


async def test_an_id_of_the_gateway_limits_what_is_read(bench: TraceBench) -> None:
    fresh, later = (made_by_gateway(time.time() + seconds) for seconds in (0, 86_400))
    await bench.put(bench.topics.tasks, task(fresh))
    await bench.put(bench.topics.tasks, task(later))

    assert (await bench.trace(fresh)).code == 0
    unread = await bench.trace(later)
    assert unread.code == 1
    assert "in what was written since" in unread.complaints
    assert (await bench.trace(later, "--since", "1h")).code == 0
