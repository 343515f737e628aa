"""The folder of a local stack: any name, everything inside it, accessible to its user only."""

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.local.data_dir import DataDir, DataDirError
from fluxpool_cli.local.kafka.local_kafka import ClusterLayout
from fluxpool_cli.local.state_file import Phase, ProcessRecord, StackState
from fluxpool_cli.local.workers.fleet import failure_in
from fluxpool_cli.main import run
from fluxpool_contract.folder_address import folder_address, folder_of
from fluxpool_contract.settings.worker import StorageSettings
from kit.brokers.kafka_settings import render_properties

NAMES = ["my demo", "zdjęcia", "50%20 #1?", "a+b;c,d", "q'u\"o", "co:lon", "-dash", "back\\slash", "[x] &$()", " b "]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_is_found_again_by_its_address(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name / "images"
    address = folder_address(folder)
    assert StorageSettings(url=address).folder == folder
    assert address.isascii()
    assert not set(address) & set(" ?#")


@given(parts=st.lists(st.text(min_size=1, max_size=9).filter(lambda part: part not in {".", ".."}), min_size=1))
def test_address_and_folder_are_inverse(parts: list[str]) -> None:
    try:
        folder = Path("/", *(part.replace("/", "_").replace("\0", "_") for part in parts))
        os.fsencode(folder)
    except UnicodeEncodeError:
        return
    assert folder_of(folder_address(folder)) == folder


def test_an_address_with_a_blank_is_accepted() -> None:
    assert folder_of("file:///my demo/") == Path("/my demo")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///a?b", "must write ? as %3F"),
        ("file:///a#b", "must write # as %23"),
        ("file:///a/../b", "without .."),
        ("file:///a/%2e%2E/b", "without .."),
        ("file:///a%00", "without .."),
        ("file://host/a", "file:///absolute/folder/"),
    ],
)
def test_an_address_with_two_meanings_is_refused(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?").replace(".", r"\.")):
        StorageSettings(url=address)


def read_properties(text: str) -> dict[str, str]:
    """Read a line as java.util.Properties does."""
    found = {}
    for line in text.encode("ascii").decode().splitlines():
        name, _, value = line.partition("=")
        # Without quotes and leading blanks, the escapes of JSON are the same.
        found[name] = json.loads(f'"{value}"')
    return found


@pytest.mark.parametrize("value", ["zdjęcia", "🦊", "a\\b\nc\td", "plain", "\x7f\x9b"])
def test_a_properties_file_is_ascii_and_has_the_value(value: str) -> None:
    assert read_properties(render_properties({"name": value})) == {"name": value}


def test_a_new_folder_is_for_its_user_alone_and_an_existing_one_keeps_its_mode(tmp_path: Path) -> None:
    made, given = tmp_path / "made", tmp_path / "given"
    given.mkdir(mode=0o755)
    for folder in (made, given):
        DataDir(folder).create()
        DataDir(folder).gateway_port(None)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE(given.stat().st_mode) == 0o755
    for entry in (*made.rglob("*"), *given.rglob("*")):
        assert stat.S_IMODE(entry.stat().st_mode) & 0o077 == 0, entry


@pytest.mark.parametrize("content", ['{"gateway": 99999}', '{"gateway": true}', '{"gateway": -1}', "[]", "\xff", "{"])
def test_an_impossible_stored_port_is_chosen_again(content: str, tmp_path: Path) -> None:
    folder = DataDir(tmp_path)
    (tmp_path / "ports.json").write_bytes(content.encode("latin-1"))
    assert 1 <= folder.gateway_port(None) <= 65_535


def test_impossible_ports_of_a_stored_kafka_are_damage(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text('{"cluster_id": "x", "ports": {"1": {"PLAINTEXT": 99999}}}')
    with pytest.raises(Exception, match=r"cluster\.json is damaged"):
        ClusterLayout.of(tmp_path)


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_file_in_place_of_the_folder_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert run(["local", command, "--data-dir", str(file)]) == ExitCode.USAGE
    assert f"--data-dir: {file}" in capsys.readouterr().err


def test_down_of_a_file_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(["local", "down", "--data-dir", str(tmp_path / "file")]) == ExitCode.OK
    assert "nothing runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "failure"),
    [
        ('{"event": "worker_failed", "error": "model x: lacks vae"}', "model x: lacks vae"),
        ('{"event": "worker_failed"}', "they end with status 1"),
        ("Killed", "they end with status 1"),
        ("[]", "they end with status 1"),
    ],
)
def test_a_worker_says_why_it_ended_in_its_last_line(line: str, failure: str) -> None:
    assert failure_in(line, status=1) == failure


@pytest.fixture
def running(tmp_path: Path) -> tuple[DataDir, StackState]:
    """A stack whose state names this process."""
    folder = DataDir(tmp_path / "stack")
    folder.create()
    state = StackState(
        phase=Phase.READY,
        data_dir=folder.path,
        gateway_url="http://127.0.0.1:1",
        bootstrap_servers="127.0.0.1:1",
        supervisor=ProcessRecord.of("supervisor", os.getpid()),
        options={"max_workers": 3, "model": None, "idle_grace_seconds": 20.0, "gateway_port": None},
    )
    state.save(folder.state)
    return folder, state


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], ExitCode.OK, "already runs"),
        (["--max-workers", "3"], ExitCode.OK, "already runs"),
        (["--max-workers", "5"], ExitCode.FAILED, "--max-workers is 3 there, not 5"),
        (["--idle-grace", "1", "--gateway-port", "4000"], ExitCode.FAILED, "--gateway-port is None there, not 4000"),
    ],
)
def test_a_second_up_is_refused_when_it_asks_for_something_else(
    options: list[str],
    code: ExitCode,
    words: str,
    running: tuple[DataDir, StackState],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = running
    with folder.lock():
        assert run(["local", "up", "--data-dir", str(folder.path), *options]) == code
    assert words in capsys.readouterr().err


def test_workers_that_cannot_start_are_named_by_status_and_by_a_waiting_submit(
    running: tuple[DataDir, StackState], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, state = running
    broken = state.model_copy(update={"workers_problem": "model x: lacks vae", "crashed_workers": 2})
    broken.save(folder.state)
    assert run(["local", "status", "--data-dir", str(folder.path)]) == ExitCode.FAILED
    output = capsys.readouterr()
    assert "workers cannot start: model x: lacks vae" in output.err
    assert "crashed 2 workers" in output.out


def test_a_free_port_is_taken_only_where_it_is_free(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "ports.json").write_text(json.dumps({"gateway": taken.getsockname()[1]}))
        with pytest.raises(DataDirError, match="the stored port of the gateway"):
            DataDir(tmp_path).gateway_port(None)
