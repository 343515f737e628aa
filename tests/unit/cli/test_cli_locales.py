"""Terminals and locales that other command lines failed on: ASCII, a width of nothing, Ctrl-C during the imports."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

import pytest

from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.progress_bar import counting_bar
from fluxpool_cli.repeating import show
from kit.commands.command import PROGRAM
from kit.commands.every_form import Screen
from kit.waiting import PATIENCE

NO_UTF8: Final = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""Python makes UTF-8 of the locale C unless it is told not to; other locales have other encodings."""


class AsciiScreen(Screen):
    encoding = "ascii"


@contextmanager
def streams(screen: Screen, **environment: str) -> Iterator[None]:
    """Make both streams this screen for a block."""
    with (
        patch.dict(os.environ, {"TERM": "xterm", **environment}),
        patch.object(sys, "stdout", screen),
        patch.object(sys, "stderr", screen),
    ):
        yield


def run(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """An installed program of the folder of this Python, executed: the locale is read when Python starts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLUXPOOL_", "PYTHON", "LC_"))}
    return subprocess.run(
        [Path(PROGRAM).with_name(words[0]), *words[1:]],
        env={**kept, **NO_UTF8, "XDG_CONFIG_HOME": str(folder), **environment},
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=60 * PATIENCE,
    )


def test_a_bar_has_ascii_alone_where_there_is_nothing_else() -> None:
    screen = AsciiScreen(is_terminal=True)
    with streams(screen), counting_bar("sending", total=3) as bar:
        bar.advance(1)
    shown = screen.getvalue()
    assert (shown.isascii(), "sending" in shown) == (True, True), shown


def test_a_watched_list_that_is_too_wide_is_cut_without_a_character_that_is_not_there() -> None:
    wide, screen = Result(document={}, parts=["x" * 100], final=True), AsciiScreen(is_terminal=True)
    with streams(screen, COLUMNS="40"):
        show(lambda: wide, OutputOptions(), watch=True)
    shown = screen.getvalue()
    assert (shown.isascii(), "x" * 40 in shown, "x" * 41 in shown) == (True, True, False), shown


def test_columns_stay_in_line_where_a_character_becomes_an_escape() -> None:
    screen, table = AsciiScreen(is_terminal=True), Table(("A", "B"), [("zdjęcia", "1"), ("x", "2")])
    with streams(screen):
        write_result(Result(document={}, parts=[table]), OutputOptions())
    assert screen.getvalue().splitlines() == ["A             B", r"zdj\u0119cia  1", "x             2"]


@pytest.mark.parametrize("columns", ["0", "1", "-3", "wide"])
def test_a_width_that_is_none_draws_something(columns: str) -> None:
    screen = Screen(is_terminal=True)
    result = Result(document={}, parts=[Table(("A", "B"), [("one", "two words")])], final=True)
    with streams(screen, COLUMNS=columns):
        write_result(result, OutputOptions())
        show(lambda: result, OutputOptions(), watch=True)
        with counting_bar("sending", total=3) as bar:
            bar.advance(1)
    assert "words" in screen.getvalue()


def test_files_are_utf8_in_every_locale(tmp_path: Path) -> None:
    config = tmp_path / "fluxpool" / "config.toml"
    config.parent.mkdir()
    config.write_text('# schlüssel\n[profiles.lab]\nurl = "http://bücher.example"\n', encoding="utf-8")
    ended = run("fluxpool", "profile", "use", "lab", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert config.read_text(encoding="utf-8").endswith('# schlüssel\n[profiles.lab]\nurl = "http://bücher.example"\n')


def test_what_kubectl_writes_is_utf8_in_every_locale(tmp_path: Path) -> None:
    pool = {"metadata": {"namespace": "bilder", "name": "flux"}, "status": {"plan": {"reason": "für 5 Bilder"}}}
    kubectl = tmp_path / "kubectl"
    document = json.dumps({"items": [pool]}, ensure_ascii=False)
    kubectl.write_text(f"#!/bin/sh\necho '{document}'\n", encoding="utf-8")
    kubectl.chmod(0o755)
    ended = run("kubectl-fluxpool", "pools", folder=tmp_path, PATH=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.splitlines()[-1] == rb"flux: f\xfcr 5 Bilder"


def test_ctrl_c_while_the_program_is_imported_ends_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "structlog.py").write_text("import time\nprint('imported', flush=True)\ntime.sleep(600)\n")
    with subprocess.Popen(
        [PROGRAM, "version"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"imported\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60 * PATIENCE)
    assert (process.returncode, errors) == (-signal.SIGINT, b"")
