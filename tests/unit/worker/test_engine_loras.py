"""LoRAs in the weights of the tiny checkpoint: the same pictures as with adapters beside them, and none afterwards."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fluxpool_contract.messages import Quality
from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.fused.denoising import FusedDenoiser
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.generation import FluxGenerator
from fluxpool_worker.engine.generator import InputsError, Rendering
from fluxpool_worker.engine.lora.lora_files import LoraFolder
from fluxpool_worker.engine.lora.merging import LoraMerger
from fluxpool_worker.engine.lora.originals import Originals
from fluxpool_worker.engine.protocol import AppliedLora, Device, EngineSpec, GenerationInputs

INPUTS = GenerationInputs(prompt="a red fox in the snow", width=64, height=48, steps=3, seed=11)
RANK = 4
QUERY = "transformer_blocks.0.attn.to_q"
OUTPUT = "single_transformer_blocks.1.proj_out"
LAYERS = {
    QUERY: (32, 32),
    "transformer_blocks.1.attn.add_v_proj": (32, 32),
    "transformer_blocks.0.ff.net.0.proj": (128, 32),
    "transformer_blocks.0.norm1.linear": (192, 32),
    "single_transformer_blocks.0.attn.to_k": (32, 32),
    OUTPUT: (32, 160),
    "x_embedder": (32, 64),
    "proj_out": (64, 32),
}
"""Of every kind: packed, split in columns, modulation, around the blocks. (outputs, inputs)."""

ByLayer = dict[str, tuple[torch.Tensor, torch.Tensor]]


def matrices(seed: int = 0) -> ByLayer:
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: (
            0.3 * torch.randn(RANK, inputs, generator=generator),
            0.3 * torch.randn(outputs, RANK, generator=generator),
        )
        for layer, (outputs, inputs) in LAYERS.items()
    }


def in_diffusers_format(by_layer: ByLayer) -> dict[str, torch.Tensor]:
    return {
        f"transformer.{layer}.lora_{half}.weight": tensor
        for layer, pair in by_layer.items()
        for half, tensor in zip("AB", pair, strict=True)
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "loras"
    path.mkdir()
    save_file(in_diffusers_format(matrices()), path / "fox.safetensors")
    save_file(in_diffusers_format(matrices(1)), path / "snow.safetensors")
    return path


def generator_of(checkpoint: Path, folder: Path, *, dtype: str = "float32", fused: bool = False) -> FluxGenerator:
    loaded = load_pipeline(
        EngineSpec(model=str(checkpoint), device=Device.CPU, offline=True, transformer_dtype=dtype, encoder_dtype=dtype)
    )
    denoiser = FusedDenoiser(loaded.pipeline, operations=Operations()) if fused else None
    return FluxGenerator(loaded, fused=denoiser, lora_folder=folder)


def transformer_of(checkpoint: Path, dtype: str = "float16") -> Any:
    spec = EngineSpec(model=str(checkpoint), device=Device.CPU, offline=True, transformer_dtype=dtype)
    return load_pipeline(spec).pipeline.transformer


def merger_of(transformer: Any, checkpoint: Path, folder: Path, **changes: Any) -> LoraMerger:
    arguments = {"originals": Originals(checkpoint / "transformer"), **changes}
    return LoraMerger(transformer, folder=LoraFolder(folder), **arguments)


def render(generator: FluxGenerator, *loras: AppliedLora, **changes: Any) -> Rendering:
    inputs = replace(INPUTS, loras=loras, **changes)
    return generator.generate(inputs, on_step=lambda _step, _total: None, is_canceled=lambda: False)


def weights(transformer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in transformer.state_dict().items()}


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextmanager
def beside_the_weights(transformer: Any, *scaled: tuple[ByLayer, float]) -> Iterator[None]:
    """The definition of a LoRA: each layer's output grows by `scale * up(down(input))`."""

    def added(down: torch.Tensor, up: torch.Tensor, scale: float) -> Callable[..., torch.Tensor]:
        return lambda _module, inputs, output: output + scale * (inputs[0] @ down.T @ up.T)

    with ExitStack() as hooks:
        for by_layer, scale in scaled:
            for layer, (down, up) in by_layer.items():
                hook = transformer.get_submodule(layer).register_forward_hook(added(down, up, scale))
                hooks.callback(hook.remove)
        yield


