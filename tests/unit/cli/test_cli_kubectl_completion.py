"""`kubectl fluxpool <TAB>`, by the real kubectl where there is one, and by the words that it passes on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from fluxpool_cli.cluster.completion import completion_text
from fluxpool_cli.main import COMMANDS
from kit.cluster.control_plane_binaries import BinariesMissingError, control_plane_binaries

FILES, NO_FILES = ":0", ":4"
SCRIPTS: Final = Path(sys.executable).parent


def kubectl() -> Path:
    """The program; the test is skipped where there is none."""
    try:
        return control_plane_binaries() / "kubectl"
    except BinariesMissingError as missing:
        found = shutil.which("kubectl")
        if found is None:
            pytest.skip(str(missing))
        return Path(found)


@pytest.fixture
def complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The lines for the words after `kubectl fluxpool`, with the pools of a stand-in of kubectl."""
    pools = {"items": [{"metadata": {"name": name}} for name in ("dev", "standard")]}
    program = tmp_path / "kubectl"
    program.write_text(
        f"#!/bin/sh\ncase \"$*\" in *--namespace=images*) echo '{json.dumps(pools)}';; *) exit 1;; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("_FLUXPOOL_COMPLETE", "_TYPER_COMPLETE_FISH_ACTION", "_TYPER_COMPLETE_ARGS", "COLUMNS"):
        monkeypatch.setenv(name, "")

    def lines(*words: str) -> list[str]:
        return completion_text(words).splitlines()

    return lines


def test_kubectl_completes_the_verbs_and_options_of_the_plugin(tmp_path: Path) -> None:
    def asked(*words: str) -> list[str]:
        ended = subprocess.run(
            [kubectl(), "__complete", "fluxpool", *words],
            env={"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path), "LC_ALL": "C"},
            capture_output=True,
            check=True,
            encoding="utf-8",
        )
        return ended.stdout.splitlines()

    *found, directive = asked("p")
    assert [line.partition("\t")[0] for line in found] == ["pools", "profile"]
    assert (found[0].partition("\t")[2].startswith("Show workers of pools"), directive) == (True, NO_FILES)
    *found, directive = asked("pools", "--kube")
    assert ([line.partition("\t")[0] for line in found], directive) == (["--kubeconfig"], NO_FILES)


def test_every_verb_of_the_plugin_is_a_completion(complete: Callable[..., list[str]]) -> None:
    *found, directive = complete("")
    assert {line.partition("\t")[0] for line in found} >= COMMANDS.keys()
    assert directive == NO_FILES


@pytest.mark.parametrize(
    ("words", "found", "directive"),
    [
        (["pools", "-n", "images", ""], ["dev", "standard"], NO_FILES),
        (["pools", "-n", "images", "st"], ["standard"], NO_FILES),
        (["pools", "-n", "else", ""], [], FILES),
        (["local", "u"], ["up"], NO_FILES),
        (["queue", "-o", ""], ["table", "json", "yaml", "name"], NO_FILES),
        (["queue", "--output=y"], ["yaml"], NO_FILES),
        (["batch", ""], [], FILES),
        (["verify", "a picture's name"], [], FILES),
        (["queue", "--nonsense", "--ur"], ["--url"], NO_FILES),
        (["queue", '"; $(exit) `'], [], FILES),
    ],
)
def test_a_line_goes_on_with_what_its_command_takes(
    words: list[str], found: list[str], directive: str, complete: Callable[..., list[str]]
) -> None:
    *lines, last = complete(*words)
    assert ([line.partition("\t")[0] for line in lines], last) == (found, directive)
