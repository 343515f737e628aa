"""Weights that are read ahead: the same tensors and the same pipeline as by the libraries' own loaders."""

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxpool_worker.engine.checkpoint import weight_reader
from fluxpool_worker.engine.checkpoint.assembly import AssemblyError, assemble, why_not_assembled
from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.checkpoint.weight_files import WEIGHTED_PARTS
from fluxpool_worker.engine.checkpoint.weight_reader import WeightReader, WeightReadError, start_reading
from fluxpool_worker.engine.generation import FluxGenerator
from fluxpool_worker.engine.protocol import Device, EngineSpec, GenerationInputs

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    return tmp_path / "model"


def started(folder: Path, *parts: str) -> WeightReader:
    reader = WeightReader(folder, parts or WEIGHTED_PARTS, CPU)
    reader.start()
    return reader


def spec_of(model: Path, **changes: Any) -> EngineSpec:
    return EngineSpec(**{"model": str(model), "device": Device.CPU, "offline": True, **changes})


def state_of(module: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, also those that are not saved."""
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}


def shard(part: Path) -> None:
    """Split a part's weights into two files with an index, as large checkpoints have them."""
    tensors = load_file(part / WEIGHTS)
    (part / WEIGHTS).unlink()
    names = [WEIGHTS.replace(".", f"-{number:05}-of-00002.", 1) for number in (1, 2)]
    where = {name: names[index % 2] for index, name in enumerate(sorted(tensors))}
    for file in names:
        save_file({name: tensors[name] for name in where if where[name] == file}, part / file)
    (part / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize("piece_bytes", [100, weight_reader.PIECE_BYTES])
def test_the_tensors_are_those_of_the_files(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int
) -> None:
    monkeypatch.setattr(weight_reader, "PIECE_BYTES", piece_bytes)

    [found] = started(tiny_checkpoint, "transformer").tensors().values()

    expected = load_file(tiny_checkpoint / "transformer" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_shards_are_read_as_their_index_names_them(checkpoint: Path, tiny_checkpoint: Path) -> None:
    shard(checkpoint / "transformer")
    save_file(
        {"stray": torch.zeros(1)}, checkpoint / "transformer" / "diffusion_pytorch_model-00003-of-00002.safetensors"
    )

    [found] = started(checkpoint, "transformer").tensors().values()

    expected = load_file(tiny_checkpoint / "transformer" / WEIGHTS)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("transformer_dtype", "encoder_dtype"),
    [("float16", "bfloat16"), ("bfloat16", "float16"), ("float32", "float32")],
)
def test_the_assembled_pipeline_is_that_of_from_pretrained(
    tiny_checkpoint: Path, transformer_dtype: str, encoder_dtype: str
) -> None:
    spec = spec_of(tiny_checkpoint, transformer_dtype=transformer_dtype, encoder_dtype=encoder_dtype)

    expected = load_pipeline(spec).pipeline
    found = load_pipeline(spec, reader=started(tiny_checkpoint)).pipeline

    for part in WEIGHTED_PARTS:
        expected_state, found_state = state_of(getattr(expected, part)), state_of(getattr(found, part))
        assert found_state.keys() == expected_state.keys()
        assert not getattr(found, part).training
        for name, tensor in expected_state.items():
            assert found_state[name].dtype is tensor.dtype, name
            assert torch.equal(found_state[name], tensor), name


def test_an_assembled_pipeline_generates_the_same_pixels(tiny_checkpoint: Path) -> None:
    spec, inputs = spec_of(tiny_checkpoint), GenerationInputs(prompt="a kite", width=64, height=64, steps=2, seed=7)

    drawings = [
        FluxGenerator(load_pipeline(spec, reader=reader)).generate(
            inputs, on_step=lambda _step, _total: None, is_canceled=lambda: False
        )
        for reader in (None, started(tiny_checkpoint))
    ]

    assert (drawings[0].images[0] == drawings[1].images[0]).all()


def cut_short(checkpoint: Path) -> None:
    path = checkpoint / "vae" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def lie_about_a_shape(checkpoint: Path) -> None:
    path = checkpoint / "vae" / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"] = [1]
    changed = json.dumps(header).encode()
    path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])


