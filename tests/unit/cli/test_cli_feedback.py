"""`fluxpool rate`, `compare`, `feedback` and `submit --preset` against a gateway with keys, on a socket."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_contract.messages.feedback import Comparison, Rating
from fluxpool_gateway.presets.preset import Preset
from fluxpool_gateway.store.task_state import TaskSeen
from kit.commands.command_line import Command, command_line, served
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings, succeeded


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    settings = keyed_settings(tmp_path).model_copy(update={"presets": {"draft": Preset(steps=8)}})
    async with keyed_gateway(settings) as running:
        for name in ("one", "two"):
            running.project(
                TaskSeen(
                    request_id=name, body='{"prompt": "a fox"}', priority="standard", tenant="default", created_at_ms=1
                ),
                succeeded(name, "default"),
            )
        yield running


@pytest.fixture
async def fluxpool(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[Command]:
    """Runs the command line against the gateway."""
    async with served(gateway.one.app) as url:
        monkeypatch.setenv("FLUXPOOL_URL", url)
        yield command_line(monkeypatch, capsys, key=gateway.admin)


async def test_an_image_is_rated_compared_summed_up_and_exported(
    gateway: Gateway, fluxpool: Command, tmp_path: Path
) -> None:
    said = ("--thumb", "up", "--aspect", "fidelity=3", "--artifacts", "0", "--tag", "hands", "--comment", "nice")
    assert await fluxpool("rate", "one", "4", *said, "--rater", "ann") == (0, "one/0 rated\n", "")
    rating = Rating.model_validate_json(gateway.records.feedback[0][2] or b"")
    assert (rating.score, rating.thumb, rating.artifacts, rating.tags, rating.comment) == (4, 1, 0, ("hands",), "nice")
    assert rating.aspects is not None
    assert rating.aspects.fidelity == 3

    code, out, _ = await fluxpool("feedback", "next", "--rater", "ann", "--json")
    pair = json.loads(out)
    assert (code, pair["prompt"]) == (0, "a fox")
    names = [pair[side]["request_id"] for side in "ab"]
    judged = ("--prefer", "a", "--aspect", "fidelity=tie", "--seconds", "2.5", "--rater", "ann")
    assert await fluxpool("compare", names[0], f"{names[1]}/0", *judged) == (0, f"one/0 two/0 {names[0]}/0\n", "")
    comparison = Comparison.model_validate_json(gateway.records.feedback[1][2] or b"")
    assert (comparison.preferred, comparison.seconds) == ("a" if names[0] == "one" else "b", 2.5)
    assert (await fluxpool("feedback", "next", "--rater", "ann"))[0] == ExitCode.FAILED

    await gateway.project_feedback()
    code, out, _ = await fluxpool("feedback", "summary", "--by", "model")
    assert (code, out.split()[:2], "4.00 (1.00-5.00)" in out) == (0, ["MODEL", "SCORES"], True)
    code, out, _ = await fluxpool("feedback", "summary", "--json")
    assert json.loads(out)["comparisons"] == 1

    file = tmp_path / "pairs.parquet"
    assert (await fluxpool("feedback", "export", str(file)))[0] == 0
    assert pq.read_table(file).column("label_0").to_pylist() == [1 if names[0] == "one" else 0]
    code, out, _ = await fluxpool("feedback", "export", str(tmp_path / "r.jsonl"), "--layout", "imagereward", "--json")
    assert json.loads(out)["bytes"] == (tmp_path / "r.jsonl").stat().st_size
    assert json.loads((tmp_path / "r.jsonl").read_text())["overall_rating"] == 4

    assert await fluxpool("rate", "one", "--remove", "--rater", "ann") == (0, "one/0 rating removed\n", "")
    assert gateway.records.feedback[-1][2] is None


async def test_what_cannot_be_is_refused_and_says_why(gateway: Gateway, fluxpool: Command, tmp_path: Path) -> None:
    reader = await gateway.create("read")
    file = tmp_path / "export.jsonl"
    file.write_text("before")
    for code, reason, arguments in (
        (ExitCode.USAGE, "give at least one of score", ("rate", "one")),
        (ExitCode.USAGE, "no image 3, only 0 to 0", ("rate", "one/3", "5")),
        (ExitCode.USAGE, "ID/1 for its second image", ("rate", "one/x", "5")),
        (ExitCode.USAGE, "number from 1 to 5", ("rate", "one", "--aspect", "fidelity=good")),
        (ExitCode.USAGE, "aspect=value", ("rate", "one", "--aspect", "fidelity")),
        (ExitCode.USAGE, "leave out what it says", ("rate", "one", "5", "--remove")),
        (ExitCode.USAGE, "there is no task", ("rate", "never", "5")),
        (ExitCode.USAGE, "another image than a", ("compare", "one", "one", "--prefer", "a")),
        (ExitCode.USAGE, "--prefer", ("compare", "one", "two", "--prefer", "left")),
        (ExitCode.USAGE, "needs a gateway", ("submit", "a fox", "--preset", "x", "--bootstrap-servers", "localhost:1")),
        (ExitCode.USAGE, "needs a gateway", ("submit", "fox", "--webhook", "x", "--bootstrap-servers", "localhost:1")),
    ):
        found, _, err = await fluxpool(*arguments)
        assert (found, reason in " ".join(err.split())) == (code, True), err
    found, _, err = await fluxpool("feedback", "export", str(file), key=reader)
    assert (found, "needs the scope admin" in err) == (ExitCode.UNAUTHORIZED, True)
    assert [name for name in os.listdir(tmp_path) if "export" in name] == ["export.jsonl"]  # noqa: PTH208 - for a name
    assert file.read_text() == "before"


async def test_a_task_is_submitted_with_a_preset(gateway: Gateway, fluxpool: Command) -> None:
    assert (await fluxpool("submit", "a fox", "--preset", "auto"))[0] == 0
    assert gateway.records.values[0]["steps"] == 8
