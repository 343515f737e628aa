"""The `fluxpool` program as a process, a forked one where it can be: its exit code and both of its streams.

`PROGRAM` is the installed one.
"""

import asyncio
import errno
import json
import os
import sys
import tempfile
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.programs.warm_start import start_program
from kit.waiting import PATIENCE

PROGRAM = str(Path(sys.executable).with_name("fluxpool"))
_SECONDS = 90.0 * PATIENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The result of a command."""

    code: int
    output: str
    complaints: str

    @property
    def document(self) -> Any:
        """Standard output as JSON; fails with standard error when there is none."""
        assert self.output, self.complaints
        return json.loads(self.output)


async def fluxpool(
    *arguments: str, folder: Path, environment: Mapping[str, str], deadline_seconds: float = _SECONDS
) -> Ended:
    """Run a command in a folder, with no other `FLUXPOOL_` variable than the given ones."""
    return await asyncio.to_thread(
        run_fluxpool, *arguments, folder=folder, environment=environment, deadline_seconds=deadline_seconds
    )


async def fluxpool_on_terminal(*arguments: str, folder: Path, environment: Mapping[str, str]) -> tuple[str, Ended]:
    """The same with a terminal as its standard error; returns its output, escapes included."""
    terminal, end_of_command = os.openpty()
    try:
        # As wide as the lines of tests, which would be wrapped otherwise.
        termios.tcsetwinsize(end_of_command, (50, 300))
        shown = asyncio.create_task(asyncio.to_thread(_read_terminal, terminal))
        try:
            ended = await asyncio.to_thread(
                run_fluxpool, *arguments, folder=folder, environment=environment, terminal=end_of_command
            )
        finally:
            os.close(end_of_command)
        return await shown, ended
    finally:
        os.close(terminal)


def run_fluxpool(
    *arguments: str,
    folder: Path,
    environment: Mapping[str, str],
    terminal: int | None = None,
    deadline_seconds: float = _SECONDS,
) -> Ended:
    """The same, blocking; `terminal` takes its standard error."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUXPOOL_")}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as complaints:
        program = start_program(
            "kit.programs.console_script",
            *arguments,
            environment={
                **kept,
                "NO_COLOR": "1",
                "COLUMNS": "300",
                "XDG_CONFIG_HOME": str(folder / ".config"),
                **environment,
            },
            output=output,
            errors=complaints if terminal is None else terminal,
            folder=folder,
            # Terminals are looked at when modules are imported.
            executed=terminal is not None,
        )
        try:
            code = program.wait(deadline_seconds)
        finally:
            program.kill()
            program.wait()
        for file in (output, complaints):
            file.seek(0)
        return Ended(code=code, output=output.read(), complaints=complaints.read())


def _read_terminal(terminal: int) -> str:
    """All output until the last writer has closed it."""
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65_536)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux's error when the last writer is gone
                raise
            return shown.decode()
