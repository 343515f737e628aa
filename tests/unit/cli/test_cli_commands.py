"""The console script as a process: exit codes, standard output and standard error."""

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import GatewayOptions, default_gateway_url
from fluxpool_cli.main import COMMANDS, command_line
from fluxpool_cli.submit.commands import parse_lora
from fluxpool_cli.submit.waited_task import failure_of
from fluxpool_client import Task, TaskFailure
from fluxpool_client.errors import refusal
from kit.commands.command import Ended, run_fluxpool


def fluxpool(*arguments: str, folder: Path, **environment: str) -> Ended:
    return run_fluxpool(*arguments, folder=folder, environment=environment)


def test_version_prints_the_version_on_standard_output(tmp_path: Path) -> None:
    plain = fluxpool("version", folder=tmp_path)
    assert (plain.code, plain.complaints) == (0, "")
    assert plain.output.startswith("fluxpool ")
    as_json = fluxpool("version", "--json", folder=tmp_path)
    assert json.loads(as_json.output)["version"] == plain.output.split()[1]


@pytest.mark.parametrize(
    ("program", "absent"),
    [
        ("fluxpool_cli.main.command_line()", {"torch"}),
        ("fluxpool_cli.main.run(['--help'])", {"aiohttp", "aiokafka", "httpx", "kubernetes", "pydantic"}),
        ("fluxpool_cli.main.run(['version'])", {"aiohttp", "aiokafka", "httpx", "kubernetes"}),
        ("fluxpool_cli.main.run(['local', 'status'])", {"aiohttp", "aiokafka", "confluent_kafka", "kubernetes"}),
    ],
)
def test_commands_import_what_they_need(tmp_path: Path, program: str, absent: set[str]) -> None:
    code = f"import sys, fluxpool_cli.main; {program}; print({absent} & sys.modules.keys())"
    imported = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert imported.stdout.splitlines()[-1] == "set()"


