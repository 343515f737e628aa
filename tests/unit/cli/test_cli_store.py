"""`fluxpool store` on SQLite files and an address where no PostgreSQL is; `fluxpool serve` as it becomes a program."""

import fcntl
import importlib.metadata
import importlib.util
import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import run
from fluxpool_cli.serve.commands import _MODULES, Program
from fluxpool_gateway.projector import LOCK_SUFFIX
from kit.commands.command import PROGRAM, run_fluxpool
from kit.commands.every_form import WIDTH, Case, assert_every_form
from kit.waiting import PATIENCE

SETTINGS = {
    "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "FLUXPOOL_STORAGE_URL": "file:///nonexistent/",
    "FLUXPOOL_AUTHENTICATION": "keys",
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The task store of a gateway, whose variables are set; nothing is there yet."""
    # Short: a table is as wide as what it has to say.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("FLUXPOOL_DATABASE_FILE", "gateway/tasks.sqlite")
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "gateway" / "tasks.sqlite"


def migrated(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    assert run(["store", "migrate", "--json"]) == ExitCode.OK
    databases: list[dict[str, object]] = json.loads(capsys.readouterr().out)["databases"]
    return databases


def test_every_database_is_made_once_and_left_as_it_is_then(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, again = migrated(capsys), migrated(capsys)
    assert [item["what"] for item in made] == ["tasks", "webhooks", "API keys"]
    assert {item["before"] for item in made} == {None}
    assert [item["after"] for item in made] == [item["before"] for item in again] == [item["after"] for item in again]
    assert all(isinstance(item["after"], str) for item in made)
    # What it makes is a store: a projector moves it aside when it is damaged.
    assert file.with_name(file.name + LOCK_SUFFIX).exists()


def test_a_file_that_a_projector_holds_is_left_to_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.parent.mkdir()
    with file.with_name(file.name + LOCK_SUFFIX).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tasks, *others = migrated(capsys)
        assert run(["store", "migrate"]) == ExitCode.OK
    assert (tasks["in_use"], tasks["after"], file.exists()) == (True, None, False)
    assert all(item["after"] and not item["in_use"] for item in others)
    assert "left to the projector that runs" in capsys.readouterr().out


def test_a_database_of_a_newer_release_is_refused_with_2(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    migrated(capsys)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    assert run(["store", "migrate"]) == ExitCode.USAGE
    assert "written by a newer release" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["migrate", "rebuild"])
@pytest.mark.usefixtures("file")
def test_a_server_that_does_not_answer_is_told_from_a_wrong_setting(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    yes = ["--yes"] if verb == "rebuild" else []
    monkeypatch.delenv("FLUXPOOL_DATABASE_FILE")
    monkeypatch.setenv("FLUXPOOL_DATABASE_URL", "postgresql://someone:secret@127.0.0.1:1/flux")
    assert run(["store", verb, *yes]) == ExitCode.UNREACHABLE
    told = capsys.readouterr().err
    assert "database_url: postgresql://someone:***@127.0.0.1:1/flux cannot be used" in told
    monkeypatch.delenv("FLUXPOOL_DATABASE_URL")
    assert run(["store", verb, *yes]) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "FLUXPOOL_DATABASE_FILE" in told
    assert "run it with the variables of the gateway" in told


def test_a_rebuild_asks_first_and_deletes_only_what_a_projector_wrote(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    migrated(capsys)
    assert run(["store", "rebuild"]) == ExitCode.USAGE
    assert "would empty the task store gateway/tasks.sqlite: tasks that Kafka has no longer" in capsys.readouterr().err
    assert file.exists()
    assert run(["store", "rebuild", "--yes"]) == ExitCode.OK
    assert not file.exists()
    assert (file.parent / "webhooks.db").exists()
    assert (file.parent / "api-keys.db").exists()

    file.write_bytes(b"mine")
    file.with_name(file.name + LOCK_SUFFIX).unlink()
    assert run(["store", "rebuild", "--yes"]) == ExitCode.USAGE
    assert "no projector has ever written gateway/tasks.sqlite" in capsys.readouterr().err
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "case",
    [
        Case("store migrate", "API keys", r"gateway/.*"),
        Case("store rebuild --yes", "is being built again", r"gateway/tasks\.sqlite", prose=True),
        Case("store rebuild", "add --yes", code=ExitCode.USAGE),
    ],
    ids=lambda case: case.line,
)
@pytest.mark.usefixtures("file")
async def test_the_output_has_every_form(case: Case) -> None:
    async def filled(line: str) -> list[str]:
        return line.split()

    await assert_every_form(case, filled)


@pytest.fixture
def dispatcher(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    environment = {**SETTINGS, "FLUXPOOL_DATABASE_FILE": str(tmp_path / "tasks.sqlite"), "PATH": "/nonexistent"}
    # Variables of the command line itself are no settings.
    environment |= {"FLUXPOOL_URL": "http://elsewhere", "FLUXPOOL_PROFILE": "lab", "FLUXPOOL_API_KEY": "fp_a_b"}
    with subprocess.Popen(
        [PROGRAM, "serve", "dispatcher"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def test_a_served_program_is_this_process_with_its_signals_and_its_exit_code(
    dispatcher: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    assert dispatcher.stderr is not None
    assert any(json.loads(line)["event"] == "dispatcher_started" for line in dispatcher.stderr)
    dispatcher.send_signal(signal.SIGTERM)
    assert dispatcher.wait(60 * PATIENCE) == 0
    refused = run_fluxpool("serve", "projector", folder=tmp_path, environment={"FLUXPOOL_STORAGE": "?"})
    assert (refused.code, refused.output) == (2, "")
    assert "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS" in refused.complaints


def test_every_program_is_one_that_exists() -> None:
    assert _MODULES.keys() == set(Program)
    for module, _ in _MODULES.values():
        found = importlib.util.find_spec(module)
        assert found is not None
        assert not found.submodule_search_locations or importlib.util.find_spec(f"{module}.__main__"), module


@pytest.mark.parametrize(
    ("arguments", "missing", "words"),
    [
        (["serve", "worker"], {"torch"}, "the worker needs packages that are missing here (torch); install 'fluxpool["),
        (["serve", "operator"], {"kopf"}, "the operator needs packages that are missing here (kopf)"),
        # By way of an extra that the gateway's includes.
        (["serve", "projector"], {"aiokafka"}, "install 'fluxpool[gateway]'"),
        (["store", "migrate"], {"fastapi", "alembic"}, "needs packages that are missing here (alembic, fastapi)"),
        (["schema", "print", "openapi"], {"fastapi"}, "the OpenAPI document needs packages"),
    ],
)
def test_a_room_without_its_packages_is_refused_with_2_and_the_remedy(
    arguments: list[str],
    missing: set[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name in missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    assert run(arguments) == ExitCode.USAGE
    assert words in capsys.readouterr().err
