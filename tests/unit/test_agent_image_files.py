"""What the agent lets an image file say of its task, and what the result says of the file."""

import json
from pathlib import Path

import pytest

from fluxpool_contract.messages.task import EmbedParameters
from kit.task_flow import TASK, FlowBench, task_record

ALL, NO_PROMPT, NONE = EmbedParameters


def bench_with(folder: Path, *, limit: EmbedParameters | None = None) -> FlowBench:
    bench = FlowBench(folder, image={} if limit is None else {"embed_parameters": limit})
    bench.engine.fails = False
    return bench


@pytest.mark.parametrize(
    ("limit", "asked", "used"),
    [
        (ALL, None, ALL),
        (ALL, ALL, ALL),
        (ALL, NO_PROMPT, NO_PROMPT),
        (ALL, NONE, NONE),
        (NO_PROMPT, None, NO_PROMPT),
        (NO_PROMPT, NO_PROMPT, NO_PROMPT),
        (NO_PROMPT, NONE, NONE),
        (NONE, None, NONE),
        (NONE, NONE, NONE),
        (None, None, NO_PROMPT),
    ],
)
async def test_a_task_may_ask_for_less_than_its_pool_allows(
    tmp_path: Path, limit: EmbedParameters | None, asked: EmbedParameters | None, used: EmbedParameters
) -> None:
    bench = bench_with(tmp_path, limit=limit)
    await bench.run(task_record(json.dumps({**TASK, "embed_parameters": asked}).encode()))

    assert bench.engine.inputs is not None
    assert bench.engine.inputs.embed_parameters is used
    assert [(result["status"], result["warnings"]) for result in bench.results] == [("success", [])]


@pytest.mark.parametrize(("limit", "asked"), [(NO_PROMPT, ALL), (NONE, ALL), (NONE, NO_PROMPT), (None, ALL)])
async def test_a_task_that_asks_for_more_is_told_what_it_gets(
    tmp_path: Path, limit: EmbedParameters | None, asked: EmbedParameters
) -> None:
    bench = bench_with(tmp_path, limit=limit)
    await bench.run(task_record(json.dumps({**TASK, "embed_parameters": asked}).encode()))

    assert bench.engine.inputs is not None
    assert bench.engine.inputs.embed_parameters is (limit or NO_PROMPT)
    [result] = bench.results
    assert result["status"] == "success"
    assert result["warnings"] == [
        f"embed_parameters: {asked} is more than the pool allows; {limit or NO_PROMPT} was used"
    ]


async def test_a_word_that_is_no_choice_is_refused_with_the_choices(tmp_path: Path) -> None:
    bench = bench_with(tmp_path)
    await bench.run(task_record(json.dumps({**TASK, "embed_parameters": "some"}).encode()))

    [result] = bench.results
    assert result["error"]["field"] == "embed_parameters"
    assert "all', 'noPrompt' or 'none" in result["error"]["message"]
