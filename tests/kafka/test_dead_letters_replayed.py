"""A dead letter of a real worker, replayed with a correction: its own image, event and trace."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxpool_contract.messages.derived import result_event_id
from kit.brokers.kafka import produce
from kit.commands.command import Ended, fluxpool
from kit.waiting import wait_until
from kit.workers.gate import Gate
from kit.workers.worker import WorkerBench, task_body, worker_bench

pytestmark = pytest.mark.kafka


async def run(bench: WorkerBench, *arguments: str) -> Ended:
    target = {
        "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": bench.bootstrap_servers,
        "FLUXPOOL_CONSUMER_GROUP": bench.group,
        "FLUXPOOL_TOPICS_TASKS": bench.topics.tasks,
        "FLUXPOOL_TOPICS_TASKS_VIP": bench.topics.tasks_vip,
        "FLUXPOOL_TOPICS_RESULTS": bench.topics.results,
        "FLUXPOOL_TOPICS_PROGRESS": bench.topics.progress,
        "FLUXPOOL_TOPICS_CONTROL": bench.topics.control,
        "FLUXPOOL_TOPICS_DEAD_LETTERS": bench.topics.dead_letters,
    }
    return await fluxpool(*arguments, folder=bench.folder, environment=target)


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as closed:
        yield closed


async def test_a_corrected_replay_has_an_image_and_an_event_of_its_own(
    bootstrap_servers: str, tmp_path: Path, gate: Gate
) -> None:
    async with worker_bench(bootstrap_servers, tmp_path, model="stand-in", stand_in=True) as bench:
        await bench.start_ready()
        wide = task_body("wide", gate.prompt, width=100)
        await produce(bootstrap_servers, bench.topics.tasks, [(None, wide)])
        [failed] = await bench.wait_results(1)
        assert failed["status"] == "failed"

        refused = await run(bench, "dlq", "replay", "--yes")
        # Its generation outlasts the command, whose resolution follows the record that it sends.
        replayed = await run(bench, "dlq", "replay", "--patch", '{"width": 96}', "--yes", "--json")
        gate.open()
        _, success = await bench.wait_results(2)

        async def finished() -> bool:
            records = (await run(bench, "trace", "wide", "--json")).document["records"]
            return [record["state"] for record in records] == ["done", "done"]

        await wait_until(finished, deadline_seconds=60, what="both records to be committed")
        traced = (await run(bench, "trace", "wide", "--json")).document
        records = await bench.records(bench.topics.results)

    assert refused.code == 1
    assert "width: 100 is not a multiple of 16" in refused.complaints
    assert replayed.document["sent"][0]["epoch"] == 1
    assert (success["status"], success["width"]) == ("success", 96)
    assert Path(success["images"][0]["object"]).parent.name == "wide~1"
    assert [dict(record.headers)["ce_id"].decode() for record in records] == [
        result_event_id("default", "wide"),
        result_event_id("default", "wide", epoch=1),
    ]
    assert traced["state"] == "success"
    kinds = [event["event"] for event in traced["events"] if event["event"] not in {"started", "step"}]
    assert kinds == ["sent", "dead-letter", "result", "replayed", "resolved", "result"]
    assert {event["worker"] for event in traced["events"] if "worker" in event} == {"worker-1"}
