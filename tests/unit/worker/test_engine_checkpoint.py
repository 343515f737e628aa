"""The tiny checkpoint, and the errors of folders and ids that cannot be loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.generator import CheckpointError
from fluxpool_worker.engine.protocol import Device, EngineSpec
from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def spec_of(model: Path | str, **changes: Any) -> EngineSpec:
    return EngineSpec(**{"model": str(model), "device": Device.CPU, "offline": True, **changes})


def test_the_tiny_checkpoint_is_the_same_bytes_every_time(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_tiny_checkpoint(tmp_path / "again")

    again = files_of(tmp_path / "again")
    assert again == files_of(tiny_checkpoint)
    assert sum(map(len, again.values())) < 1_500_000


def test_another_seed_gives_other_weights(tmp_path: Path, tiny_checkpoint: Path) -> None:
    write_tiny_checkpoint(tmp_path / "other", seed=1)

    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert files_of(tmp_path / "other")[weights] != files_of(tiny_checkpoint)[weights]


def test_building_the_tiny_checkpoint_does_not_change_torchs_random_state(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()

    write_tiny_checkpoint(tmp_path / "model")

    assert torch.equal(torch.random.get_rng_state(), before)


def test_writing_again_changes_no_file_and_leaves_no_staging_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_tiny_checkpoint(folder)
    written = (folder / "model_index.json").stat()

    write_tiny_checkpoint(folder)

    again = (folder / "model_index.json").stat()
    assert (again.st_mtime_ns, again.st_ino) == (written.st_mtime_ns, written.st_ino)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    write_tiny_checkpoint(tmp_path / "model")

    assert load_pipeline(spec_of(tmp_path / "model")).model == "model"


@pytest.mark.parametrize("present", ["model_index.json", "notes.txt"])
def test_a_folder_with_other_content_is_never_overwritten(tmp_path: Path, present: str) -> None:
    (tmp_path / present).write_text("{}")

    with pytest.raises(FileExistsError, match="not empty and not the tiny checkpoint"):
        write_tiny_checkpoint(tmp_path)

    assert files_of(tmp_path) == {present: b"{}"}


def test_a_checkpoint_of_another_seed_is_not_replaced(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "model")

    with pytest.raises(FileExistsError, match="delete this one yourself"):
        write_tiny_checkpoint(tmp_path / "model", seed=5)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")

    with pytest.raises(FileExistsError, match="is a file"):
        write_tiny_checkpoint(tmp_path / "model")


def test_a_folder_is_loaded_in_the_requested_dtypes(tiny_checkpoint: Path) -> None:
    loaded = load_pipeline(spec_of(tiny_checkpoint, transformer_dtype="float32", encoder_dtype="float16"))

    assert loaded.model == tiny_checkpoint.name
    assert loaded.device == torch.device("cpu")
    assert loaded.pipeline.transformer.dtype is torch.float32
    assert loaded.pipeline.vae.dtype is torch.float16
    # transformers keeps these in float32 because T5 overflows in float16.
    t5_outputs = [w for name, w in loaded.pipeline.text_encoder_2.named_parameters() if name.endswith(".wo.weight")]
    assert t5_outputs
    assert {weight.dtype for weight in t5_outputs} == {torch.float32}


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_auto_takes_the_cpu_where_there_is_no_cuda_and_cuda_is_refused(tiny_checkpoint: Path) -> None:
    assert load_pipeline(spec_of(tiny_checkpoint, device=Device.AUTO)).device.type == "cpu"

    with pytest.raises(CheckpointError, match="device: 'cuda' was requested but torch finds no CUDA device"):
        load_pipeline(spec_of(tiny_checkpoint, device=Device.CUDA))


@pytest.mark.parametrize("setting", ["transformer_dtype", "encoder_dtype"])
def test_a_wrong_dtype_names_the_right_ones(tiny_checkpoint: Path, setting: str) -> None:
    with pytest.raises(CheckpointError, match=f"{setting}: 'fp16' .* use one of float16, bfloat16, float32"):
        load_pipeline(spec_of(tiny_checkpoint, **{setting: "fp16"}))


@pytest.mark.parametrize("model", ["/nowhere/flux", "./flux", "~/nowhere/flux", "models/local/flux"])
def test_a_missing_folder_is_reported_as_missing(model: str) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder; mount the checkpoint"):
        load_pipeline(spec_of(model))


def test_a_folder_without_an_index_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_index\.json is missing"):
        load_pipeline(spec_of(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps({"_class_name": "StableDiffusionPipeline"}), "names the pipeline 'StableDiffusionPipeline'"),
        (json.dumps({}), "names the pipeline 'None'"),
        (json.dumps([]), "names the pipeline 'None'"),
        ("{", "is not JSON"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model_index.json").write_text(content)

    with pytest.raises(CheckpointError, match=message):
        load_pipeline(spec_of(tmp_path))


def test_an_empty_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="model is empty; name a checkpoint folder"):
        load_pipeline(spec_of(""))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("transformer", "lacks transformer/; fetch"),
        ("tokenizer_2", "lacks tokenizer_2/; fetch"),
        ("tokenizer_2/tokenizer.json", "lacks tokenizer_2/tokenizer.json or tokenizer_2/spiece.model; fetch"),
        ("tokenizer/tokenizer_config.json", "lacks tokenizer/tokenizer_config.json; fetch"),
        ("transformer/diffusion_pytorch_model.safetensors", "transformer/ has no weights; fetch"),
        ("text_encoder/config.json", "cannot be loaded .*; fetch"),
    ],
)
def test_missing_files_of_a_checkpoint_are_named(
    tmp_path: Path, tiny_checkpoint: Path, lost: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    if (folder / lost).is_dir():
        shutil.rmtree(folder / lost)
    else:
        (folder / lost).unlink()

    with pytest.raises(CheckpointError, match=message):
        load_pipeline(spec_of(folder))


def test_a_truncated_file_of_a_checkpoint_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])

    with pytest.raises(
        CheckpointError, match=r"transformer/diffusion_pytorch_model.safetensors is cut short: .*; fetch"
    ):
        load_pipeline(spec_of(folder))


def test_code_that_comes_with_a_checkpoint_is_never_run(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "transformer" / "mine.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Mine: ...\n")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"transformer": ["mine", "Mine"]}))

    with pytest.raises(CheckpointError, match=r"takes 'transformer' from \['mine'\]; only parts of diffusers"):
        load_pipeline(spec_of(folder))
    assert not (tmp_path / "executed").exists()


def test_only_a_variant_of_the_weights_is_named_as_such(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, folder)
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))

    with pytest.raises(CheckpointError, match=r"has only the variant fp16 of its weights .* \(and 3 more problems\)"):
        load_pipeline(spec_of(folder))


def test_an_id_that_is_not_cached_is_refused_at_once_when_offline() -> None:
    with pytest.raises(CheckpointError, match="offline and not whole in the local cache"):
        load_pipeline(spec_of("black-forest-labs/FLUX.1-nonexistent", revision="main"))


def test_a_name_that_is_neither_folder_nor_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match="neither a folder that exists nor a model id"):
        load_pipeline(spec_of("-bad-/-id-"))
