"""Each spelling of a LoRA's file means the same change of the same layers, or is refused; nothing is left out."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluxpool_worker.engine.generator import InputsError
from fluxpool_worker.engine.lora.low_rank import TEXT_ENCODER_IGNORED, LoraContent, read_lora

RANK, WIDTH = 4, 32
ALPHA = 2.0
QUERY = "transformer_blocks.0.attn.to_q"
QKV = tuple(f"transformer_blocks.0.attn.to_{part}" for part in "qkv")

Tensors = Mapping[str, torch.Tensor]


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1000 * rows + columns + seed))


def pair(
    layer: str, outputs: int = WIDTH, *, down: str = "lora_A.weight", up: str = "lora_B.weight", alpha: bool = False
) -> dict[str, torch.Tensor]:
    """One layer's two matrices under these keys, of which the products below are made."""
    alphas = {f"{layer}.alpha": torch.tensor(ALPHA)} if alpha else {}
    return {f"{layer}.{down}": matrix(RANK, WIDTH), f"{layer}.{up}": matrix(outputs, RANK), **alphas}


def kohya(layer: str, outputs: int = WIDTH, *, alpha: bool = True) -> dict[str, torch.Tensor]:
    return pair(layer, outputs, down="lora_down.weight", up="lora_up.weight", alpha=alpha)


def product(outputs: int = WIDTH, *, scale: float = 1.0) -> torch.Tensor:
    return scale * matrix(outputs, RANK) @ matrix(RANK, WIDTH)


def in_thirds(scale: float = 1.0) -> dict[str, torch.Tensor]:
    return dict(zip(QKV, product(3 * WIDTH, scale=scale).chunk(3), strict=True))


def read(folder: Path, state: Tensors, metadata: dict[str, str] | None = None) -> LoraContent:
    file = folder / "any.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, file, metadata=metadata)
    return read_lora(file, name="any")


