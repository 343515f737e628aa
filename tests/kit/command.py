"""The installed `fluxpool` program as a shell runs it: its exit code and both of its streams."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("fluxpool"))
_SECONDS = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    complaints: str

    @property
    def document(self) -> Any:
        """Standard output as JSON; fails with the complaints when there is none."""
        assert self.output, self.complaints
        return json.loads(self.output)


async def fluxpool(*arguments: str, folder: Path, environment: Mapping[str, str]) -> Ended:
    """Run a command in a folder, with no other `FLUXPOOL_` variable than the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUXPOOL_")}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=folder,
            env={**kept, "NO_COLOR": "1", "COLUMNS": "300", **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )

    ended = await asyncio.to_thread(run)
    return Ended(code=ended.returncode, output=ended.stdout, complaints=ended.stderr)
