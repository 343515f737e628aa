"""Whether the weight files of a checkpoint folder can be loaded, and what to do where they cannot. No torch.

Looks at names, index files and headers, never at the weights themselves, so a checkpoint of 30 GB is checked in
milliseconds, and before anything else is loaded. Only safetensors are accepted: any other format is a pickle, which can
run foreign code (huggingface/diffusers#10928 and #9141 are about what loaders say otherwise).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

INDEX_FILE: Final = "model_index.json"
WEIGHTED_PARTS: Final = ("transformer", "text_encoder", "text_encoder_2", "vae")

SAFETENSORS: Final = ".safetensors"
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
MAX_HEADER_BYTES: Final = 100 * 1024 * 1024
"""The limit of the format."""
LFS_POINTER: Final = b"version https://git-lfs"

_VARIANT: Final = re.compile(
    r"(?:model|diffusion_pytorch_model)(?:-\d+-of-\d+)?\.(?P<variant>[A-Za-z0-9_]+)\.safetensors"
)
_VARIANT_SHARD: Final = re.compile(
    r"(?:model|diffusion_pytorch_model)\.(?P<variant>[A-Za-z0-9_]+)-\d+-of-\d+\.safetensors"
)
_WEIGHTS: Final = re.compile(r"(?:model|diffusion_pytorch_model)(?:-\d+-of-\d+)?\.safetensors")


def weight_problems(part: Path) -> Iterator[str]:
    """What is wrong with the weights in one part's folder, such as `transformer`; nothing when they can be loaded."""
    index = _index_of(part)
    if index is not None:
        yield from _sharded_problems(part, index)
        return
    weights = _unsharded(part)
    if not weights:
        yield _why_none(part)
    for path in weights:
        yield from file_problems(path, name=f"{part.name}/{path.name}")


def weight_paths(part: Path) -> list[Path]:
    """The weight files in one part's folder that `from_pretrained` would read.

    Raises `OSError`, `ValueError` or `KeyError` where `weight_problems` names a problem.
    """
    index = _index_of(part)
    if index is None:
        return _unsharded(part)
    shards = _shards(index)
    if any(Path(shard).name != shard for shard in shards):
        raise ValueError(f"{index.name} names files outside {part.name}/")
    return [part / shard for shard in shards]


def _index_of(part: Path) -> Path | None:
    """The index of a part whose weights are in several files."""
    names = ("diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json")
    return next((part / name for name in names if (part / name).exists()), None)


def _shards(index: Path) -> list[str]:
    return sorted(set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))


def _unsharded(part: Path) -> list[Path]:
    return [path for path in sorted(part.glob("*" + SAFETENSORS)) if _WEIGHTS.fullmatch(path.name)]


def _why_none(part: Path) -> str:
    names = sorted(path.name for path in part.iterdir() if path.is_file())
    matches = [match for name in names if (match := _VARIANT.fullmatch(name) or _VARIANT_SHARD.fullmatch(name))]
    if matches:
        variants = ", ".join(sorted({match["variant"] for match in matches}))
        return (
            f"{part.name}/ has only the variant {variants} of its weights ({matches[0].string}); variants are not "
            "loaded: fetch the checkpoint without a variant, or remove "
            f"'.{matches[0]['variant']}' from the names of the files and of their index"
        )
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled:
        return (
            f"{part.name}/{pickled[0]} holds pickled weights, which can run code and are not loaded; fetch the "
            "checkpoint as safetensors, or convert it"
        )
    return f"{part.name}/ has no weights; fetch the checkpoint again"


def _sharded_problems(part: Path, index: Path) -> Iterator[str]:
    try:
        shards = _shards(index)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        yield f"{part.name}/{index.name} cannot be read ({type(error).__name__}); fetch it again"
        return
    for shard in shards:
        if "/" in shard or not shard.endswith(SAFETENSORS):
            yield f"{part.name}/{index.name} names {shard!r}, which is no safetensors file beside it; fetch it again"
        elif not (part / shard).is_file():
            yield f"{part.name}/{shard} is missing; fetch the checkpoint again"
        else:
            yield from file_problems(part / shard, name=f"{part.name}/{shard}")


def file_problems(path: Path, *, name: str) -> Iterator[str]:
    """What is wrong with one safetensors file, by its beginning and its size; `name` is what the messages call it."""
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_POINTER))
            if head == LFS_POINTER:
                yield f"{name} is a pointer of Git LFS and not the file; run `git lfs pull` in the checkpoint's folder"
                return
            length = int.from_bytes(head[:8], "little")
            file.seek(8)
            header = file.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
        promised = 8 + length + _weights_end(json.loads(header))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        yield f"{name} is no safetensors file, or its beginning is damaged ({type(error).__name__}); fetch it again"
        return
    size = path.stat().st_size
    if size != promised:
        what = "cut short" if size < promised else "longer than its header says"
        yield f"{name} is {what}: {size} bytes instead of {promised}; fetch it again, and check that its download ended"


def _weights_end(header: dict[str, Any]) -> int:
    """Where the last tensor ends, counted from the end of the header."""
    return max((int(tensor["data_offsets"][1]) for name, tensor in header.items() if name != "__metadata__"), default=0)
