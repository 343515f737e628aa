"""Weight files that cannot be loaded are reported before anything is loaded."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxpool_worker.engine.checkpoint.weight_files import weight_problems

HEADER = json.dumps({"__metadata__": {"format": "pt"}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})
WHOLE = len(HEADER).to_bytes(8, "little") + HEADER.encode() + bytes(8)
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
SHARDS = {"model-00001-of-00002.safetensors": WHOLE, "model-00002-of-00002.safetensors": WHOLE}


def part_with(folder: Path, files: Mapping[str, bytes]) -> Path:
    part = folder / "transformer"
    part.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (part / name).write_bytes(content)
    return part


@pytest.mark.parametrize(
    "files",
    [
        {"diffusion_pytorch_model.safetensors": WHOLE},
        {"model.safetensors": WHOLE},
        {"model.safetensors.index.json": INDEX.encode(), **SHARDS},
        {"model.safetensors": WHOLE, "model.fp16.safetensors": b"", "pytorch_model.bin": pickle.dumps({})},
    ],
)
def test_complete_safetensors_have_no_problem(tmp_path: Path, files: Mapping[str, bytes]) -> None:
    assert list(weight_problems(part_with(tmp_path, files))) == []


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "transformer/ has no weights; fetch"),
        ({"model.fp16.safetensors": WHOLE}, "only the variant fp16"),
        ({"diffusion_pytorch_model-00001-of-00003.bf16.safetensors": WHOLE}, "only the variant bf16"),
        ({"diffusion_pytorch_model.fp16-00001-of-00003.safetensors": WHOLE}, "only the variant fp16"),
        ({"diffusion_pytorch_model.bin": pickle.dumps({})}, "diffusion_pytorch_model.bin holds pickled weights"),
        ({"model.pt": pickle.dumps({})}, "model.pt holds pickled weights"),
        ({"model.safetensors": WHOLE[:-1]}, "is cut short"),
        ({"model.safetensors": WHOLE + b"x"}, "is longer than its header says"),
        ({"model.safetensors": b""}, "is no safetensors file"),
        ({"model.safetensors": bytes(4096)}, "is no safetensors file"),
        ({"model.safetensors": pickle.dumps({"a": 1})}, "is no safetensors file"),
        ({"model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"}, "run `git lfs pull`"),
        ({"model.safetensors.index.json": b"{"}, "cannot be read"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": 1}}'}, "no safetensors file beside it"),
        ({"model.safetensors.index.json": b'{"weight_map": []}'}, "cannot be read"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
            "no safetensors file beside it",
        ),
        ({"model.safetensors.index.json": INDEX.encode()}, "model-00001-of-00002.safetensors is missing"),
    ],
)
def test_unloadable_files_are_named_with_the_remedy(tmp_path: Path, files: Mapping[str, bytes], problem: str) -> None:
    assert problem in next(weight_problems(part_with(tmp_path, files)))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=64).map(lambda rest: len(HEADER).to_bytes(8, "little") + rest))
def test_any_bytes_are_a_problem_and_never_an_error(tmp_path: Path, content: bytes) -> None:
    assert len(list(weight_problems(part_with(tmp_path, {"model.safetensors": content})))) == 1
