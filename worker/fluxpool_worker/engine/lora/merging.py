"""Which LoRAs are in the weights now, and the switch to those of the next job.

All adapters of a job are added to a layer's original weight in float32 and rounded once. Weights change in place, so
that packed views of their memory (`fused.weights`) see the change. An error on the way leaves the weights as the
checkpoint has them; where even that fails, the next switch tries it again before the next generation.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from fluxpool_worker.engine.generator import InputsError
from fluxpool_worker.engine.lora.lora_files import LoraFile, LoraFolder
from fluxpool_worker.engine.lora.low_rank import LowRank, read_lora
from fluxpool_worker.engine.lora.originals import Originals
from fluxpool_worker.engine.protocol import AppliedLora

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A file with the scale that a job gives it."""

    file: LoraFile
    scale: float


class LoraMerger:
    """Merges LoRAs into one transformer; not thread-safe."""

    def __init__(
        self,
        transformer: Any,
        *,
        folder: LoraFolder,
        originals: Originals,
        on_change: Callable[[Collection[str]], None] = lambda _names: None,
    ) -> None:
        """`on_change` gets the names of the layers whose weights have changed, after each change."""
        self._transformer, self._folder, self._originals = transformer, folder, originals
        self._on_change = on_change
        self._merged: tuple[_Scaled, ...] = ()
        self._touched: tuple[str, ...] = ()
        self._warnings: tuple[str, ...] = ()

    def switch(self, wanted: Sequence[AppliedLora]) -> tuple[bool, tuple[str, ...]]:
        """Have exactly these LoRAs in the weights; returns whether they changed, and warnings about the files.

        Raises `InputsError` for what cannot be merged, and whatever the folder or the checkpoint raises when it cannot
        be read; the weights are the checkpoint's then.
        """
        scaled = tuple(_Scaled(self._folder.find(lora.name), lora.scale) for lora in wanted)
        if scaled == self._merged and bool(self._touched) == bool(scaled):
            return False, self._warnings
        self._restore()
        contents = [read_lora(item.file.path, name=item.file.name) for item in scaled]
        changes: dict[str, list[LowRank]] = {}
        for item, content in zip(scaled, contents, strict=True):
            for layer, change in content.changes.items():
                self._check(item.file.name, layer, change)
                times = LowRank(down=change.down, up=change.up, scale=item.scale * change.scale)
                changes.setdefault(layer, []).append(times)
        self._merge(changes)
        self._merged = scaled
        self._warnings = tuple(warning for content in contents for warning in content.warnings)
        log.info("loras_merged", loras=[item.file.name for item in scaled], layers=len(changes))
        return True, self._warnings

    def _check(self, name: str, layer: str, change: LowRank) -> None:
        try:
            module = self._transformer.get_submodule(layer)
        except AttributeError:
            module = None
        if not isinstance(module, torch.nn.Linear):
            raise InputsError(f"loras: {name!r} changes {layer[:200]}, which is no linear layer of this model")
        shape = (change.up.shape[0], change.down.shape[1])
        if module.weight.shape != shape:
            raise InputsError(
                f"loras: {name!r} does not fit this model: {layer[:200]} is {tuple(module.weight.shape)}, not {shape}"
            )

    def _merge(self, changes: Mapping[str, Sequence[LowRank]]) -> None:
        if not changes:
            return
        with torch.no_grad():
            self._originals.keep(self._weights(changes))
            # Before the first change: an error from here on must restore all.
            self._touched = tuple(changes)
            try:
                for layer, several in changes.items():
                    _add(self._transformer.get_submodule(layer).weight, several)
                self._on_change(self._touched)
            except BaseException:
                self._restore()
                raise

    def _restore(self) -> None:
        self._merged, self._warnings = (), ()
        if not self._touched:
            return
        with torch.no_grad():
            self._originals.restore(self._weights(self._touched))
            self._on_change(self._touched)
        self._touched = ()

    def _weights(self, layers: Collection[str]) -> dict[str, torch.Tensor]:
        """By their names in the checkpoint's files."""
        return {f"{layer}.weight": self._transformer.get_submodule(layer).weight for layer in layers}


def _add(weight: torch.Tensor, changes: Sequence[LowRank]) -> None:
    total = weight.float()
    if total is weight:
        total = weight.clone()
    for change in changes:
        up, down = (matrix.to(device=weight.device, dtype=torch.float32) for matrix in (change.up, change.down))
        total.addmm_(up, down, alpha=change.scale)
    weight.copy_(total)
