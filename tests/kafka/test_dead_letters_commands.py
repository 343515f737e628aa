"""`fluxpool dlq` on a real broker: listings, replays with their resolutions, and refusals."""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from typer.testing import CliRunner

from fluxpool_cli.dlq.commands import app
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.messages.dead_letter import DEAD_LETTER_PREFIX, DeadLetter, Disposition
from fluxpool_contract.messages.resolution import Resolution, is_resolution
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_gateway.dead_letters.views import ExportedDeadLetterView
from fluxpool_transport.dlq.prepare import ReplayChoices
from fluxpool_transport.dlq.reading import DeadLetterFilter, read_dead_letters
from fluxpool_transport.dlq.replay import DeadLetterReplayer
from kit.brokers.kafka import TopicRecord, create_topics, produce, read_topic, unique_name
from kit.commands.command import Ended, fluxpool, fluxpool_on_terminal

pytestmark = pytest.mark.kafka

FAILED_AT = datetime(2026, 4, 5, 10, tzinfo=UTC)


@dataclass(slots=True)
class DeadLetterBench:
    """A task topic and a dead-letter topic of one test, and the commands on them."""

    bootstrap_servers: str
    folder: Path
    tasks: str
    dead_letters: str
    offsets: "itertools.count[int]" = field(default_factory=itertools.count)

    @property
    def connection(self) -> KafkaConnection:
        return KafkaConnection(bootstrap_servers=(self.bootstrap_servers,))

    def environment(self, fault: str = "") -> dict[str, str]:
        return {
            "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "FLUXPOOL_TOPICS_TASKS": self.tasks,
            "FLUXPOOL_TOPICS_DEAD_LETTERS": self.dead_letters,
            "FLUXPOOL_FAULT": fault,
        }

    async def run(self, *arguments: str, fault: str = "") -> Ended:
        return await fluxpool("dlq", *arguments, folder=self.folder, environment=self.environment(fault))

    async def run_on_terminal(self, *arguments: str) -> tuple[str, Ended]:
        """Standard error as a terminal shows it, and the exit code."""
        environment = {**self.environment(), "TERM": "xterm"}
        return await fluxpool_on_terminal("dlq", *arguments, folder=self.folder, environment=environment)

    async def put(
        self,
        value: bytes | None,
        *,
        key: bytes | None = None,
        original: Sequence[tuple[str, bytes]] = (),
        partition: int = 0,
        **changes: Any,
    ) -> str:
        """Write a dead letter as a worker does; return its partition and offset."""
        fields: dict[str, Any] = {
            "origin_topic": self.tasks,
            "origin_partition": 1,
            "origin_offset": next(self.offsets),
            "origin_timestamp_ms": 1_775_000_000_000,
            "disposition": Disposition.EXHAUSTED,
            "error_class": ErrorClass.TRANSIENT,
            "error_code": ErrorCode.GENERATION_FAILED,
            "message": "the pipeline raised RuntimeError",
            "stack": "Traceback\n  in denoise",
            "attempts": 3,
            "worker": "worker-7",
            "pool": "standard",
            "failed_at": FAILED_AT,
        }
        dead_letter = DeadLetter(**{**fields, **changes})
        [(at, offset)] = await produce(
            self.bootstrap_servers,
            self.dead_letters,
            [(key, value)],
            partition=partition,
            headers=dead_letter.to_headers(list(original)),
        )
        return f"{at}/{offset}"

    async def sent(self) -> list[TopicRecord]:
        return await read_topic(self.bootstrap_servers, self.tasks)

    async def notes(self) -> list[Resolution]:
        records = await read_topic(self.bootstrap_servers, self.dead_letters)
        return [Resolution.model_validate_json(item.value or b"") for item in records if is_resolution(item.headers)]

    async def states(self) -> dict[str, str]:
        listed = await self.run("list", "--all", "-o", "json")
        return {found["record"]: found["state"] for found in listed.document["dead_letters"]}


@pytest_asyncio.fixture
async def bench(bootstrap_servers: str, tmp_path: Path) -> DeadLetterBench:
    prefix = unique_name("dead")
    found = DeadLetterBench(bootstrap_servers, tmp_path, tasks=f"{prefix}-tasks", dead_letters=f"{prefix}-dlq")
    await create_topics(bootstrap_servers, {found.tasks: 3, found.dead_letters: 2})
    return found


def task(request_id: str, **fields: Any) -> bytes:
    return json.dumps({"request_id": request_id, "prompt": "a fox", **fields}, indent=1).encode()


# Listings