HALF = ALPHA / RANK
SCALED_QUERY = {QUERY: product(scale=HALF)}
SWAPPED = torch.cat(product(2 * WIDTH, scale=HALF).chunk(2)[::-1])
"""diffusers has scale before shift in the last norm, the original shift before scale."""


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        pytest.param(pair(f"transformer.{QUERY}"), {QUERY: product()}, id="diffusers"),
        pytest.param(pair(f"transformer.{QUERY}", alpha=True), SCALED_QUERY, id="diffusers-alpha"),
        pytest.param(kohya(f"transformer.{QUERY}"), SCALED_QUERY, id="diffusers-names-kohya-halves"),
        pytest.param(pair(QUERY), {QUERY: product()}, id="no-prefix"),
        pytest.param(pair(f"base_model.model.{QUERY}"), {QUERY: product()}, id="peft-prefix"),
        pytest.param(
            pair(f"transformer.{QUERY}", down="lora_A.default.weight", up="lora_B.default.weight"),
            {QUERY: product()},
            id="peft-adapter-name",
        ),
        pytest.param(kohya("lora_unet_double_blocks_0_img_attn_qkv", 3 * WIDTH), in_thirds(HALF), id="kohya"),
        pytest.param(
            kohya("lora_unet_double_blocks_0_img_attn_qkv", 3 * WIDTH, alpha=False), in_thirds(), id="kohya-no-alpha"
        ),
        pytest.param(kohya("lora_unet_img_in"), {"x_embedder": product(scale=HALF)}, id="kohya-outer-layer"),
        pytest.param(
            kohya("lora_unet_time_in_out_layer"),
            {"time_text_embed.timestep_embedder.linear_2": product(scale=HALF)},
            id="kohya-time",
        ),
        pytest.param(kohya("lora_unet_final_layer_linear"), {"proj_out": product(scale=HALF)}, id="kohya-last-layer"),
        pytest.param(
            kohya("lora_unet_final_layer_adaLN_modulation_1", 2 * WIDTH),
            {"norm_out.linear": SWAPPED},
            id="kohya-last-norm",
        ),
        pytest.param(
            pair("diffusion_model.double_blocks.0.img_attn.qkv", 3 * WIDTH),
            in_thirds(),
            id="original-names-peft-halves",
        ),
        pytest.param(
            kohya("diffusion_model.double_blocks.0.img_attn.qkv", 3 * WIDTH), in_thirds(HALF), id="original-names-kohya"
        ),
        pytest.param(pair("double_blocks.0.img_attn.qkv", 3 * WIDTH), in_thirds(), id="original-names-no-prefix"),
        pytest.param(
            pair("base_model.model.double_blocks.0.img_attn.qkv", 3 * WIDTH),
            in_thirds(),
            id="original-names-peft-prefix",
        ),
        pytest.param(
            kohya("diffusion_model.final_layer.linear"), {"proj_out": product(scale=HALF)}, id="original-last-layer"
        ),
        pytest.param(
            pair("double_blocks.0.processor.qkv_lora1", 3 * WIDTH, down="down.weight", up="up.weight"),
            in_thirds(),
            id="xlabs",
        ),
        pytest.param(kohya("lora_transformer_transformer_blocks_0_attn_to_q"), SCALED_QUERY, id="onetrainer"),
        pytest.param(
            kohya(f"transformer.{QUERY}") | kohya("lora_unet_double_blocks_0_img_attn_proj"),
            SCALED_QUERY,
            id="both-spellings-in-one-file",
        ),
        pytest.param(
            kohya("lora_unet_img_in") | {"lora_unet_img_in.diff_b": torch.zeros(WIDTH)},
            {"x_embedder": product(scale=HALF)},
            id="bias-of-zeros",
        ),
    ],
)
def test_every_spelling_means_the_same_change(tmp_path: Path, state: Tensors, changes: Tensors) -> None:
    content = read(tmp_path, state)
    assert content.changes.keys() == changes.keys()
    for layer, change in content.changes.items():
        torch.testing.assert_close(change.scale * change.up @ change.down, changes[layer], rtol=1e-5, atol=1e-5)
    assert content.warnings == ()


def test_the_packed_layer_of_a_single_block_is_split_at_flux_s_widths(tmp_path: Path) -> None:
    up = torch.cat([torch.full((size, RANK), float(part)) for part, size in enumerate([3072, 3072, 3072, 12288])])
    key = "lora_unet_single_blocks_37_linear1"
    content = read(tmp_path, {f"{key}.lora_down.weight": torch.ones(RANK, WIDTH), f"{key}.lora_up.weight": up})
    block = "single_transformer_blocks.37"
    assert {layer: change.up.mean().item() for layer, change in content.changes.items()} == {
        f"{block}.attn.to_q": 0.0,
        f"{block}.attn.to_k": 1.0,
        f"{block}.attn.to_v": 2.0,
        f"{block}.proj_mlp": 3.0,
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("state", "layer"),
    [(kohya("lora_unet_img_in", alpha=False), "x_embedder"), (pair(f"transformer.{QUERY}"), QUERY)],
    ids=["kohya", "diffusers"],
)
def test_smaller_numbers_are_read_as_what_they_hold(
    tmp_path: Path, dtype: torch.dtype, state: Tensors, layer: str
) -> None:
    down, up = (tensor.to(dtype).float() for tensor in state.values())
    change = read(tmp_path, {key: tensor.to(dtype) for key, tensor in state.items()}).changes[layer]
    assert torch.equal(change.down.float(), down)
    assert torch.equal(change.up.float(), up)