@pytest.mark.parametrize("fused", [False, True], ids=["by-diffusers", "fused"])
def test_merged_loras_draw_as_adapters_beside_the_weights_do(
    tiny_checkpoint: Path, folder: Path, *, fused: bool
) -> None:
    reference = load_pipeline(
        EngineSpec(
            model=str(tiny_checkpoint),
            device=Device.CPU,
            offline=True,
            transformer_dtype="float32",
            encoder_dtype="float32",
        )
    )
    with beside_the_weights(reference.pipeline.transformer, (matrices(), 0.7), (matrices(1), -0.4)):
        (expected,) = render(FluxGenerator(reference)).images
    generator = generator_of(tiny_checkpoint, folder, fused=fused)
    (plain,) = render(generator).images

    drawn = render(generator, AppliedLora("fox", 0.7), AppliedLora("snow", -0.4))

    assert np.abs(drawn.images[0].astype(int) - expected.astype(int)).max() <= 1
    assert np.abs(plain.astype(int) - expected.astype(int)).max() > 10, "the LoRAs change the picture"
    assert drawn.timings_ms["lora"] > 0


@pytest.mark.parametrize("fused", [False, True], ids=["by-diffusers", "fused"])
def test_pictures_without_loras_are_the_same_bits_afterwards(
    tiny_checkpoint: Path, folder: Path, *, fused: bool
) -> None:
    generator = generator_of(tiny_checkpoint, folder, dtype="bfloat16", fused=fused)
    (before,) = render(generator).images
    render(generator, AppliedLora("fox", 1.0))
    (after,) = render(generator).images
    assert np.array_equal(before, after)


@pytest.mark.parametrize("free_bytes", [0, 2**60], ids=["from-the-files", "from-copies"])
def test_weights_are_restored_to_the_bit(tiny_checkpoint: Path, folder: Path, free_bytes: int) -> None:
    transformer = transformer_of(tiny_checkpoint)
    before = weights(transformer)
    originals = Originals(tiny_checkpoint / "transformer", free_bytes=lambda _device: free_bytes)
    merger = merger_of(transformer, tiny_checkpoint, folder, originals=originals)
    for loras in ([AppliedLora("fox", 1.0)], [AppliedLora("snow", 2.0), AppliedLora("fox", -1.0)]):
        merger.switch(loras)
        assert not are_equal(before, weights(transformer))
    merger.switch([])
    assert are_equal(before, weights(transformer))


def test_the_same_loras_stay_and_a_replaced_file_is_merged_again(tiny_checkpoint: Path, folder: Path) -> None:
    transformer = transformer_of(tiny_checkpoint)
    merger = merger_of(transformer, tiny_checkpoint, folder)
    fox = [AppliedLora("fox", 1.0)]
    assert merger.switch(fox) == (True, ())
    assert merger.switch(fox) == (False, ())
    merged = weights(transformer)
    save_file(in_diffusers_format(matrices(2)), folder / "fox.safetensors")
    (folder / "fox.safetensors").touch()
    assert merger.switch(fox) == (True, ())
    assert not are_equal(merged, weights(transformer))


def in_kohya_format(alpha: float) -> tuple[dict[str, torch.Tensor], ByLayer]:
    """A file as kohya's sd-scripts write it, with query, key and value in one; and what it means."""
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(RANK, 32, generator=generator), torch.randn(96, RANK, generator=generator)
    key = "lora_unet_double_blocks_0_img_attn_qkv"
    state = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(alpha)}
    names = ("to_q", "to_k", "to_v")
    meaning = {
        f"transformer_blocks.0.attn.{name}": (down, alpha / RANK * part)
        for name, part in zip(names, up.chunk(3), strict=True)
    }
    return state, meaning


def with_alphas() -> tuple[dict[str, torch.Tensor], ByLayer]:
    by_layer = matrices()
    alphas = {f"transformer.{layer}.alpha": torch.tensor(2.0) for layer in by_layer}
    meaning = {layer: (down, 2.0 / RANK * up) for layer, (down, up) in by_layer.items()}
    return in_diffusers_format(by_layer) | alphas, meaning


