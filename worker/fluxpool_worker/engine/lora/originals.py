"""The weights as the checkpoint has them, for as long as they are changed in place.

Kept on the device where there is room, for which a switch takes tens of milliseconds; else read from the checkpoint's
files again, which takes no memory. Both give back the same bits.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from fluxpool_worker.engine.checkpoint.weight_files import weight_paths

RESERVE_BYTES: Final = 16 * 1024**3
"""Device memory that stays free beside kept weights, for the largest pictures."""


class Originals:
    """The unchanged weights of one transformer."""

    def __init__(self, folder: Path, *, free_bytes: Callable[[torch.device], int] | None = None) -> None:
        """`folder` holds the transformer's weight files; `free_bytes` tells how much memory of a device is free."""
        self._folder = folder
        self._free_bytes = free_bytes or _free_bytes
        self._kept: dict[str, torch.Tensor] = {}

    def keep(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Called before these weights change, and only while they are unchanged."""
        needed = sum(weight.numel() * weight.element_size() for weight in weights.values())
        device = next(iter(weights.values())).device if weights else torch.device("cpu")
        if self._free_bytes(device) - needed < RESERVE_BYTES:
            return
        self._kept = {name: weight.clone() for name, weight in weights.items()}

    def restore(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Give these weights their values back; raises `OSError`, `ValueError` or `KeyError` when that cannot be."""
        read = {name: weight for name, weight in weights.items() if name not in self._kept}
        for name in weights.keys() & self._kept.keys():
            weights[name].copy_(self._kept[name])
        if read:
            self._read(read)
        self._kept = {}

    def _read(self, weights: Mapping[str, torch.Tensor]) -> None:
        with ExitStack() as closing:
            files = _by_weight(closing, weight_paths(self._folder))
            for name, weight in weights.items():
                # As when the checkpoint was loaded: one rounding, from the file's dtype to the weight's.
                weight.copy_(files[name].get_tensor(name).to(weight.dtype))


def _by_weight(closing: ExitStack, paths: Iterable[Path]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    for path in paths:
        file: Any = closing.enter_context(safe_open(path, framework="pt"))
        files |= dict.fromkeys(file.keys(), file)
    return files


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds and does not use is free as well.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
