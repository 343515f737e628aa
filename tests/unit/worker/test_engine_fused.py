"""The fused forward in its reference form, on the tiny checkpoint: what diffusers computes, within rounding."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.fused import FusedDenoiser, why_not_fused
from fluxpool_worker.engine.fused.choice import why_not_packed
from fluxpool_worker.engine.fused.decoder import fuse_decoder, why_not_fused_decoder
from fluxpool_worker.engine.fused.decoder_operations import DecoderOperations, TritonDecoderOperations
from fluxpool_worker.engine.fused.modulation import Modulation, ModulationLayout, NormVectors
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.triton_operations import TritonOperations
from fluxpool_worker.engine.fused.weights import HeadNorms
from fluxpool_worker.engine.generation import RESCUE_WARNING, FluxGenerator
from fluxpool_worker.engine.generator import GenerationCanceledError, NotFiniteError, Rendering
from fluxpool_worker.engine.protocol import Device, EngineSpec, GenerationInputs
from fluxpool_worker.engine.text_encoding import KEPT_TEXTS, Text, TextEncoders
from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint

FLOAT32_ROUNDING = 1e-5
TEXT_TOKENS = 32
"""Fewer text tokens than FLUX.1-dev has: the sizes do not depend on it, and a CPU is much faster."""


def load(folder: Path, *, dtype: str = "float32") -> Any:
    spec = EngineSpec(
        model=str(folder), device=Device.CPU, offline=True, transformer_dtype=dtype, encoder_dtype="float32"
    )
    return load_pipeline(spec)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Any:
    return load(tiny_checkpoint).pipeline


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("models") / "schnell"
    write_tiny_checkpoint(folder, guidance_embeds=False)
    return load(folder).pipeline


def text(pipeline: Any, prompt: str, *, tokens: int = TEXT_TOKENS) -> Text:
    sequence, pooled, _ = pipeline.encode_prompt(prompt=prompt, prompt_2=None, device="cpu", max_sequence_length=tokens)
    return Text(sequence=sequence, pooled=pooled)


def noise(pipeline: Any, *, width: int, height: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(3)
    latents, _ = pipeline.prepare_latents(1, 16, height, width, dtype, "cpu", generator)
    return torch.as_tensor(latents)


def by_diffusers(pipeline: Any, start: torch.Tensor, **arguments: Any) -> torch.Tensor:
    dtype = start.dtype
    positive, negative = arguments["positive"].to(dtype), arguments["negative"]
    negatives = negative.to(dtype) if negative is not None else None
    (latents,) = pipeline(
        prompt_embeds=positive.sequence,
        pooled_prompt_embeds=positive.pooled,
        negative_prompt_embeds=negatives.sequence if negatives else None,
        negative_pooled_prompt_embeds=negatives.pooled if negatives else None,
        true_cfg_scale=arguments["true_cfg_scale"],
        guidance_scale=arguments["guidance"],
        height=arguments["height"],
        width=arguments["width"],
        num_inference_steps=arguments["steps"],
        latents=start,
        max_sequence_length=arguments["positive"].sequence.shape[1],
        output_type="latent",
        return_dict=False,
    )
    return torch.as_tensor(latents).float()


def fused(pipeline: Any, start: torch.Tensor, **arguments: Any) -> torch.Tensor:
    denoiser = FusedDenoiser(pipeline, operations=Operations())
    return denoiser.denoise(start, after_step=lambda: None, **arguments)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def arguments_of(pipeline: Any, **changes: Any) -> dict[str, Any]:
    plain = {
        "positive": text(pipeline, "a red fox in the snow"),
        "negative": None,
        "width": 64,
        "height": 48,
        "steps": 3,
        "guidance": 3.5,
        "true_cfg_scale": 1.0,
    }
    return {**plain, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"width": 16, "height": 16},
        {"width": 48, "height": 128},
        {"steps": 1},
        {"steps": 7},
        {"guidance": 0.0},
        {"guidance": 20.0},
    ],
    ids=str,
)
@torch.no_grad()
def test_it_computes_what_diffusers_computes(pipeline: Any, changes: dict[str, Any]) -> None:
    arguments = arguments_of(pipeline, **changes)
    start = noise(pipeline, width=arguments["width"], height=arguments["height"])
    assert (
        difference(fused(pipeline, start, **arguments), by_diffusers(pipeline, start, **arguments)) < FLOAT32_ROUNDING
    )


@torch.no_grad()
def test_it_guides_away_from_a_negative_prompt_as_diffusers_does(pipeline: Any) -> None:
    arguments = arguments_of(pipeline, negative=text(pipeline, "blurry"), true_cfg_scale=4.0)
    start = noise(pipeline, width=64, height=48)
    found = fused(pipeline, start, **arguments)
    assert difference(found, by_diffusers(pipeline, start, **arguments)) < FLOAT32_ROUNDING
    plain = fused(pipeline, start, **arguments_of(pipeline))
    assert difference(found, plain) > 100 * FLOAT32_ROUNDING


@pytest.mark.parametrize("tokens", [1, 77, 512])
@torch.no_grad()
def test_any_length_of_text_matches_diffusers(pipeline: Any, tokens: int) -> None:
    arguments = arguments_of(pipeline, positive=text(pipeline, "a fox", tokens=tokens), steps=1)
    start = noise(pipeline, width=64, height=48)
    assert (
        difference(fused(pipeline, start, **arguments), by_diffusers(pipeline, start, **arguments)) < FLOAT32_ROUNDING
    )


@torch.no_grad()
def test_a_model_without_guidance_matches_diffusers(schnell: Any) -> None:
    arguments = arguments_of(schnell)
    start = noise(schnell, width=64, height=48)
    assert difference(fused(schnell, start, **arguments), by_diffusers(schnell, start, **arguments)) < FLOAT32_ROUNDING


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@torch.no_grad()
def test_half_precision_is_as_close_to_float32_as_diffusers(tiny_checkpoint: Path, pipeline: Any, dtype: str) -> None:
    half = load(tiny_checkpoint, dtype=dtype).pipeline
    arguments = arguments_of(pipeline, steps=5)
    start = noise(half, width=64, height=48, dtype=half.transformer.dtype)
    exact = fused(pipeline, start.float(), **arguments)
    mine = difference(fused(half, start, **arguments), exact)
    assert 0 < mine <= difference(by_diffusers(half, start, **arguments), exact)


@torch.no_grad()
def test_the_pipeline_still_works_with_the_packed_weights(tiny_checkpoint: Path) -> None:
    own = load(tiny_checkpoint).pipeline
    arguments, start = arguments_of(own), noise(own, width=64, height=48)
    before = by_diffusers(own, start, **arguments)
    fused(own, start, **arguments)
    assert torch.equal(by_diffusers(own, start, **arguments), before)


@torch.no_grad()
def test_buffers_of_an_earlier_size_or_poison_in_them_change_nothing(pipeline: Any) -> None:
    denoiser = FusedDenoiser(pipeline, operations=Operations())
    start = noise(pipeline, width=64, height=48)
    arguments = arguments_of(pipeline)
    first = denoiser.denoise(start, after_step=lambda: None, **arguments)
    poisoned = torch.full_like(start, torch.nan)
    assert not torch.isfinite(denoiser.denoise(poisoned, after_step=lambda: None, **arguments)).any()
    for side in (16, 32, 128):
        other = arguments_of(pipeline, width=side, height=side, steps=1)
        denoiser.denoise(noise(pipeline, width=side, height=side), after_step=lambda: None, **other)
    assert torch.equal(denoiser.denoise(start, after_step=lambda: None, **arguments), first)


def inputs(**changes: Any) -> GenerationInputs:
    return GenerationInputs(**{"prompt": "a red fox", "width": 64, "height": 48, "steps": 3, "seed": 11, **changes})


def generator_of(loaded: Any) -> FluxGenerator:
    return FluxGenerator(loaded, fused=FusedDenoiser(loaded.pipeline, operations=Operations()))


def generate(generator: FluxGenerator, wanted: GenerationInputs, *, is_canceled: Callable[[], bool]) -> list[int]:
    steps: list[int] = []
    generator.generate(wanted, on_step=lambda step, _total: steps.append(step), is_canceled=is_canceled)
    return steps


def test_every_step_is_reported(tiny_checkpoint: Path) -> None:
    steps = generate(generator_of(load(tiny_checkpoint)), inputs(n=2), is_canceled=lambda: False)
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("after", range(4))
def test_a_job_is_canceled_between_any_two_steps(tiny_checkpoint: Path, after: int) -> None:
    steps: list[int] = []
    generator = generator_of(load(tiny_checkpoint))
    with pytest.raises(GenerationCanceledError):
        generator.generate(
            inputs(steps=4), on_step=lambda step, _total: steps.append(step), is_canceled=lambda: len(steps) >= after
        )
    assert len(steps) == after


def test_a_poisoned_weight_is_noticed(tiny_checkpoint: Path) -> None:
    loaded = load(tiny_checkpoint)
    with torch.no_grad():
        loaded.pipeline.transformer.transformer_blocks[1].ff.net[2].weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        generate(generator_of(loaded), inputs(), is_canceled=lambda: False)


@torch.no_grad()
def test_a_float16_overflow_is_rescued_and_leaves_the_next_job_right(tiny_checkpoint: Path) -> None:
    loaded = load(tiny_checkpoint, dtype="float16")
    generator = generator_of(loaded)

    def draw() -> Rendering:
        return generator.generate(inputs(), on_step=lambda _step, _total: None, is_canceled=lambda: False)

    right = draw()
    weight = loaded.pipeline.transformer.x_embedder.weight
    sound = weight.clone()
    weight.mul_(1e5)
    rescued = draw()
    assert rescued.warnings == (RESCUE_WARNING.format(index=0),)
    assert rescued.images[0].std() > 10
    weight.copy_(sound)
    again = draw()
    assert not again.warnings
    assert (again.images[0] == right.images[0]).all()


def test_a_cpu_uses_diffusers_and_names_the_reason(pipeline: Any) -> None:
    assert why_not_packed(pipeline) is None
    assert why_not_fused(pipeline) == "the device is cpu"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda own: setattr(own.scheduler.config, "stochastic_sampling", True), "stochastic_sampling"),
        (lambda own: setattr(own.transformer, "proj_out", torch.nn.Linear(32, 64, bias=False)), "no bias"),
        (lambda own: setattr(own.transformer.transformer_blocks[0].attn, "processor", object()), "has a object"),
        (lambda own: setattr(own.transformer, "_hf_hook", object()), "hook of accelerate"),
        (lambda own: own.transformer.proj_out.double(), "2 dtypes"),
        (lambda own: setattr(own.transformer, "single_transformer_blocks", torch.nn.ModuleList()), "lacks blocks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_parts_use_diffusers(tiny_checkpoint: Path, change: Callable[[Any], None], reason: str) -> None:
    own = load(tiny_checkpoint).pipeline
    change(own)
    assert reason in (why_not_packed(own) or "")


@pytest.mark.parametrize("prompt", ["", "a red fox", "ein Fuchs " * 400])
@torch.no_grad()
def test_texts_are_encoded_as_the_pipeline_does(pipeline: Any, prompt: str) -> None:
    found, wanted = TextEncoders(pipeline, tokens=TEXT_TOKENS).encode(prompt), text(pipeline, prompt)
    assert torch.equal(found.sequence, wanted.sequence)
    assert torch.equal(found.pooled, wanted.pooled)


@torch.no_grad()
def test_only_the_last_texts_are_cached(pipeline: Any) -> None:
    encoders = TextEncoders(pipeline, tokens=TEXT_TOKENS)
    first = encoders.encode("first")
    assert encoders.encode("first") is first
    for number in range(KEPT_TEXTS):
        encoders.encode(f"other {number}")
    assert encoders.encode(f"other {KEPT_TEXTS - 1}") is encoders.encode(f"other {KEPT_TEXTS - 1}")
    again = encoders.encode("first")
    assert again is not first
    assert torch.equal(again.sequence, first.sequence)


@pytest.mark.parametrize("has_update", [False, True])
def test_the_kernel_of_norms_does_what_the_reference_does(*, has_update: bool) -> None:
    width, rows, dtype = 48, 7, torch.float16
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(6 * width, generator=generator).to(dtype)
    modulation = Modulation(
        vectors=vectors,
        text_rows=3,
        text=NormVectors(gate=0, scale=width, shift=2 * width),
        image=NormVectors(gate=3 * width, scale=4 * width, shift=5 * width),
    )
    update = 3 * torch.randn(rows, width, generator=generator).to(dtype) if has_update else None
    ended = []
    for operations in (Operations(), TritonOperations()):
        stream = torch.randn(rows, width, generator=torch.Generator().manual_seed(2)).to(dtype)
        out = torch.empty_like(stream)
        operations.add_and_norm(
            stream=stream,
            update=update,
            out=out,
            modulation=modulation,
        )
        ended.append(torch.cat((stream, out)))
    wanted, found = ended
    assert torch.allclose(found, wanted, atol=2e-3)


def test_the_kernel_of_rotations_does_what_the_reference_does() -> None:
    rows, heads, head_width, first_row = 7, 16, 8, 2
    generator = torch.Generator().manual_seed(1)
    angles = torch.randn(rows + first_row, head_width // 2, generator=generator)
    text_norms, image_norms = torch.randn(2, heads, head_width, generator=generator).half()
    ended = []
    for operations in (Operations(), TritonOperations()):
        columns = torch.randn(rows, 3 * heads * head_width, generator=torch.Generator().manual_seed(2)).half()
        operations.norm_and_rotate(
            columns[:, : heads * head_width].view(rows, heads, head_width),
            norms=HeadNorms(text_norms, image_norms),
            cosine=angles.cos(),
            sine=angles.sin(),
            first_row=first_row,
            text_rows=4,
        )
        ended.append(columns)
    wanted, found = ended
    assert torch.allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize("shape", [(1, 32, 9, 7), (1, 32, 64)])
@torch.no_grad()
def test_the_kernels_of_the_decoder_do_what_the_reference_does(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    norm = torch.nn.GroupNorm(4, 32)
    norm.weight.normal_(generator=generator)
    x, residual = torch.randn(2, *shape, generator=generator)
    bias, other = torch.randn(2, 32, generator=generator)
    reference, fused_operations = DecoderOperations(), TritonDecoderOperations()
    for added, silu in ((None, False), (bias, True)):
        wanted = reference.group_norm(x, norm, silu=silu, added=added)
        assert torch.allclose(fused_operations.group_norm(x, norm, silu=silu, added=added), wanted, atol=1e-5)
    for residual_bias in (None, other):
        wanted = reference.add_residual(x, residual, bias=bias, residual_bias=residual_bias)
        found = fused_operations.add_residual(x, residual, bias=bias, residual_bias=residual_bias)
        assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("is_tiled", [False, True])
@torch.no_grad()
def test_the_fused_decoder_decodes_as_diffusers_does(pipeline: Any, *, is_tiled: bool) -> None:
    vae = copy.deepcopy(pipeline.vae)
    assert why_not_fused_decoder(vae) is None
    fuse_decoder(vae, operations=DecoderOperations())
    latents = torch.randn(1, 16, 12, 8, generator=torch.Generator().manual_seed(1))
    for decoder in (vae, pipeline.vae):
        decoder.use_tiling = is_tiled
    found, wanted = (decoder.decode(latents, return_dict=False)[0] for decoder in (vae, pipeline.vae))
    pipeline.vae.use_tiling = False
    assert difference(found, wanted) < FLOAT32_ROUNDING


@given(width=st.integers(1, 4096), doubles=st.integers(1, 19), singles=st.integers(1, 38))
def test_modulation_vectors_are_contiguous(width: int, doubles: int, singles: int) -> None:
    layout = ModulationLayout(width=width, double_blocks=doubles, single_blocks=singles)
    starts: list[int] = []
    for block in range(doubles):
        for stream in (layout.double_image(block), layout.double_text(block)):
            for half in (stream.attention, stream.feed_forward):
                starts += [half.shift, half.scale, half.gate]
    for block in range(singles):
        vectors = layout.single(block)
        starts += [vectors.shift, vectors.scale, vectors.gate]
    starts += [layout.last_scale, layout.last_shift]
    assert starts == [width * part for part in range(len(starts))]
    assert layout.length == width * len(starts)