async def test_the_summary_counts_by_class_code_and_pool(bench: DeadLetterBench) -> None:
    for request_id in ("a", "b"):
        await bench.put(task(request_id), request_id=request_id)
    bad = await bench.put(
        b"not json", partition=1, error_class=ErrorClass.INVALID, error_code=ErrorCode.UNDECODABLE, pool="vip"
    )
    await produce(bench.bootstrap_servers, bench.dead_letters, [(None, b"hello")], partition=1)
    assert (await bench.run("discard", bad, "--reason", "a test", "--yes")).code == 0

    causes = (await bench.run("summary", "-o", "json")).document["causes"]

    counted = [
        tuple(cause[name] for name in ("error_class", "error_code", "pool", "open", "resolved")) for cause in causes
    ]
    assert counted == [
        ("transient", "generation-failed", "standard", 2, 0),
        ("foreign", "-", None, 1, 0),
        ("invalid", "undecodable", "vip", 0, 1),
    ]
    assert causes[0]["example"] == "0/1"
    table = (await bench.run("summary")).output.splitlines()
    assert table[1].split()[:5] == ["transient", "generation-failed", "standard", "2", "0"]


async def test_a_dead_letter_that_a_crash_wrote_twice_is_one(bench: DeadLetterBench) -> None:
    place = await bench.put(task("twice"), request_id="twice", origin_offset=5)
    copy = await bench.put(
        task("twice"), request_id="twice", origin_offset=5, failed_at=FAILED_AT + timedelta(seconds=9)
    )

    [found] = (await bench.run("list", "-o", "json")).document["dead_letters"]

    assert (found["record"], found["copies"]) == (place, [copy])
    assert (await bench.run("replay", copy, "--yes")).code == 0
    assert len(await bench.sent()) == 1
    assert await bench.states() == {place: "replayed"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["old", "bad", "new"]),
        (("--class", "invalid"), ["bad"]),
        (("--code", "generation-failed", "--pool", "standard"), ["old"]),
        (("--code", "generation-failed", "--code", "undecodable"), ["old", "bad", "new"]),
        (("--pool", "none-such"), []),
        (("--request-id", "new"), ["new"]),
        (("--since", "2026-04-05T10:30:00Z"), ["bad", "new"]),
        (("--since", "2026-04-05T12:30:00+02:00", "--until", "2026-04-05T11:30:00Z"), ["bad"]),
        (("--limit", "1"), ["new"]),
    ],
)
async def test_the_list_is_filtered(
    listed_bench: DeadLetterBench, options: tuple[str, ...], expected: list[str]
) -> None:
    # In this process: a program start for each case would take most of the time.
    arguments = ["list", *options, "-o", "json"]
    ended = await asyncio.to_thread(CliRunner().invoke, app, arguments, env=listed_bench.environment())
    assert [found["request_id"] for found in json.loads(ended.stdout)["dead_letters"]] == expected


@pytest_asyncio.fixture
async def listed_bench(bench: DeadLetterBench) -> DeadLetterBench:
    hour = timedelta(hours=1)
    await bench.put(task("new"), request_id="new", failed_at=FAILED_AT + 2 * hour, pool="vip")
    await bench.put(task("old"), request_id="old")
    await bench.put(
        task("bad"),
        partition=1,
        request_id="bad",
        failed_at=FAILED_AT + hour,
        error_class=ErrorClass.INVALID,
        error_code=ErrorCode.UNDECODABLE,
    )
    return bench


async def test_show_writes_all_of_a_dead_letter_and_the_command_that_replays_it(bench: DeadLetterBench) -> None:
    place = await bench.put(
        b"\xff\x00bytes", key=b"k", original=[("traceparent", b"00-1"), ("fluxpool-tenant", b"acme")], request_id="r-1"
    )

    shown = (await bench.run("show", place, "--topic", bench.dead_letters, "--json")).document
    text = await bench.run("show", "r-1")

    assert (shown["value"], shown["value_hex"], shown["key"]) == (None, b"\xff\x00bytes".hex(), "k")
    assert shown["headers"] == [["traceparent", "00-1"], ["fluxpool-tenant", "acme"]]
    assert shown["dead_letter"]["stack"] == "Traceback\n  in denoise"
    assert shown["replay_command"] == f"fluxpool dlq replay {place} --topic {bench.dead_letters} --yes"
    assert "the pipeline raised RuntimeError" in text.output
    assert f"replay it with: fluxpool dlq replay {place} --yes" in text.output
    missing = await bench.run("show", "1/99")
    assert (missing.code, missing.output) == (1, "")
    assert "holds no dead letter 1/99" in missing.complaints


# Replay