def index_without_files(checkpoint: Path) -> None:
    (checkpoint / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": ["x"]}))


def header_of_another_kind(checkpoint: Path) -> None:
    (checkpoint / "vae" / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"[]")


def shape_below_zero(checkpoint: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode()
    (checkpoint / "vae" / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def name_a_file_elsewhere(checkpoint: Path) -> None:
    (checkpoint / "vae" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"x": "../other.safetensors"}}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_short, "ended early"),
        (lie_about_a_shape, "bytes for the shape"),
        (name_a_file_elsewhere, "outside vae/"),
        (index_without_files, "AttributeError"),
        (header_of_another_kind, "AttributeError"),
        (shape_below_zero, "RuntimeError"),
    ],
)
def test_files_that_cannot_be_read_are_named(checkpoint: Path, damage: Any, message: str) -> None:
    damage(checkpoint)

    with pytest.raises(WeightReadError, match=message):
        started(checkpoint).tensors()


def test_a_checkpoint_with_weights_of_an_unknown_kind_is_loaded_by_diffusers(checkpoint: Path) -> None:
    path = checkpoint / "transformer" / WEIGHTS
    tensors = load_file(path)
    save_file({name: tensor.to(torch.float64) for name, tensor in tensors.items()}, path)

    loaded = load_pipeline(spec_of(checkpoint, transformer_dtype="float32"), reader=started(checkpoint))

    weight = loaded.pipeline.transformer.x_embedder.weight
    assert torch.equal(weight, tensors["x_embedder.weight"])


@pytest.mark.parametrize("change", [{"extra.weight": torch.zeros(2)}, {"x_embedder.weight": None}])
def test_weights_that_do_not_fit_the_modules_are_refused(checkpoint: Path, change: dict[str, Any]) -> None:
    tensors = started(checkpoint).tensors()
    for name, tensor in change.items():
        if tensor is None:
            del tensors["transformer"][name]
        else:
            tensors["transformer"][name] = tensor

    with pytest.raises(AssemblyError, match=next(iter(change))):
        assemble(checkpoint, tensors, dtypes=dict.fromkeys(WEIGHTED_PARTS, torch.float32), device=CPU)


@pytest.mark.parametrize("unusual", ["quantization_config", "auto_map"])
def test_a_part_of_another_format_is_loaded_by_diffusers(checkpoint: Path, unusual: str) -> None:
    path = checkpoint / "text_encoder_2" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), unusual: {}}))

    assert why_not_assembled(checkpoint) == f"text_encoder_2 has a {unusual}"


def test_a_part_of_another_class_is_loaded_by_diffusers(checkpoint: Path) -> None:
    path = checkpoint / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vae": ["diffusers", "AutoencoderTiny"]}))

    assert why_not_assembled(checkpoint) == "vae is a AutoencoderTiny"


def test_nothing_is_read_ahead_for_a_cpu(tiny_checkpoint: Path) -> None:
    assert start_reading(spec_of(tiny_checkpoint)) is None


def test_memory_is_freed_when_the_caller_drops_a_tensor(tiny_checkpoint: Path) -> None:
    reader = started(tiny_checkpoint)
    tensors = reader.tensors()
    watched = weakref.ref(tensors["transformer"]["x_embedder.weight"].untyped_storage())

    del tensors["transformer"]["x_embedder.weight"]
    gc.collect()

    assert watched() is None


def test_a_discarded_reader_holds_no_tensors(tiny_checkpoint: Path) -> None:
    reader = started(tiny_checkpoint)

    reader.discard()

    assert not any(reader.tensors().values())
