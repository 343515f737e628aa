"""Foreign records through real components: one broker, one worker, one gateway and the command line.

All are written at the beginning, each followed by a plain task on its partition. Every input has a test of its outcome;
the last tests check that all components still run.
"""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from kit.brokers.foreign_producer import ForeignRecord, write
from kit.brokers.kafka import unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.commands.command import Ended, fluxpool
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, running_gateway, told
from kit.strangers import StrangeRecord, strangers
from kit.waiting import wait_until
from kit.workers.worker import LOOK_SECONDS, WorkerBench, WorkerProcess, task_body, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

RECORDS = strangers("records", StrangeRecord)
NAMES = {id(parameter.values[0]): str(parameter.id) for parameter in RECORDS}
PARTITION = 0
SECONDS = 120.0
ANY_TIME = {"message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": str(2**62)}
"""Topics with CreateTime: records keep any timestamps of their producers."""


@dataclass(slots=True, kw_only=True)
class Aftermath:
    """The written records, and the components that read them."""

    bench: WorkerBench
    worker: WorkerProcess
    gateway: GatewayProcess
    ids: Mapping[str, str]
    """Request id of each input, by its name."""
    places: Mapping[str, int]
    """Offset of each input."""
    behind: Mapping[str, str]
    """Request id of the plain task after each input of a task topic."""
    results: dict[str, list[dict[str, Any]]]
    dead_letters: list[dict[str, Any]]

    def topic(self, stranger: StrangeRecord) -> str:
        return _topic(self.bench, stranger)

    def dead_letters_of(self, name: str, stranger: StrangeRecord) -> list[dict[str, Any]]:
        """The dead letters of an input, or the input itself."""
        if stranger.topic == "dead_letters":
            return [found for found in self.dead_letters if found["record"] == f"0/{self.places[name]}"]
        return [
            found
            for found in self.dead_letters
            if found["dead_letter"] is not None
            and (found["dead_letter"]["origin_topic"], found["dead_letter"]["origin_offset"])
            == (self.topic(stranger), self.places[name])
        ]

    async def command(self, *arguments: str) -> Ended:
        return await fluxpool(*arguments, folder=self.bench.folder, environment=_environment(self.bench))


def _topic(bench: WorkerBench, stranger: StrangeRecord) -> str:
    return bench.topics.retry[0] if stranger.topic == "retry" else str(getattr(bench.topics, stranger.topic))


def _environment(bench: WorkerBench) -> dict[str, str]:
    settings = bench.settings("reader").to_environment()
    return {name: text for name, text in settings.items() if "_KAFKA_" in name or "_TOPICS_" in name or "GROUP" in name}