async def test_a_dry_run_shows_what_would_be_sent_and_writes_nothing(bench: DeadLetterBench) -> None:
    good = await bench.put(task("good"), request_id="good")
    bad = await bench.put(task("bad", width=100), request_id="bad")

    dry = await bench.run("replay", "-o", "json")

    assert dry.code == 0
    assert dry.document["dry_run"] is True
    [planned] = dry.document["to_send"]
    assert planned == {"record": good, "request_id": "good", "epoch": 1, "topic": bench.tasks}
    [refused] = dry.document["refused"]
    assert (refused["record"], refused["problems"][0]["field"]) == (bad, "width")
    assert "96 or 112" in refused["problems"][0]["message"]
    text = await bench.run("replay")
    assert f"1 to {bench.tasks} would be sent, 1 refused" in text.output
    assert "add --yes to send" in text.complaints
    assert await bench.sent() == []
    assert await bench.notes() == []


async def test_a_replay_sends_the_original_bytes_and_headers_once_and_writes_a_resolution(
    bench: DeadLetterBench,
) -> None:
    body = task("r-1", unknown_field=[1, 2])
    original = [
        ("traceparent", b"00-abc"),
        ("x-mine", b"\xff\xfe"),
        ("fluxpool-tenant", b"acme"),
        ("fluxpool-attempt", b"3"),
        ("fluxpool-error-code", b"generation-failed"),
    ]
    place = await bench.put(body, key=b"my-key", original=original, request_id="r-1", partition=1)

    first = await bench.run("replay", "--yes", "--json")
    second = await bench.run("replay", "--yes")

    [record] = await bench.sent()
    assert (record.key, record.value) == (b"my-key", body)
    assert record.headers[:3] == (("traceparent", b"00-abc"), ("x-mine", b"\xff\xfe"), ("fluxpool-tenant", b"acme"))
    assert dict(record.headers[3:]) == {
        "fluxpool-epoch": b"1",
        "fluxpool-replay-of": f"{bench.dead_letters}/{place}".encode(),
        "fluxpool-first-seen": b"2026-03-31T23:33:20.000Z",
    }
    assert not any(name.startswith(DEAD_LETTER_PREFIX) for name, _ in record.headers)
    [sent] = first.document["sent"]
    assert (sent["record"], sent["partition"], sent["offset"]) == (place, record.partition, record.offset)
    [resolution] = await bench.notes()
    assert (resolution.action, resolution.partition, resolution.offset, resolution.epoch) == ("replayed", 1, 0, 1)
    assert (resolution.replayed_topic, resolution.replayed_partition) == (bench.tasks, record.partition)
    assert (second.code, second.output.strip()) == (0, "nothing sent, 0 refused")
    assert await bench.states() == {place: "replayed"}


async def test_an_interrupted_replay_continues_and_repeats_at_most_one_record_byte_for_byte(
    bench: DeadLetterBench,
) -> None:
    for number in range(4):
        await bench.put(task(f"r-{number}"), request_id=f"r-{number}")

    killed = await bench.run("replay", "--yes", "--rate", "1000", fault="replay-after-send:kill:2")
    assert killed.code == -9
    assert sorted((await bench.states()).values()) == ["open", "open", "open", "replayed"]
    resumed = await bench.run("replay", "--yes", "--rate", "1000", "--json")

    assert [item["request_id"] for item in resumed.document["sent"]] == ["r-1", "r-2", "r-3"]
    sent = [(record.key, record.value, record.headers) for record in await bench.sent()]
    assert len(sent) == 5
    assert len(set(sent)) == 4
    assert set((await bench.states()).values()) == {"replayed"}


async def test_a_task_that_was_replayed_often_enough_is_refused_until_forced(bench: DeadLetterBench) -> None:
    await bench.put(task("loop"), original=[("fluxpool-epoch", b"3")], request_id="loop")

    refused = await bench.run("replay", "--yes", "--json")
    assert refused.code == 1
    [problem] = refused.document["refused"][0]["problems"]
    assert "was replayed 3 times already" in problem["message"]
    assert await bench.sent() == []
    assert (await bench.run("replay", "--yes", "--max-replays", "3")).code == 1
    forced = await bench.run("replay", "--yes", "--force", "--json")

    assert (forced.code, forced.document["sent"][0]["epoch"]) == (0, 4)
    [record] = await bench.sent()
    assert dict(record.headers)["fluxpool-epoch"] == b"4"


