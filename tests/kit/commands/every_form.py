"""What a command writes: on a terminal of 80 columns, and in each form for programs.

The command runs in the process of the test, with streams of its own.
"""

import asyncio
import io
import json
import re
import sys
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import yaml

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import run

WIDTH: Final = 80
_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Case:
    """A command line, and what its output must have; `{...}` names what is made for each run."""

    line: str
    words: str
    """In the table, or in what is said beside it."""
    names: str | None = None
    """A pattern of each name; None for commands without."""
    code: ExitCode = ExitCode.OK
    prose: bool = False
    """Whether it has sentences or commands, which a terminal wraps, so that they are copied whole."""


class Screen(io.StringIO):
    """Standard output or error: a terminal, or not one."""

    encoding = "utf-8"

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


async def run_on_screen(arguments: Sequence[str], *, is_terminal: bool = False) -> tuple[int, str, str]:
    """Exit code, standard output, which may be a terminal, and standard error of a command line."""
    out, err = Screen(is_terminal=is_terminal), Screen(is_terminal=False)
    with patch.object(sys, "stdout", out), patch.object(sys, "stderr", err):
        code = await asyncio.to_thread(run, arguments)
    return code, out.getvalue(), err.getvalue()


async def assert_every_form(case: Case, filled: Callable[[str], Awaitable[list[str]]]) -> None:
    """Run a case once for each form; `filled` makes the arguments of each run of the line."""
    code, out, err = await run_on_screen(await filled(case.line), is_terminal=True)
    assert (code, case.words in out + err) == (case.code, True), out + err
    assert_harmless(out + err)
    for line in out.splitlines():
        # Words are never divided: one that is longer than a line sticks out alone.
        assert case.prose or len(line) <= WIDTH or " " not in line.strip(), line
    has_result = case.code is not ExitCode.USAGE and case.code is not ExitCode.TIMED_OUT

    documents = []
    for form in ("json", "yaml"):
        code, out, err = await run_on_screen([*await filled(case.line), "-o", form])
        assert code == case.code, err
        assert_harmless(out + err)
        if form == "json":
            # One line each: a command that starts something has one, events have one each.
            documents.append([json.loads(line) for line in out.splitlines()])
            assert bool(documents[0]) == has_result
        else:
            documents.append(list(yaml.safe_load_all(out)) if out else [])
    assert [_shape(item) for item in documents[0]] == [_shape(item) for item in documents[1]]

    code, out, err = await run_on_screen([*await filled(case.line), "-o", "name"])
    assert code == case.code, err
    assert_harmless(out + err)
    if has_result and case.names is not None:
        assert out, err
        assert [name for name in out.splitlines() if not re.fullmatch(case.names, name)] == []


def assert_harmless(text: str) -> None:
    """Nothing that a terminal could obey, and no line that only a hostile text could have made."""
    assert {character for character in text if unicodedata.category(character) in _OBEYED} - {"\n"} == set()
    assert not any(line.startswith("fluxpool: forged") for line in text.splitlines())


def _shape(document: Any) -> Any:
    """The fields of a document, however often it has them: two runs may differ in ids and times."""
    match document:
        case dict():
            return {str(name): _shape(value) for name, value in document.items()}
        case list():
            return [_shape(document[0])] if document else []
        case _:
            return None
