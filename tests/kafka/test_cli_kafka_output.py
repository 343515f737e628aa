"""The output of commands on Kafka, at 80 columns and in each form for programs, with hostile texts in records."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.dead_letter import DeadLetter, Disposition
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_contract.messages.result import GenerationResult, ResultStatus, TaskError
from fluxpool_contract.problems import ErrorClass, ErrorCode
from kit.brokers.kafka import create_topics, produce, unique_name
from kit.commands.every_form import WIDTH, Case, assert_every_form, assert_harmless
from kit.gateways.tainted_gateway import TAINT
from kit.programs.warm_start import start_program
from kit.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

CASES: Final = (
    Case("watch --once", "failed 1, success 1", "standard|vip", prose=True),
    Case("trace bad", "bad: failed; 4 records over", "bad"),
    Case("trace good", "good: success; 2 records over", "good"),
    Case("dlq list", "out-of-memory", "0/0"),
    Case("dlq summary", "EXAMPLE", "0/0"),
    Case("dlq show 0/0", "replay it with: fluxpool dlq", "0/0", prose=True),
    Case("dlq replay", "this was a dry run", "0/0", prose=True),
    Case("dlq discard 0/0 --reason old", "would be discarded", "0/0"),
)


@dataclass(frozen=True, slots=True)
class Records:
    """Topics of their own, with the lives of two tasks."""

    bootstrap_servers: str
    topics: TopicNames

    async def put(self, topic: str, key: str, value: bytes, *, headers: list[tuple[str, bytes]] | None = None) -> None:
        await produce(self.bootstrap_servers, topic, [(key.encode(), value)], partition=0, headers=headers or [])

    async def write(self) -> None:
        topics, now = self.topics, datetime.now(UTC)
        for request_id in ("bad", "good"):
            task = {"request_id": request_id, "prompt": f"a fox{TAINT}"}
            await self.put(topics.tasks, request_id, json.dumps(task).encode())
        started = ProgressEvent(
            request_id="bad", type="started", attempt=1, worker="w-1", pool="standard", at=now, step=None,
            total_steps=None,
        )  # fmt: skip
        await self.put(topics.progress, "bad", started.to_json())
        message = f"device 0 has no memory left for 8 images of 2048x2048{TAINT}"
        letter = DeadLetter(
            origin_topic=topics.tasks,
            origin_partition=0,
            origin_offset=0,
            origin_timestamp_ms=-1,
            disposition=Disposition.EXHAUSTED,
            error_class=ErrorClass.TRANSIENT,
            error_code=ErrorCode.OUT_OF_MEMORY,
            message=message,
            stack=TAINT,
            attempts=1,
            worker="w-1",
            failed_at=now,
            request_id="bad",
        )
        body = json.dumps({"request_id": "bad", "prompt": f"a fox{TAINT}"}).encode()
        await self.put(topics.dead_letters, "bad", body, headers=letter.to_headers([]))
        error = TaskError(code=ErrorCode.OUT_OF_MEMORY, error_class=ErrorClass.TRANSIENT, message=message)
        for request_id, status in (("bad", ResultStatus.FAILED), ("good", ResultStatus.SUCCESS)):
            failed = status is ResultStatus.FAILED
            result = GenerationResult(
                request_id=request_id, image_url=None if failed else "file:///0.png", status=status,
                error=error if failed else None, attempt=1, worker="w-1",
            )  # fmt: skip
            await self.put(topics.results, request_id, result.to_json())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def records(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Records]:
    prefix, folder = unique_name("out"), tmp_path_factory.mktemp("out")
    names = {role: f"{prefix}-{role[:4]}" for role in ("tasks", "results", "progress", "control", "dead_letters")}
    topics = TopicNames(**names, tasks_vip=f"{prefix}-vip", retry=(f"{prefix}-retry",))
    await create_topics(bootstrap_servers, dict.fromkeys([*names.values(), topics.tasks_vip, *topics.retry], 1))
    found = Records(bootstrap_servers, topics)
    await found.write()
    variables = {
        f"FLUXPOOL_TOPICS_{role.upper()}": topic if isinstance(topic, str) else ",".join(topic)
        for role, topic in topics
    }
    with pytest.MonkeyPatch.context() as environment:
        environment.chdir(folder)
        settings = {
            "COLUMNS": str(WIDTH),
            "XDG_CONFIG_HOME": str(folder),
            "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "FLUXPOOL_CONSUMER_GROUP": f"{prefix}-group",
        }
        for name, text in (settings | variables).items():
            environment.setenv(name, text)
        yield found


async def words_of(line: str) -> list[str]:
    return line.split()


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
async def test_a_command_on_kafka_writes_a_table_documents_and_names(case: Case) -> None:
    await assert_every_form(case, words_of)


@pytest.mark.usefixtures("records")
async def test_ctrl_c_ends_a_watch_whose_pool_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "shown").open("w+") as shown:
        running = start_program("kit.programs.console_script", "watch", environment=dict(os.environ), output=shown)
        try:
            await wait_until(lambda: (tmp_path / "shown").stat().st_size, deadline_seconds=60, what="a line")
            running.send_signal(signal.SIGINT)
            code = await asyncio.to_thread(running.wait, 60 * PATIENCE)
        finally:
            running.kill()
            running.wait()
        shown.seek(0)
        first, *_, last = shown.read().splitlines()
    assert first.startswith("lag standard 2, vip 0 | results failed 1, success 1")
    assert (code, last) == (ExitCode.INTERRUPTED, "fluxpool: interrupted; the pool goes on")
    assert_harmless(f"{first}\n{last}")
