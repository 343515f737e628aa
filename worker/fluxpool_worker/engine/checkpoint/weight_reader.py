"""Reads a checkpoint's weights to their device in threads, while the main thread imports diffusers. Needs torch alone.

Each thread reads pieces of files into pinned memory, from where the GPU's copy engine takes them. Seen on an H200 with
files in the page cache: 21 GB/s with 8 threads, where `from_pretrained` reads 5 GB/s. Every tensor has memory of its
own, so that one that is replaced later, as by packing, frees it.
"""

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from fluxpool_worker.engine.checkpoint.offloading import why_offload
from fluxpool_worker.engine.checkpoint.weight_files import (
    INDEX_FILE,
    MAX_HEADER_BYTES,
    WEIGHTED_PARTS,
    weight_paths,
)
from fluxpool_worker.engine.protocol import Device, EngineSpec

THREADS: Final = 8
"""Measured: 16 are not faster."""
PIECE_BYTES: Final = 32 * 1024 * 1024
"""Two pinned buffers of this size a thread."""
DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


class WeightReadError(Exception):
    """The weights cannot be read this way; the message says why. `from_pretrained` may still read them."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of a file that belong to one tensor, and where they go."""

    path: Path
    offset: int
    target: torch.Tensor


def start_reading(spec: EngineSpec) -> "WeightReader | None":
    """A started reader, where the model is a folder and there is a GPU; a CPU reads best by mapping the files."""
    folder = Path(spec.model).expanduser()
    if spec.device is Device.CPU or not torch.cuda.is_available() or not (folder / INDEX_FILE).is_file():
        return None
    if why_offload(spec, folder) is not None:
        return None
    reader = WeightReader(folder, WEIGHTED_PARTS, torch.device("cuda", 0))
    reader.start()
    return reader


class WeightReader:
    """Reads all weights of some parts of a checkpoint; `start`, then `tensors` once for each part."""

    def __init__(self, folder: Path, parts: Sequence[str], device: torch.device) -> None:
        """Read nothing yet. `parts` are folders of `folder`, such as `transformer`."""
        self._folder, self._device = folder, device
        self._parts: dict[str, dict[str, torch.Tensor]] = {name: {} for name in parts}
        self._pieces: list[_Piece] = []
        self._next = 0
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Allocate and begin to read; an error is raised by `tensors`."""
        try:
            for name, tensors in self._parts.items():
                for path in weight_paths(self._folder / name):
                    self._plan(path, tensors)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            # Files are read before they are checked: `tensors` reports what a damaged header causes here.
            self._error = error
            return
        # Large pieces first, so that no thread begins with one when the others have ended.
        self._pieces.sort(key=lambda piece: -piece.target.numel())
        self._threads = [threading.Thread(target=self._read, name="weights", daemon=True) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Part -> name -> tensor on the device, in the dtype of the file; waits until all are read.

        Raises `WeightReadError`.
        """
        for thread in self._threads:
            thread.join()
        # They refer to the tensors, whose memory must be free again once the caller has dropped them.
        self._pieces.clear()
        if self._error is not None:
            raise WeightReadError(f"{type(self._error).__name__}: {self._error}") from self._error
        return self._parts

    def discard(self) -> None:
        """Stop reading and free all memory."""
        with self._lock:
            self._next = len(self._pieces)
        for thread in self._threads:
            thread.join()
        self._pieces.clear()
        for tensors in self._parts.values():
            tensors.clear()

    def _plan(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        header, begin = _read_header(path)
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device=self._device)
            if tensor.numel() * tensor.element_size() != end - start:
                raise ValueError(f"{path.name}: {name} has {end - start} bytes for the shape {entry['shape']}")
            tensors[name] = tensor
            if not tensor.numel():
                continue
            target = tensor.view(-1).view(torch.uint8)
            self._pieces += [
                _Piece(path, begin + start + at, target[at : at + PIECE_BYTES])
                for at in range(0, end - start, PIECE_BYTES)
            ]

    def _read(self) -> None:
        """One thread; two buffers, so that one is filled while the other is copied."""
        descriptors: dict[Path, int] = {}
        try:
            with contextlib.ExitStack() as closing:
                copier = _Copier(self._device)
                while (piece := self._take()) is not None:
                    if piece.path not in descriptors:
                        descriptors[piece.path] = os.open(piece.path, os.O_RDONLY)
                        closing.callback(os.close, descriptors[piece.path])
                    copier.copy(descriptors[piece.path], piece.offset, piece.target)
                copier.finish()
        except Exception as error:  # noqa: BLE001 - a thread has no caller to raise to; `tensors` raises it
            self._error = error

    def _take(self) -> _Piece | None:
        with self._lock:
            if self._error is not None or self._next >= len(self._pieces):
                return None
            piece = self._pieces[self._next]
            self._next += 1
            return piece


class _Copier:
    """Bytes of files into tensors: through pinned memory to a GPU, directly on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if not self._cuda:
            return
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._buffers = [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._filled = 0

    def copy(self, descriptor: int, offset: int, target: torch.Tensor) -> None:
        """Read `target.numel()` bytes from `offset` into `target`; a copy to a GPU is only queued."""
        if not self._cuda:
            _fill(target, descriptor, offset)
            return
        index, count = self._filled, target.numel()
        # The buffer's last copy must have left it before it is filled again.
        if (copied := self._copied[index]) is not None:
            copied.synchronize()
        buffer = self._buffers[index][:count]
        _fill(buffer, descriptor, offset)
        with torch.cuda.stream(self._stream):
            target.copy_(buffer, non_blocking=True)
            self._copied[index] = event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
        self._filled ^= 1

    def finish(self) -> None:
        """Wait for the queued copies."""
        if self._cuda:
            self._stream.synchronize()


def _fill(target: torch.Tensor, descriptor: int, offset: int) -> None:
    """Bytes of a file into a tensor of bytes in host memory."""
    view: Any = memoryview(target.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(view):
        read = os.preadv(descriptor, [view[done:]], offset + done)
        if not read:
            raise OSError("the file ended early; fetch the checkpoint again")
        done += read


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries of a safetensors file, and where its data begins (huggingface/safetensors, "Format")."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} has a header of {length} bytes")
        return json.loads(file.read(length)), 8 + length