async def test_a_patch_corrects_the_task_and_is_in_the_resolution(bench: DeadLetterBench) -> None:
    place = await bench.put(task("wide", width=1000, typo=1), request_id="wide", error_class=ErrorClass.INVALID)

    patched = await bench.run("replay", place, "--patch", '{"width": 1008, "typo": null}', "--yes")

    assert patched.code == 0, patched.complaints
    [record] = await bench.sent()
    assert json.loads(record.value or b"") == {"request_id": "wide", "prompt": "a fox", "width": 1008}
    [resolution] = await bench.notes()
    assert resolution.patch == {"width": 1008, "typo": None}
    assert (await bench.run("show", place, "--json")).document["value"] == task("wide", width=1000, typo=1).decode()


async def test_a_conflicting_id_is_only_replayed_under_a_new_one(bench: DeadLetterBench) -> None:
    dead_letter: dict[str, Any] = {
        "request_id": "used",
        "error_class": ErrorClass.INVALID,
        "error_code": ErrorCode.ID_CONFLICT,
    }
    place = await bench.put(task("used"), **dead_letter)
    await bench.put(task("used", steps=3), **dead_letter)

    as_it_is = await bench.run("replay", place, "--yes")
    both = await bench.run("replay", "--patch", '{"request_id": "fresh"}', "--yes")
    one = await bench.run("replay", place, "--patch", '{"request_id": "fresh"}', "--yes")

    assert as_it_is.code == 1
    assert "patch in a new request_id" in as_it_is.complaints
    assert both.code == 2
    assert "one new id cannot serve 2 tasks" in both.complaints
    assert one.code == 0, one.complaints
    [record] = await bench.sent()
    assert record.key == b"fresh"


@pytest.mark.parametrize(
    ("dead_letter", "options", "words"),
    [
        ({"original": [("fluxpool-deadline", b"2026-01-01T00:00:00Z")]}, (), "fluxpool-deadline: passed at 2026-01-01"),
        ({"original": [("fluxpool-attempt", b"x")]}, (), "fluxpool-attempt: must be a whole number"),
        ({"origin_topic": "gone-tasks"}, (), "gone-tasks does not exist any more"),
        ({}, ("--to-topic", "nowhere-tasks"), "nowhere-tasks does not exist any more"),
        ({"object": "_dead-letters/t/0/1-2"}, (), "is in the object store under _dead-letters/t/0/1-2"),
    ],
)
async def test_a_replay_that_must_fail_again_is_refused_with_the_reason(
    bench: DeadLetterBench, dead_letter: dict[str, Any], options: tuple[str, ...], words: str
) -> None:
    value = None if "object" in dead_letter else task("r-1")
    await bench.put(value, key=b"r-1", request_id="r-1", **dead_letter)

    ended = await bench.run("replay", "--yes", *options)

    assert ended.code == 1
    assert words in ended.complaints
    assert await bench.sent() == []
    assert await bench.notes() == []


async def test_a_dropped_header_and_another_topic_are_applied(bench: DeadLetterBench) -> None:
    other = f"{bench.tasks}-other"
    await create_topics(bench.bootstrap_servers, {other: 1})
    await bench.put(task("late"), original=[("fluxpool-deadline", b"2026-01-01T00:00:00Z")], request_id="late")

    ended = await bench.run("replay", "--drop-header", "fluxpool-deadline", "--to-topic", other, "--yes")

    assert ended.code == 0, ended.complaints
    [record] = await read_topic(bench.bootstrap_servers, other)
    assert "fluxpool-deadline" not in dict(record.headers)
    into_itself = await bench.run("replay", "--to-topic", bench.dead_letters)
    assert "0 refused" in into_itself.output
    await bench.put(task("again"), request_id="again")
    into_itself = await bench.run("replay", "--to-topic", bench.dead_letters)
    assert "holds dead letters; name a task topic" in into_itself.complaints


async def test_a_replay_has_the_given_rate_and_spreads_over_partitions(bench: DeadLetterBench) -> None:
    for number in range(4):
        await bench.put(task(f"r-{number}"), request_id=f"r-{number}")
    entries = DeadLetterFilter().select(await read_dead_letters(bench.connection, bench.dead_letters))

    async with DeadLetterReplayer(bench.connection, bench.dead_letters) as replayer:
        began = time.monotonic()
        sent = [outcome async for outcome in replayer.replay(entries, ReplayChoices(), per_second=5)]
        seconds = time.monotonic() - began

    assert len(sent) == 4
    assert seconds >= 0.6
    assert {record.partition for record in await bench.sent()} == {0, 1, 2}


async def test_two_concurrent_replays_send_equal_records(bench: DeadLetterBench) -> None:
    for number in range(5):
        await bench.put(task(f"r-{number}"), request_id=f"r-{number}")

    ended = await asyncio.gather(bench.run("replay", "--yes"), bench.run("replay", "--yes"))

    assert [item.code for item in ended] == [0, 0]
    assert len({(record.value, record.headers) for record in await bench.sent()}) == 5
    assert set((await bench.states()).values()) == {"replayed"}


