"""The folder that a pool offers LoRAs from: names to files. No torch.

The folder is the allow-list: a task names a file in it, without its suffix, and nothing else. Only safetensors are
accepted: any other format is a pickle, which can run foreign code.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fluxpool_worker.engine.checkpoint.weight_files import PICKLES, SAFETENSORS, file_problems
from fluxpool_worker.engine.generator import InputsError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SHOWN_NAMES: Final = 20
"""In the message that refuses an unknown name."""
MAX_FILE_BYTES: Final = 4 * 1024**3
"""A LoRA of rank 128 over all of FLUX.1's layers takes 1.4 GB in half precision."""


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A file at one moment: another size or time means that it was replaced."""

    name: str
    path: Path
    size_bytes: int
    modified_ns: int


class LoraFolder:
    """Finds files by their names."""

    def __init__(self, folder: Path | None) -> None:
        """None: the pool offers no LoRAs."""
        self._folder = folder

    def find(self, name: str) -> LoraFile:
        """The file of a LoRA.

        Raises `InputsError` for a name that is not offered and for a file that is no LoRA, `OSError` for a folder that
        cannot be read.
        """
        if self._folder is None:
            raise InputsError("loras: this pool offers none; leave them out, or set FLUXPOOL_MODEL_LORA_FOLDER")
        names = sorted(path.name for path in self._folder.iterdir() if NAME.fullmatch(path.name) and path.is_file())
        if f"{name}{SAFETENSORS}" not in names:
            raise InputsError(f"loras: {_why_unknown(name, names)}")
        path = self._folder / f"{name}{SAFETENSORS}"
        status = path.stat()
        if status.st_size > MAX_FILE_BYTES:
            raise InputsError(f"loras: {name!r} has {status.st_size} bytes; at most {MAX_FILE_BYTES} are read")
        for problem in file_problems(path, name=path.name):
            raise InputsError(f"loras: {problem}")
        return LoraFile(name=name, path=path, size_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _why_unknown(name: str, files: list[str]) -> str:
    pickled = next((f"{name}{suffix}" for suffix in PICKLES if f"{name}{suffix}" in files), None)
    if pickled is not None:
        return f"{pickled} is a pickle, which can run code and is not loaded; convert it to safetensors"
    known = [file.removesuffix(SAFETENSORS) for file in files if file.endswith(SAFETENSORS)]
    if not known:
        return f"{name!r} is unknown; the pool's LoRA folder has no safetensors file"
    shown = ", ".join(known[:SHOWN_NAMES])
    more = f" and {len(known) - SHOWN_NAMES} more" if len(known) > SHOWN_NAMES else ""
    return f"{name!r} is unknown; the pool has {shown}{more}"