@pytest.mark.parametrize(
    ("state", "meaning"), [in_kohya_format(8.0), with_alphas()], ids=["kohya", "diffusers-with-alphas"]
)
def test_formats_of_trainers_mean_what_they_say(
    tiny_checkpoint: Path, folder: Path, state: dict[str, torch.Tensor], meaning: ByLayer
) -> None:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "other.safetensors")
    transformer = transformer_of(tiny_checkpoint, "float32")
    expected = weights(transformer)
    for layer, (down, up) in meaning.items():
        expected[f"{layer}.weight"] += 0.5 * up @ down

    merger_of(transformer, tiny_checkpoint, folder).switch([AppliedLora("other", 0.5)])

    for name, tensor in weights(transformer).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)


def test_the_config_in_a_file_s_metadata_decides_the_scale(tiny_checkpoint: Path, folder: Path) -> None:
    config = {"transformer.r": RANK, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"proj_out": 2}}
    state = in_diffusers_format(matrices())
    save_file(state, folder / "peft.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    transformer = transformer_of(tiny_checkpoint, "float32")
    before = weights(transformer)

    merger_of(transformer, tiny_checkpoint, folder).switch([AppliedLora("peft", 1.0)])

    after = weights(transformer)
    for layer, alpha in ((QUERY, 8.0), (OUTPUT, 2.0), ("proj_out", 2.0)):
        down, up = matrices()[layer]
        expected = before[f"{layer}.weight"] + alpha / RANK * up @ down
        torch.testing.assert_close(after[f"{layer}.weight"], expected, rtol=1e-5, atol=1e-5)


def test_the_part_for_the_text_encoder_is_told_to_be_left_out(tiny_checkpoint: Path, folder: Path) -> None:
    key = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    extra = {f"{key}.lora_A.weight": torch.zeros(RANK, 32), f"{key}.lora_B.weight": torch.zeros(32, RANK)}
    save_file(in_diffusers_format(matrices()) | extra, folder / "both.safetensors")
    merger = merger_of(transformer_of(tiny_checkpoint), tiny_checkpoint, folder)
    warnings = ("lora both: its part for the text encoder is not applied",)
    assert merger.switch([AppliedLora("both", 1.0)]) == (True, warnings)
    assert merger.switch([AppliedLora("both", 1.0)]) == (False, warnings)


def replaced(layer: str, down: torch.Tensor, up: torch.Tensor) -> dict[str, torch.Tensor]:
    return in_diffusers_format(matrices() | {layer: (down, up)})


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            replaced(OUTPUT, torch.zeros(RANK, 48), torch.zeros(32, RANK)),
            r"'bad' does not fit this model: .*proj_out is",
        ),
        (replaced(QUERY, torch.zeros(RANK, 32), torch.zeros(32, 8)), "do not fit each other"),
        (replaced(QUERY, torch.full((RANK, 32), float("nan")), torch.zeros(32, RANK)), "to_q holds numbers"),
        (
            replaced("transformer_blocks.30.attn.to_q", torch.zeros(RANK, 32), torch.zeros(32, RANK)),
            r"changes transformer_blocks\.30\.attn\.to_q, which is no linear layer",
        ),
        (
            replaced("transformer_blocks.0.attn.norm_q", torch.zeros(RANK, 16), torch.zeros(16, RANK)),
            "norm_q, which is no linear layer",
        ),
        (
            in_diffusers_format(matrices()) | {f"transformer.{QUERY}.lora_B.bias": torch.zeros(32)},
            "is no low-rank weight",
        ),
        # What the converter makes of other layers than attention (huggingface/diffusers#14009).
        (
            replaced("transformer_blocks.0", torch.zeros(RANK, 32), torch.zeros(32, RANK)),
            r"changes transformer_blocks\.0, which is no linear layer",
        ),
        # A Control LoRA widens the first layer (huggingface/diffusers#10397).
        (
            replaced("x_embedder", torch.zeros(RANK, 128), torch.zeros(32, RANK)),
            "does not fit this model: x_embedder is",
        ),
        ({f"transformer.{QUERY}.lora_A.weight": torch.zeros(RANK, 32)}, "only one half"),
        ({f"transformer.{QUERY}.lokr_w1": torch.zeros(4, 4)}, "no low-rank weight|cannot be read as a LoRA"),
        ({"model.diffusion_model.input_blocks.0.weight": torch.zeros(4, 4)}, "no low-rank weight"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_leaves_the_weights_alone(
    tiny_checkpoint: Path, folder: Path, state: dict[str, torch.Tensor], words: str
) -> None:
    save_file(state, folder / "bad.safetensors")
    transformer = transformer_of(tiny_checkpoint)
    before = weights(transformer)
    merger = merger_of(transformer, tiny_checkpoint, folder)
    merger.switch([AppliedLora("fox", 1.0)])
    with pytest.raises(InputsError, match=f"loras: .*({words})"):
        merger.switch([AppliedLora("fox", 1.0), AppliedLora("bad", 1.0)])
    assert are_equal(before, weights(transformer))
    assert merger.switch([AppliedLora("fox", 1.0)])[0], "the one that fits is merged again"


def test_an_error_in_the_middle_of_a_merge_restores_the_weights(tiny_checkpoint: Path, folder: Path) -> None:
    transformer = transformer_of(tiny_checkpoint)
    before = weights(transformer)
    calls: list[int] = []

    def fail_once(names: Any) -> None:
        calls.append(len(names))
        if len(calls) == 1:
            raise torch.OutOfMemoryError

    merger = merger_of(transformer, tiny_checkpoint, folder, on_change=fail_once)
    with pytest.raises(torch.OutOfMemoryError):
        merger.switch([AppliedLora("fox", 1.0)])
    assert are_equal(before, weights(transformer))
    assert calls == [len(LAYERS), len(LAYERS)]


def test_weights_that_could_not_be_restored_are_before_anything_else_is_drawn(
    tmp_path: Path, tiny_checkpoint: Path, folder: Path
) -> None:
    transformer = transformer_of(tiny_checkpoint)
    before = weights(transformer)
    mount = tmp_path / "mount"
    mount.symlink_to(tiny_checkpoint / "transformer")
    merger = merger_of(transformer, tiny_checkpoint, folder, originals=Originals(mount))
    merger.switch([AppliedLora("fox", 1.0)])
    mount.rename(tmp_path / "away")
    for wanted in ([], [], [AppliedLora("fox", 1.0)]):
        with pytest.raises((OSError, KeyError)):
            merger.switch(wanted)
    (tmp_path / "away").rename(mount)
    merger.switch([])
    assert are_equal(before, weights(transformer))


def test_a_name_that_is_not_offered_is_refused_with_those_that_are(folder: Path) -> None:
    (folder / "old.pt").write_bytes(b"\x80\x04")
    with pytest.raises(InputsError, match=r"loras: 'cat' is unknown; the pool has fox, snow$"):
        LoraFolder(folder).find("cat")
    with pytest.raises(InputsError, match=r"loras: old\.pt is a pickle, .*convert it to safetensors"):
        LoraFolder(folder).find("old")
    for index in range(30):
        (folder / f"more-{index:02}.safetensors").touch()
    with pytest.raises(InputsError, match=r"more-18 and 12 more$"):
        LoraFolder(folder).find("cat")


def test_a_pool_without_a_folder_offers_none() -> None:
    with pytest.raises(InputsError, match="loras: this pool offers none"):
        LoraFolder(None).find("fox")


def test_a_file_that_is_no_safetensors_file_is_refused(folder: Path) -> None:
    (folder / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "cut.safetensors").write_bytes((folder / "fox.safetensors").read_bytes()[:-100])
    with pytest.raises(InputsError, match=r"loras: pointer\.safetensors is a pointer of Git LFS"):
        LoraFolder(folder).find("pointer")
    with pytest.raises(InputsError, match=r"loras: cut\.safetensors is cut short"):
        LoraFolder(folder).find("cut")


def test_loras_are_not_drawn_with_8_bit_weights(tiny_checkpoint: Path, folder: Path) -> None:
    generator = generator_of(tiny_checkpoint, folder)
    with pytest.raises(InputsError, match="loras: are merged into 16-bit weights"):
        render(generator, AppliedLora("fox", 1.0), quality=Quality.FAST)


def test_loras_are_not_merged_into_weights_that_are_copied_to_the_device(tiny_checkpoint: Path, folder: Path) -> None:
    loaded = load_pipeline(EngineSpec(model=str(tiny_checkpoint), device=Device.CPU, offline=True))
    offloaded = FluxGenerator(replace(loaded, why_offloaded="the pool asks for it"), lora_folder=folder)
    with pytest.raises(
        InputsError, match=r"loras: cannot be merged into weights in host memory, .*the pool asks for it"
    ):
        render(offloaded, AppliedLora("fox", 1.0))
