"""A model that cannot be loaded is reported before anything is started."""

import json
import struct
from pathlib import Path

import pytest

from fluxpool_cli.local.workers.model_check import ModelError, checked_model

INDEX = {
    "_class_name": "FluxPipeline",
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "image_encoder": [None, None],
}


def weights(size_bytes: int) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return (struct.pack("<Q", len(header)) + header + bytes(16))[:size_bytes]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "my model"
    for name in ("transformer", "vae"):
        (folder / name).mkdir(parents=True)
        (folder / name / "diffusion_pytorch_model.safetensors").write_bytes(weights(1000))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def test_a_complete_checkpoint_is_passed_on_as_its_absolute_path(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    assert checked_model("my model") == str(checkpoint)


@pytest.mark.parametrize("hub_id", ["black-forest-labs/FLUX.1-dev", "flux"])
def test_a_hub_id_is_passed_on_unchanged(hub_id: str) -> None:
    assert checked_model(hub_id) == hub_id


@pytest.mark.parametrize(
    "model", ["/nonexistent", "./models/flux", "a/b/c", "models\\flux", "a b", "x" * 5000, "~unknown-here/flux"]
)
def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(model: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        checked_model(model)


@pytest.mark.parametrize("cut", [0, 5, 30, -1])
def test_an_incomplete_download_is_named_by_its_file(checkpoint: Path, cut: int) -> None:
    file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(weights(cut))
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model\.safetensors .*fetch it again"):
        checked_model(str(checkpoint))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (
            '{"_class_name": "StableDiffusionPipeline"}',
            r"names the pipeline 'StableDiffusionPipeline', .*use FLUX\.1-dev, FLUX\.1-Krea-dev, FLUX\.1-schnell",
        ),
        ("{", "cannot be read"),
        ("[]", "names the pipeline 'None'"),
        (json.dumps({**INDEX, "text_encoder": ["transformers", "CLIPTextModel"]}), "lacks the folder text_encoder"),
    ],
)
def test_an_index_that_does_not_fit_is_named(checkpoint: Path, index: str, words: str) -> None:
    (checkpoint / "model_index.json").write_text(index)
    with pytest.raises(ModelError, match=words):
        checked_model(str(checkpoint))


def test_a_file_and_a_folder_without_index_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        checked_model(str(checkpoint / "model_index.json"))
    with pytest.raises(ModelError, match=r"has no model_index\.json"):
        checked_model(str(checkpoint / "vae"))