def _in_task_topic(stranger: StrangeRecord) -> bool:
    return stranger.topic in {"tasks", "tasks_vip"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def aftermath(kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Write everything, and wait until all results exist or the time is over."""
    folder = tmp_path_factory.mktemp("strangers")
    servers = kafka.bootstrap_servers
    async with worker_bench(
        servers, folder, model="none", partitions=1, stand_in=True, retry_delays=("1s",), topic_config=ANY_TIME
    ) as bench:
        with _gateway(bench) as gateway:
            worker = await bench.start_ready()
            ids, places, behind = {}, {}, {}
            for parameter in RECORDS:
                name, stranger = str(parameter.id), parameter.values[0]
                ids[name] = unique_name(name)
                places[name] = await write(servers, _topic(bench, stranger), _record(stranger, ids[name]))
                if _in_task_topic(stranger):
                    behind[name] = f"behind-{ids[name]}"
                    plain = ForeignRecord(value=task_body(behind[name]))
                    await write(servers, _topic(bench, stranger), plain)
            due = {ids[p.id] for p in RECORDS if p.values[0].right.status} | set(behind.values())
            results = await _results(bench, due)
            # Also what has no result of its own: every input is done before dead letters are counted.
            await bench.wait_committed({PARTITION: 2 * sum(p.values[0].topic == "tasks" for p in RECORDS)})
            found = Aftermath(
                bench=bench,
                worker=worker,
                gateway=gateway,
                ids=ids,
                places=places,
                behind=behind,
                results=results,
                dead_letters=[],
            )
            listed = await found.command("dlq", "list", "--json", "--limit", "1000")
            found.dead_letters = listed.document["dead_letters"]
            yield found


def _gateway(bench: WorkerBench) -> AbstractContextManager[GatewayProcess]:
    settings = gateway_settings(bench.bootstrap_servers, bench.folder, bench.topics, consumer_group=bench.group)
    return running_gateway(settings)


def _record(stranger: StrangeRecord, request_id: str) -> ForeignRecord:
    return ForeignRecord(
        key=stranger.key.content(request_id),
        value=stranger.value.content(request_id),
        headers=[(field.name.content("") or b"", field.value.content("")) for field in stranger.headers],
        timestamp_ms=stranger.timestamp_ms,
        compression=stranger.compression,
    )


async def _results(bench: WorkerBench, due: set[str]) -> dict[str, list[dict[str, Any]]]:
    """All results by id, once the expected ones exist, or after the maximum time."""
    by_id: dict[str, list[dict[str, Any]]] = {}

    async def answered() -> bool:
        by_id.clear()
        for record in await bench.records(bench.topics.results):
            found = json.loads(record.value or b"{}")
            by_id.setdefault(found.get("request_id"), []).append(found)
        if due <= by_id.keys():
            return True
        await asyncio.sleep(LOOK_SECONDS)
        return False

    try:
        await wait_until(answered, deadline_seconds=SECONDS, what="every expected result")
    except AssertionError:
        return by_id  # the test of each input without one fails
    return by_id


@pytest.mark.parametrize("stranger", RECORDS)
async def test_a_record_has_the_expected_outcome(aftermath: Aftermath, stranger: StrangeRecord) -> None:
    name, right = NAMES[id(stranger)], stranger.right
    dead_letters = aftermath.dead_letters_of(name, stranger)
    if stranger.topic != "results":
        found = aftermath.results.get(aftermath.ids[name], [])
        assert [result["status"] for result in found] == ([right.status] if right.status else []), dead_letters
        if right.code is not None:
            assert [result["error"]["code"] for result in found] == [right.code]
    assert len(dead_letters) == right.dead_letters


@pytest.mark.parametrize("stranger", [found for found in RECORDS if _in_task_topic(found.values[0])])
async def test_the_plain_task_after_it_succeeds(aftermath: Aftermath, stranger: StrangeRecord) -> None:
    found = aftermath.results.get(aftermath.behind[NAMES[id(stranger)]], [])
    assert [result["status"] for result in found] == ["success"]


@pytest.mark.parametrize("stranger", RECORDS)
async def test_the_gateway_knows_a_task_or_answers_404(aftermath: Aftermath, stranger: StrangeRecord) -> None:
    async with httpx.AsyncClient(base_url=aftermath.gateway.url, timeout=60) as client:
        path = f"v1/generations/{aftermath.ids[NAMES[id(stranger)]]}"
        answer = await told(lambda: client.get(path))
    assert answer.status_code == (200 if stranger.right.known else 404), answer.text


@pytest.mark.parametrize("stranger", [found for found in RECORDS if found.values[0].right.status != "success"])
async def test_a_trace_of_it_is_shown(aftermath: Aftermath, stranger: StrangeRecord) -> None:
    ended = await aftermath.command("trace", aftermath.ids[NAMES[id(stranger)]])
    assert ended.code in {0, 1}, ended.complaints
    assert "Traceback" not in ended.complaints
    assert "\x1b" not in ended.output


async def test_no_process_ended(aftermath: Aftermath) -> None:
    assert aftermath.worker.process.poll() is None
    assert aftermath.gateway.server.poll() is None
    assert aftermath.gateway.projector.poll() is None
    assert len(aftermath.worker.events("engine_started")) == 1


async def test_no_lag_is_left(aftermath: Aftermath) -> None:
    count = sum(stranger.values[0].topic == "tasks" for stranger in RECORDS)
    await aftermath.bench.wait_committed({PARTITION: 2 * count})


async def test_the_gateway_is_ready(aftermath: Aftermath) -> None:
    async with httpx.AsyncClient(base_url=aftermath.gateway.url, timeout=60) as client:
        answer = await told(lambda: client.get("readyz"))
    assert answer.status_code == 200, answer.text
