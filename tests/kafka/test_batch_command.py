"""`fluxpool batch` against a real gateway and a real worker: what becomes of every line, and a run that is killed."""

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fluxpool_cli.exit_codes import ExitCode
from kit.commands.command import PROGRAM, Ended, fluxpool
from kit.gateways.gateway_process import GatewayProcess
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

TASKS = 300
"""More than the gateway takes in one request."""


def write_requests(folder: Path, *requests: dict[str, Any]) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n\n".join(json.dumps(request) for request in requests) + "\n")
    return file


def variables(gateway: GatewayProcess) -> dict[str, str]:
    return {"FLUXPOOL_URL": gateway.url}


async def batch(gateway: GatewayProcess, folder: Path, *arguments: str) -> Ended:
    return await fluxpool("batch", "prompts.jsonl", *arguments, folder=folder, environment=variables(gateway))


async def test_every_line_is_told_of_with_its_outcome(
    bench: WorkerBench, gateway: GatewayProcess, tmp_path: Path
) -> None:
    await bench.start_ready()
    write_requests(
        tmp_path,
        {"prompt": "a fox", "width": 64, "height": 64, "n": 2, "seed": 7},
        {"prompt": "ends=rejected", "width": 64, "height": 64},
        {"prompt": "a fox", "width": 1},
        {"prompt": "a bear", "width": 64, "height": 64, "output_format": "jpeg"},
    )
    ended = await batch(gateway, tmp_path, "--output-dir", "saved", "--json")
    assert ended.code == ExitCode.FAILED, ended.complaints
    assert "2 of 4 requests of batch-" in ended.complaints
    document = ended.document
    assert document["counts"] == {"succeeded": 2, "failed": 1}
    # Blank lines count, as in an editor.
    assert [(item["line"], item["reason"]) for item in document["refused"]] == [(5, "width: must be at least 64")]
    assert [(item["line"], item["status"]) for item in document["failed"]] == [(3, "failed")]
    names = ["00001-0.png", "00001-1.png", "00007-0.jpg"]
    assert document["files"] == [f"saved/{name}" for name in names]
    assert all((tmp_path / "saved" / name).stat().st_size for name in names)

    again = await batch(gateway, tmp_path, "--output-dir", "saved")
    assert again.code == ExitCode.FAILED
    assert again.output.splitlines()[0] == f"batch {document['name']}: 2 succeeded, 1 failed, 1 refused"
    assert len(await bench.results()) == 3, "nothing was made twice"

    other = await batch(gateway, tmp_path, "--name", "second", "--no-wait", "--json")
    assert (other.code, other.document["counts"]) == (ExitCode.FAILED, {"accepted": 3})


async def test_a_batch_that_is_killed_is_continued_by_the_same_command(
    bench: WorkerBench, gateway: GatewayProcess, tmp_path: Path
) -> None:
    await bench.start_ready()
    write_requests(tmp_path, *({"prompt": f"fox {number}", "width": 64, "height": 64} for number in range(TASKS)))
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **variables(gateway)}
    command = (PROGRAM, "batch", "prompts.jsonl", "--output-dir", "saved")
    first = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=environment)
    try:
        await wait_until(bench.results, deadline_seconds=60, what="a first result")
    finally:
        first.kill()
        await first.wait()

    ended = await batch(gateway, tmp_path, "--output-dir", "saved", "--json")
    assert ended.code == ExitCode.OK, ended.complaints
    assert ended.document["counts"] == {"succeeded": TASKS}
    assert len(list((tmp_path / "saved").iterdir())) == len(ended.document["files"]) == TASKS
    results = Counter(result["request_id"] for result in await bench.results())
    assert (len(results), set(results.values())) == (TASKS, {1})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", 'has no requests; write one a line, such as {"prompt": "a fox"}'),
        ("a fox\n", "line 1: is not JSON"),
        ('\n{"prompt": 7}\n["a fox"]\n', "line 3: must be an object with a prompt"),
        ('{"prompt": "a fox", "group_id": "g"}', "line 1: group_id: is the batch's own; leave it out"),
        ('{"prompt": "a"}\n' + "[" * 5000, "line 2: is not JSON"),
        ("\xff\n", "line 1: is not JSON"),
    ],
)
async def test_a_wrong_file_is_refused_before_anything_is_sent(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(content, encoding="latin-1")
    environment = {"FLUXPOOL_URL": "http://127.0.0.1:9"}
    ended = await fluxpool("batch", "prompts.jsonl", folder=tmp_path, environment=environment)
    assert ended.code == ExitCode.USAGE
    assert complaint in ended.complaints


async def test_without_a_gateway_it_ends_in_time(tmp_path: Path) -> None:
    write_requests(tmp_path, {"prompt": "a fox"})
    environment = {"FLUXPOOL_URL": "http://127.0.0.1:9"}
    ended = await fluxpool("batch", "prompts.jsonl", "--timeout", "1", folder=tmp_path, environment=environment)
    assert ended.code == ExitCode.TIMED_OUT
    assert "the same command goes on with batch-" in ended.complaints