def test_layers_of_other_ranks_without_alphas_are_applied_as_they_are(tmp_path: Path) -> None:
    other = "transformer_blocks.1.attn.to_q"
    wider = {
        f"transformer.{other}.lora_A.weight": matrix(4 * RANK, WIDTH),
        f"transformer.{other}.lora_B.weight": matrix(WIDTH, 4 * RANK),
    }
    content = read(tmp_path, wider | pair(f"transformer.{QUERY}"))
    assert {layer: change.scale for layer, change in content.changes.items()} == {other: 1.0, QUERY: 1.0}


@pytest.mark.parametrize(
    "part",
    [
        pair("text_encoder.text_model.encoder.layers.0.self_attn.q_proj"),
        pair("text_encoder_2.encoder.block.0.layer.0.SelfAttention.q"),
        kohya("lora_te1_text_model_encoder_layers_0_self_attn_q_proj"),
        kohya("lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
        kohya("text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"),
        {"bundle_emb.fox.clip_l": matrix(2, WIDTH)},
    ],
    ids=["clip", "t5", "kohya-clip", "kohya-t5", "comfyui-t5", "embedding"],
)
@pytest.mark.parametrize("layer", ["lora_unet_img_in", "diffusion_model.img_in", "transformer.x_embedder"])
def test_a_part_for_a_text_encoder_is_told_to_be_left_out(tmp_path: Path, part: Tensors, layer: str) -> None:
    content = read(tmp_path, {**kohya(layer), **part})
    assert list(content.changes) == ["x_embedder"]
    assert content.warnings == (TEXT_ENCODER_IGNORED.format(name="any"),)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            kohya("lora_unet_img_in") | {"lora_unet_img_in.dora_scale": torch.ones(WIDTH, 1)},
            "dora_scale is no low-rank",
        ),
        (
            pair(f"transformer.{QUERY}") | {f"transformer.{QUERY}.lora_magnitude_vector": torch.ones(WIDTH)},
            "lora_magnitude_vector is no low-rank",
        ),
        (kohya("lora_unet_img_in") | {"lora_unet_img_in.diff_b": torch.ones(WIDTH)}, "diff_b is no low-rank weight"),
        (
            kohya("diffusion_model.img_in")
            | {"diffusion_model.double_blocks.0.img_attn.norm.key_norm.diff": torch.ones(8)},
            "diff is no low-rank weight",
        ),
        ({"lora_unet_img_in.lokr_w1": torch.ones(4, 4)}, "lokr_w1 is no low-rank weight"),
        ({"lora_unet_img_in.hada_w1_a": torch.ones(4, 4)}, "hada_w1_a is no low-rank weight"),
        (pair(f"transformer.{QUERY}") | {f"transformer.{QUERY}.lora_B.bias": torch.ones(WIDTH)}, "no low-rank weight"),
        (
            kohya("lora_transformer_x_embedder") | kohya("lora_unet_img_in"),
            "can be read in part only: 1 of 2 layers",
        ),
        (
            kohya("lora_unet_single_blocks_0_linear1", 7 * WIDTH),
            r"cannot be read as a LoRA of FLUX\.1 \(AssertionError",
        ),
        (kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1"), "has no weights"),
    ],
)
def test_what_would_be_left_out_is_refused(tmp_path: Path, state: Tensors, words: str) -> None:
    with pytest.raises(InputsError, match=rf"^loras: 'any' .*{words}"):
        read(tmp_path, state)


@pytest.mark.parametrize(
    "config", ["no JSON", "[1]", '{"transformer.lora_alpha": "much"}', '{"transformer.alpha_pattern": {"(": 1}}']
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, config: str) -> None:
    with pytest.raises(InputsError, match=r"^loras: 'any' cannot be read as a LoRA"):
        read(tmp_path, pair(f"transformer.{QUERY}"), metadata={"lora_adapter_metadata": config})


def test_the_configuration_decides_the_scale(tmp_path: Path) -> None:
    config = json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 8})
    content = read(tmp_path, pair(f"transformer.{QUERY}"), metadata={"lora_adapter_metadata": config})
    assert content.changes[QUERY].scale == 8 / RANK