def test_the_help_is_the_one_of_the_commands_themselves() -> None:
    lines = {name: command.get_short_help_str(200) for name, command in command_line().commands.items()}
    assert {name: summary for name, (_, summary) in COMMANDS.items()}.items() <= lines.items()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit"], "Missing argument"),
        (["submit", "a fox", "--size", "1024"], "--size"),
        (["submit", "a fox", "--size", "1024x"], "1024x768"),
        (["submit", "a fox", "--steps", "many"], "--steps"),
        (["submit", "a fox", "--strength", "0.5"], "has no effect without --image"),
        (["submit", "a fox", "--image", "cat.png"], "a file can be sent to the local stack alone"),
        (["submit", "a fox", "--url", "gateway:8000"], "--url: 'gateway:8000' must begin with http://"),
        (["local", "up", "--max-workers", "0"], "--max-workers"),
        (["local", "up", "--min-workers", "4", "--max-workers", "2"], "4 is above max_workers (2)"),
        (["local", "up", "--bootstrap-servers", "kafka"], "host:port"),
        (["local", "up", "--model", "."], "model_index.json"),
        (["local", "up", "--lora-folder", "no-such-folder"], "no-such-folder"),
        (["local", "up", "-o", "xml"], "must be one of table, json, yaml, name"),
        (["local", "demo", "--tasks", "0"], "--tasks"),
        (["watch", "--json"], "--once"),
        (["watch", "--bootstrap-servers", "kafka", "--once"], "host:port"),
        (["model", "tiny"], "Missing argument"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_says_why_on_standard_error(
    arguments: list[str], words: str, tmp_path: Path
) -> None:
    ended = fluxpool(*arguments, folder=tmp_path)
    assert (ended.code, ended.output) == (2, "")
    assert words in ended.complaints
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_gateway_that_is_down_ends_with_3_and_the_remedy(by_variable: bool, tmp_path: Path) -> None:
    url = "http://127.0.0.1:1"
    if by_variable:
        ended = fluxpool("submit", "a fox", folder=tmp_path, FLUXPOOL_URL=url)
    else:
        ended = fluxpool("submit", "a fox", "--url", url, folder=tmp_path)
    assert (ended.code, ended.output) == (3, "")
    assert f"no gateway answers at {url}" in ended.complaints
    assert "fluxpool local up" in ended.complaints


def test_without_a_local_stack_the_default_address_of_the_gateway_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_gateway_url() == "http://127.0.0.1:8000"


def test_watch_without_a_local_stack_ends_with_3(tmp_path: Path) -> None:
    ended = fluxpool("watch", "--once", folder=tmp_path)
    assert ended.code == 3
    assert "--bootstrap-servers" in ended.complaints


def test_watch_ends_with_3_when_kafka_is_down(tmp_path: Path) -> None:
    ended = fluxpool("watch", "--once", "--bootstrap-servers", "127.0.0.1:1", folder=tmp_path)
    assert ended.code == 3
    assert "127.0.0.1:1 does not answer" in ended.complaints


def test_status_of_an_unused_folder_ends_with_3_and_down_with_0(tmp_path: Path) -> None:
    status = fluxpool("local", "status", "-o", "json", folder=tmp_path)
    assert status.code == 3
    assert json.loads(status.output) == {"running": False, "data_dir": str(tmp_path / ".fluxpool")}
    down = fluxpool("local", "down", folder=tmp_path)
    assert (down.code, down.output) == (0, "")
    assert "nothing runs" in down.complaints
    assert list(tmp_path.iterdir()) == []


def test_model_tiny_writes_a_checkpoint_once_and_overwrites_nothing_else(tmp_path: Path) -> None:
    written = fluxpool("model", "tiny", "tiny", folder=tmp_path)
    assert written.code == 0, written.complaints
    assert written.output.strip() == str(tmp_path / "tiny")
    assert (tmp_path / "tiny" / "model_index.json").is_file()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    refused = fluxpool("model", "tiny", "mine", folder=tmp_path)
    assert refused.code == 1
    assert "name a new or empty folder" in refused.complaints


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (
            422,
            {"detail": "x", "errors": [{"pointer": "#/width", "detail": "100 is not a multiple of 16"}]},
            ExitCode.USAGE,
            "width: 100 is not a multiple of 16",
        ),
        (400, {"detail": "the body is not valid JSON"}, ExitCode.USAGE, "the body is not valid JSON"),
        (401, {"detail": "no key"}, ExitCode.UNAUTHORIZED, "FLUXPOOL_API_KEY"),
        (403, None, ExitCode.UNAUTHORIZED, "HTTP 403"),
        (404, {"detail": "nothing at this address"}, ExitCode.USAGE, "nothing at this address"),
        (429, {"detail": "too many"}, ExitCode.UNREACHABLE, "too many"),
        (503, {"detail": "the queue is down"}, ExitCode.UNREACHABLE, "the queue is down"),
        (500, {"detail": "a defect"}, ExitCode.UNREACHABLE, "cannot serve now: a defect"),
        (501, None, ExitCode.UNREACHABLE, "there is no Fluxpool gateway at http://gateway"),
    ],
)
def test_a_refusal_names_the_field_and_has_its_exit_code(
    status: int, body: dict[str, object] | None, code: ExitCode, words: str
) -> None:
    problem = {
        "type": "about:blank",
        "title": "",
        "status": status,
        "correlation_id": "c",
        "error": {"message": "", "type": "", "param": None, "code": "a_code"},
    }
    content = b"<html>" if body is None else json.dumps({**problem, **body}).encode()
    with pytest.raises(CommandError, match=re.escape(words)) as refused, GatewayOptions(url="http://gateway").client():
        raise refusal(status, httpx.Headers(), content)
    assert refused.value.code is code


def test_the_reason_of_a_failed_task_is_printed_with_its_code() -> None:
    # A worker's message begins with the field.
    error = TaskFailure(code="id-conflict", message="request_id: used for another task", field="request_id")
    failed = Task(request_id="a", status="failed", status_url="/", error=error)
    assert failure_of(failed) == "a failed: request_id: used for another task (id-conflict)"


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("watercolour", {"name": "watercolour"}),
        ("watercolour-v2.1:0.8", {"name": "watercolour-v2.1", "scale": 0.8}),
        ("snow:-1", {"name": "snow", "scale": -1.0}),
    ],
)
def test_a_lora_is_a_name_and_perhaps_a_scale(text: str, lora: dict[str, object]) -> None:
    assert parse_lora(text) == lora


@pytest.mark.parametrize("text", ["snow:", "snow:much", "snow:nan", "a:b:1"])
def test_a_scale_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_lora(text)