# Discard


async def test_a_discarded_dead_letter_stays_on_the_topic_and_is_never_replayed(bench: DeadLetterBench) -> None:
    bad = await bench.put(b"not json", error_class=ErrorClass.INVALID, error_code=ErrorCode.UNDECODABLE)
    good = await bench.put(task("good"), request_id="good")

    dry = await bench.run("discard", "--class", "invalid", "--reason", "a test client")
    assert (dry.output.strip(), await bench.notes()) == ("1 dead letter would be discarded", [])
    done = await bench.run("discard", "--class", "invalid", "--reason", "a test client", "--yes", "--json")

    assert done.document["dead_letters"] == [bad]
    [resolution] = await bench.notes()
    assert (resolution.action, resolution.reason) == ("discarded", "a test client")
    assert await bench.states() == {bad: "discarded", good: "open"}
    replayed = await bench.run("replay", "--yes", "--json")
    assert [item["record"] for item in replayed.document["sent"]] == [good]


async def test_no_command_has_the_dead_letter_of_a_deleted_task(bench: DeadLetterBench) -> None:
    gone = await bench.put(task("gone"), request_id="gone", partition=1)
    await bench.put(task("kept"), request_id="kept")
    async with DeadLetterReplayer(bench.connection, bench.dead_letters, by="acme") as replayer:
        entries = await read_dead_letters(bench.connection, bench.dead_letters)
        deleted = [entry for entry in entries if str(entry.ref) == gone]
        await replayer.mark_deleted(deleted)
        async for _ in replayer.discard(deleted, reason="too late"):
            pass
    found = await asyncio.gather(
        bench.run("list", "--all", "-o", "name"),
        bench.run("replay", gone, "--yes", "--json"),
        bench.run("show", "gone"),
    )
    assert [ended.code for ended in found] == [0, 0, 1]
    assert found[0].output.split() == ["0/0"]
    assert found[1].document["sent"] == []
    assert await bench.sent() == []


# Export


async def test_an_export_from_kafka_has_every_byte_and_the_fields_of_a_gateway(bench: DeadLetterBench) -> None:
    text = task("text", prompt="zwei F\u00fcchse\u2028=1+1")
    await bench.put(text, key=b"text", request_id="text", original=[("x", b"\xff"), ("x", b"")], partition=1)
    await bench.put(b"\x00\xff", request_id=None, error_code=ErrorCode.UNDECODABLE)
    file = bench.folder / "dead.jsonl"
    assert (await bench.run("export", str(file), "--records")).code == 0
    lines = map(json.loads, file.read_text().splitlines())
    undecodable, exported = sorted(lines, key=lambda line: str(line["id"]))
    assert base64.b64decode(undecodable["record"]["value_base64"]) == b"\x00\xff"
    assert (exported["record"]["key"], exported["record"]["value"].encode()) == ("text", text)
    assert exported["record"]["headers"] == [
        {"name": "x", "value": None, "value_base64": "/w=="},
        {"name": "x", "value": "", "value_base64": None},
    ]
    assert exported.keys() == ExportedDeadLetterView.model_fields.keys()
    assert exported["dead_letter"]["error_code"] == "generation-failed"
    assert (await bench.run("export", "dead.csv", "--records", "--code", "undecodable")).code == 0
    assert (bench.folder / "dead.csv").read_text().splitlines()[1].endswith(",,,[],,AP8=")


# Exit codes


async def test_a_terminal_shows_a_bar_and_standard_output_stays_a_document(bench: DeadLetterBench) -> None:
    await bench.put(task("good"), request_id="good")
    await bench.put(task("bad", width=100), request_id="bad")

    shown, ended = await bench.run_on_terminal("replay", "--yes", "--json")

    assert ended.code == 1
    assert "sending" in shown
    assert "2/2" in shown
    assert "not sent: 0/1 bad: width: 100 is not a multiple of 16" in shown
    assert [item["request_id"] for item in ended.document["sent"]] == ["good"]


async def test_a_missing_topic_ends_with_2_and_an_empty_one_with_0(bench: DeadLetterBench) -> None:
    missing = await bench.run("list", "--topic", "no-such-dlq")
    assert (missing.code, missing.output) == (2, "")
    assert "topic no-such-dlq does not exist" in missing.complaints
    empty = await bench.run("list")
    assert (empty.code, empty.output) == (0, "")
    assert f"no matching dead letters on {bench.dead_letters}" in empty.complaints
