"""Every command line ends with a message and an exit code, for any arguments."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxpool_cli import main
from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import run

FLUXPOOL = str(Path(sys.executable).with_name("fluxpool"))
CAPTURED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder without a stack, without settings of the user who runs the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("FLUXPOOL_")]:
        monkeypatch.delenv(name)
    yield tmp_path
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "ein caf\udce9"], "is not text in the encoding"),
        (["submit", "a kite", "--idempotency-key", ""], "--idempotency-key: must not be empty"),
        (["submit", "a kite", "--idempotency-key="], "--idempotency-key: must not be empty"),
        (["submit", "a kite", "--url", ""], "--url: must not be empty"),
        (["submit", "a kite", "-o", ""], "-o: must not be empty"),
        (["local", "down", "--data-dir", ""], "--data-dir: must not be empty"),
        (["dlq", "list", "--topic", ""], "--topic: must not be empty"),
        (["submit", "a kite", "--idempotency-key", "two words"], "printable ASCII"),
        (["submit", "a kite", "--guidance", "nan"], "must be a finite number"),
        (["submit", "a kite", "--true-cfg-scale", "inf"], "must be a finite number"),
        (["submit", "a kite", "--timeout", "nan"], "must be greater than"),
        (["dlq", "replay", "--rate", "nan"], "must be less than or equal to 10000"),
        (["local", "demo", "--timeout", "inf"], "must be a finite number"),
        (["local", "up", "--idle-grace", "inf"], "--idle-grace"),
        (["local", "up", "--target-lag", "9" * 30], "--target-lag"),
        (["submit", "a kite", "--steps", "many"], "--steps: must be a valid integer"),
        (["dlq", "list", "--bootstrap-servers", "nonsense"], "--bootstrap-servers: nonsense must have the form"),
        (["submit", "a kite", "-o", "out"], "use --output-dir out"),
        (["submit", "a kite", "--url", "http://"], "name a host"),
        (["submit", "a kite", "--url", "http://a:99999"], "name a host"),
        (["submit", "a kite", "--url", "http://a\x1b[31m"], "name a host"),
        (["\x1b]0;x\x07"], "\\x1b]0;x\\x07"),
        (["local", "up", "--data-dir", "a\nb"], "--data-dir"),
        (["local", "up", "--model", "/nonexistent"], "--model"),
    ],
)
def test_an_impossible_argument_ends_with_2_and_names_the_rule(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert run(arguments) == ExitCode.USAGE
    shown = " ".join(capsys.readouterr().err.replace("'", "").split())
    assert words in shown
    assert "\x1b" not in shown
    assert list(folder.iterdir()) == []


COMMANDS = ["submit", "watch", "trace", "dlq", "list", "show", "local", "status", "down"]
OPTIONS = ["--url", "--json", "-o", "--since", "--timeout", "--once", "--data-dir", "--topic", "--request-id"]
WORDS = st.sampled_from([*COMMANDS, *OPTIONS])
VALUES = st.sampled_from(["http://127.0.0.1:1", "", "\udcff", "\x1b[2J", "a\nb", "nan", "2/17", "x", "-1", "1e999"])


@CAPTURED
@given(arguments=st.lists(st.one_of(WORDS, VALUES, st.text(max_size=8)), max_size=5))
def test_no_command_line_ends_in_a_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = run(arguments)
    output = capsys.readouterr()
    assert code in {ExitCode.OK, ExitCode.USAGE, ExitCode.UNREACHABLE, ExitCode.FAILED}, output.err
    assert "Traceback" not in output.err
    assert code == ExitCode.OK or output.err


@pytest.mark.parametrize("arguments", [["--version"], ["version"]])
def test_the_version_is_printed_by_command_and_option(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == ExitCode.OK
    assert capsys.readouterr().out.startswith("fluxpool ")


def fail(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(main, "write_result", broken)


def test_a_defect_is_one_sentence_and_verbose_adds_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(ZeroDivisionError("the\x1b[31m cause"), monkeypatch)
    assert run(["version"]) == ExitCode.DEFECT
    assert capsys.readouterr().err == (
        "fluxpool: this is a defect of fluxpool (ZeroDivisionError: the\\x1b[31m cause); "
        "report it with what `fluxpool --verbose` adds\n"
    )
    assert run(["--verbose", "version"]) == ExitCode.DEFECT
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
        (PermissionError(13, "Permission denied", "/mnt/x"), ExitCode.FAILED, "/mnt/x: Permission denied"),
        (OSError(28, "No space left on device"), ExitCode.FAILED, "output cannot be written: No space left"),
        (BrokenPipeError(32, "Broken pipe"), ExitCode.READER_GONE, ""),
    ],
)
def test_an_error_of_the_system_is_named(
    error: BaseException,
    code: ExitCode,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail(error, monkeypatch)
    assert run(["version"]) == code
    assert words in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_as_output_is_named_without_a_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([FLUXPOOL, "version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "fluxpool: the output cannot be written: No space left on device\n")


def test_a_closed_output_and_an_ascii_locale_cause_no_error(tmp_path: Path) -> None:
    ended = subprocess.run(f"{FLUXPOOL} version >&-", shell=True, capture_output=True, check=False)  # noqa: S602
    assert (ended.returncode, ended.stderr) == (0, b"")
    ended = subprocess.run(
        [FLUXPOOL, "local", "status", "--data-dir", "zdjęcia"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == ExitCode.UNREACHABLE
    assert b"zdj\\u0119cia" in ended.stderr
