"""Fast images in the reference form, on the tiny checkpoint: how far from exact, which steps, and who is refused."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.messages.task import Quality
from fluxpool_worker.engine.checkpoint.loading import LoadedPipeline, load_pipeline
from fluxpool_worker.engine.fused import FusedDenoiser
from fluxpool_worker.engine.fused.attention import attention, choose_attention, why_not_flash
from fluxpool_worker.engine.fused.fast.attention import (
    MOST_ROWS,
    choose_fast_attention,
    difference_to_torch,
    scaled_flash_attention,
)
from fluxpool_worker.engine.fused.fast.choice import why_not_fast
from fluxpool_worker.engine.fused.fast.operations import (
    FLOAT8,
    FLOAT8_MAX,
    ScaledOperations,
    ScaledRows,
    scaled,
)
from fluxpool_worker.engine.fused.fast.steps import FEWEST_STEPS, computed_steps
from fluxpool_worker.engine.fused.fast.triton_operations import TritonScaledOperations
from fluxpool_worker.engine.fused.modulation import Modulation, NormVectors
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.weights import Linear
from fluxpool_worker.engine.generation import FluxGenerator, load_generator
from fluxpool_worker.engine.generator import (
    CheckpointError,
    GenerationCanceledError,
    InputsError,
    NotFiniteError,
    Rendering,
)
from fluxpool_worker.engine.protocol import Device, EnginePath, EngineSpec, GenerationInputs
from fluxpool_worker.engine.text_encoding import Text

INPUTS = GenerationInputs(prompt="a red fox", width=64, height=48, steps=3, seed=11, quality=Quality.FAST)
ROUNDING = 0.15
"""Of one forward in 8 bits against float32, relative; full-size random weights end at 0.1."""
DIGIT = 2**-3
"""Between two neighbours of float8 e4m3, relative."""


def spec_of(folder: Path, **changes: Any) -> EngineSpec:
    plain = EngineSpec(
        model=str(folder), device=Device.CPU, offline=True, transformer_dtype="float32", encoder_dtype="float32"
    )
    return replace(plain, **changes)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedPipeline:
    return load_pipeline(spec_of(tiny_checkpoint))


class CountedAttention:
    """Counts forwards: each attends once in each of the four blocks."""

    def __init__(self) -> None:
        self._calls = 0

    def __call__(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        return attention(query, key, value)

    @property
    def forwards(self) -> int:
        return self._calls // 4


def denoiser_of(loaded: LoadedPipeline, attend: Callable[..., torch.Tensor] = attention) -> FusedDenoiser:
    fused = FusedDenoiser(loaded.pipeline, operations=Operations())
    fused.add_fast(ScaledOperations(), attend=attend)
    return fused


def latents(loaded: LoadedPipeline, fused: FusedDenoiser, **changes: Any) -> torch.Tensor:
    """The latents of a job, as `FusedDenoiser.denoise` takes it."""
    pipeline, dtype = loaded.pipeline, loaded.transformer_dtype
    sequence, pooled, _ = pipeline.encode_prompt(prompt="a fox", prompt_2=None, device="cpu", max_sequence_length=32)
    job: dict[str, Any] = {
        "positive": Text(sequence, pooled),
        "negative": None,
        "width": 64,
        "height": 48,
        "steps": 1,
        "guidance": 3.5,
        "true_cfg_scale": 1.0,
        **changes,
    }
    generator = torch.Generator("cpu").manual_seed(3)
    noise, _ = pipeline.prepare_latents(1, 16, job["height"], job["width"], dtype, "cpu", generator)
    with torch.no_grad():
        return fused.denoise(torch.as_tensor(noise), after_step=lambda: None, **job)


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


# Steps


@pytest.mark.parametrize("steps", range(1, 101))
def test_half_of_the_steps_are_computed_and_always_the_first_and_the_last(steps: int) -> None:
    computed = sorted(computed_steps(steps))
    assert computed[0] == 0
    assert computed[-1] == steps - 1
    assert len(computed) == (steps if steps < FEWEST_STEPS else (steps + 1) // 2)
    assert all(later - earlier <= 3 for earlier, later in itertools.pairwise(computed))


@pytest.mark.parametrize(("steps", "forwards"), [(1, 1), (4, 4), (8, 8), (9, 5), (28, 14), (50, 25)])
def test_only_the_computed_steps_cost_a_forward(loaded: LoadedPipeline, steps: int, forwards: int) -> None:
    counted = CountedAttention()
    found = latents(loaded, denoiser_of(loaded, counted), steps=steps, quality=Quality.FAST)
    assert counted.forwards == forwards
    assert torch.isfinite(found).all()


def test_guidance_by_a_negative_prompt_takes_two_forwards_a_computed_step(loaded: LoadedPipeline) -> None:
    counted = CountedAttention()
    sequence, pooled, _ = loaded.pipeline.encode_prompt(prompt="blurry", device="cpu", max_sequence_length=32)
    guided = {"negative": Text(sequence, pooled), "true_cfg_scale": 4.0, "steps": 9, "quality": Quality.FAST}
    found = latents(loaded, denoiser_of(loaded, counted), **guided)
    assert counted.forwards == 2 * 5
    exact = latents(loaded, denoiser_of(loaded), **guided | {"quality": Quality.EXACT})
    assert 0 < difference(found, exact) < 0.5


# Numbers


@pytest.mark.parametrize(
    ("width", "height"), [(64, 48), (16, 16), (48, 128), (80, 16)], ids=["12 tokens", "1", "24", "5"]
)
def test_a_forward_is_as_close_as_eight_bits_can_be(loaded: LoadedPipeline, width: int, height: int) -> None:
    fused = denoiser_of(loaded)
    size = {"width": width, "height": height}
    exact = latents(loaded, fused, **size)
    fast = latents(loaded, fused, **size, quality=Quality.FAST)
    assert 1e-4 < difference(fast, exact) < ROUNDING
    assert torch.equal(latents(loaded, fused, **size, quality=Quality.FAST), fast)


def test_exact_images_stay_exact_beside_fast_ones(loaded: LoadedPipeline) -> None:
    alone = latents(loaded, FusedDenoiser(loaded.pipeline, operations=Operations()), steps=3)
    both = denoiser_of(loaded)
    for quality in (Quality.FAST, Quality.EXACT, Quality.FAST):
        found = latents(loaded, both, steps=3, quality=quality)
        assert torch.equal(found, alone) is (quality is Quality.EXACT)


def test_weights_that_changed_are_scaled_again(tiny_checkpoint: Path) -> None:
    own = load_pipeline(spec_of(tiny_checkpoint))
    fused = denoiser_of(own)
    before = latents(own, fused, quality=Quality.FAST)
    with torch.no_grad():
        own.pipeline.transformer.single_transformer_blocks[0].proj_out.weight.mul_(2)
    fused.add_fast(ScaledOperations())
    after = latents(own, fused, quality=Quality.FAST)
    assert difference(after, before) > 1e-3
    assert difference(after, latents(own, fused)) < ROUNDING


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_dtype_of_the_checkpoint_hardly_matters(tiny_checkpoint: Path, loaded: LoadedPipeline, dtype: str) -> None:
    half = load_pipeline(spec_of(tiny_checkpoint, transformer_dtype=dtype))
    exact = latents(loaded, denoiser_of(loaded))
    assert difference(latents(half, denoiser_of(half), quality=Quality.FAST), exact) < ROUNDING


@given(rows=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=8))
def test_a_row_in_eight_bits_is_off_by_at_most_half_a_digit(rows: list[list[float]]) -> None:
    values = torch.tensor(rows)
    found = scaled(values)
    back = found.values.float() * found.scales[:, None]
    # Below the smallest normal number, 2**-6 of a scale, digits are 2**-9 of it apart.
    bound = torch.maximum(values.abs() * DIGIT / 2, found.scales[:, None] * 2**-10)
    assert ((back - values).abs() <= bound * 1.001).all()


# Kernels, by Triton's interpreter. Its conversion to float8 loses the carry into the exponent (126 becomes 64) and that
# to bfloat16 cuts digits off, which GPUs do right: kernels write float32 here, and torch rounds.


def empty_rows(rows: int, columns: int, dtype: torch.dtype) -> ScaledRows:
    return ScaledRows(torch.zeros(rows, columns, dtype=dtype), torch.zeros(rows))


def check_equal(found: ScaledRows, wanted: ScaledRows) -> None:
    assert torch.allclose(found.scales, wanted.scales, rtol=1e-5)
    rounded, values = found.values.to(FLOAT8).float(), wanted.values.float()
    # A number between two digits may go to either of them.
    assert torch.allclose(rounded, values, rtol=DIGIT, atol=2**-9)
    assert float((rounded != values).float().mean()) < 0.02


@pytest.mark.parametrize("has_update", [False, True])
def test_the_kernel_of_scaled_norms_does_what_the_reference_does(*, has_update: bool) -> None:
    width, rows = 48, 7
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(6 * width, generator=generator).half()
    modulation = Modulation(
        vectors=vectors,
        text_rows=3,
        text=NormVectors(gate=0, scale=width, shift=2 * width),
        image=NormVectors(gate=3 * width, scale=4 * width, shift=5 * width),
    )
    update = 3 * torch.randn(rows, width, generator=generator).half() if has_update else None

    def run(operations: ScaledOperations, dtype: torch.dtype) -> tuple[torch.Tensor, ScaledRows]:
        stream = torch.randn(rows, width, generator=torch.Generator().manual_seed(2)).half()
        out = empty_rows(rows, width, dtype)
        operations.add_norm_and_scale(
            stream=stream,
            update=update,
            out=out,
            modulation=modulation,
        )
        return stream, out

    stream, found = run(TritonScaledOperations(), torch.float32)
    wanted_stream, wanted = run(ScaledOperations(), FLOAT8)
    assert torch.equal(stream, wanted_stream)
    check_equal(found, wanted)


@pytest.mark.parametrize(("attended", "hidden"), [(48, 0), (0, 192), (48, 192)])
def test_the_kernel_of_scaled_rows_does_what_the_reference_does(attended: int, hidden: int) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = 5
    parts = {
        "attended": torch.randn(rows, attended, generator=generator).bfloat16() if attended else None,
        "hidden": 2 * torch.randn(rows, hidden, generator=generator).bfloat16() if hidden else None,
    }
    found, wanted = (empty_rows(rows, attended + hidden, dtype) for dtype in (torch.float32, FLOAT8))
    TritonScaledOperations().scale_rows(**parts, out=found)
    ScaledOperations().scale_rows(**parts, out=wanted)
    check_equal(found, wanted)


@pytest.mark.parametrize("has_scales", [False, True])
def test_the_kernel_of_scaled_heads_does_what_the_reference_does(*, has_scales: bool) -> None:
    packed = 200 * torch.randn(5, 3, 8, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    scales = torch.linspace(0.1, 2, 8) if has_scales else None
    heads = packed[:, 1]
    found, wanted = torch.empty(5, 8, 16), torch.empty(5, 8, 16, dtype=FLOAT8)
    TritonScaledOperations().scale_heads(heads, scales=scales, out=found)
    ScaledOperations().scale_heads(heads, scales=scales, out=wanted)
    assert float(wanted.float().abs().max()) == FLOAT8_MAX
    assert torch.allclose(found.to(FLOAT8).float(), wanted.float(), rtol=DIGIT, atol=2**-9)


def attend_in_float8(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    out: torch.Tensor,
    q_descale: torch.Tensor,
    k_descale: torch.Tensor,
    v_descale: torch.Tensor,
    softmax_scale: float,
    num_splits: int,
) -> None:
    """What the wheel's operator says that it computes, of one sequence: (batch, rows, heads, head width)."""
    assert {query.dtype, key.dtype, value.dtype} == {FLOAT8}
    assert num_splits == 1
    scales = (q_descale, k_descale, v_descale)
    parts = (part.float() * scale[:, None, :, None] for part, scale in zip((query, key, value), scales, strict=True))
    asked, known, told = (part.transpose(1, 2) for part in parts)
    attended = torch.nn.functional.scaled_dot_product_attention(asked, known, told, scale=softmax_scale)
    out.copy_(attended.transpose(1, 2))


def test_attention_in_eight_bits_takes_values_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator needs a GPU; its formula does not. Heads whose values differ by six digits are equally right."""
    monkeypatch.setattr(torch.ops, "fa3_fwd", SimpleNamespace(fwd=attend_in_float8), raising=False)
    attend = partial(scaled_flash_attention, ScaledOperations())
    assert 0 < difference_to_torch(attend, torch.device("cpu"), head_width=16) < 0.06


def test_attention_of_many_rows_is_not_in_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error grows with the rows."""
    taken: list[torch.dtype] = []

    def attend(query: torch.Tensor, *_parts: torch.Tensor, out: torch.Tensor, **_options: object) -> None:
        taken.append(query.dtype)
        out.copy_(query)

    monkeypatch.setattr(torch.ops, "fa3_fwd", SimpleNamespace(fwd=attend), raising=False)
    for rows in (MOST_ROWS, MOST_ROWS + 1):
        heads = torch.zeros(rows, 8, 1, dtype=torch.bfloat16)
        assert scaled_flash_attention(ScaledOperations(), heads, heads, heads).dtype == torch.bfloat16
    assert taken == [FLOAT8, torch.bfloat16]


def test_torch_s_scaled_product_does_what_the_reference_does() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = scaled(torch.randn(32, 64, generator=generator) * torch.arange(1, 33)[:, None])
    weights = scaled(torch.randn(48, 64, generator=generator) * torch.arange(1, 49)[:, None])
    layer = Linear(weights.values, torch.randn(48, generator=generator).bfloat16(), weights.scales)
    found, wanted = torch.empty(2, 32, 48, dtype=torch.bfloat16)
    TritonScaledOperations().linear(rows, layer, out=found)
    ScaledOperations().linear(rows, layer, out=wanted)
    assert difference(found.float(), wanted.float()) < 0.01


# Jobs


def generator_of(loaded: LoadedPipeline) -> FluxGenerator:
    return FluxGenerator(loaded, fused=denoiser_of(loaded))


def generate(generator: FluxGenerator, inputs: GenerationInputs = INPUTS) -> Rendering:
    return generator.generate(inputs, on_step=lambda _step, _total: None, is_canceled=lambda: False)


def test_a_rendering_names_the_path(loaded: LoadedPipeline) -> None:
    generator = generator_of(loaded)
    assert generate(generator).path is EnginePath.FUSED_FAST
    assert generate(generator, replace(INPUTS, quality=Quality.EXACT)).path is EnginePath.FUSED


@pytest.mark.parametrize("after", range(10))
def test_a_fast_job_is_canceled_between_any_two_steps(loaded: LoadedPipeline, after: int) -> None:
    steps: list[int] = []
    with pytest.raises(GenerationCanceledError):
        generator_of(loaded).generate(
            replace(INPUTS, steps=10),
            on_step=lambda step, _total: steps.append(step),
            is_canceled=lambda: len(steps) >= after,
        )
    assert len(steps) == after


def test_every_step_of_a_fast_job_is_reported(loaded: LoadedPipeline) -> None:
    steps: list[int] = []
    generator_of(loaded).generate(
        replace(INPUTS, steps=12), on_step=lambda step, _total: steps.append(step), is_canceled=lambda: False
    )
    assert steps == list(range(1, 13))


def test_a_poisoned_weight_is_noticed_in_eight_bits(tiny_checkpoint: Path) -> None:
    own = load_pipeline(spec_of(tiny_checkpoint, transformer_dtype="float16"))
    with torch.no_grad():
        own.pipeline.transformer.transformer_blocks[1].ff.net[2].weight[0, 0] = torch.nan
    with pytest.raises(NotFiniteError):
        generate(generator_of(own))


# Who is refused


def test_a_device_without_eight_bit_products_refuses_fast_jobs_by_name(tiny_checkpoint: Path) -> None:
    generator = load_generator(spec_of(tiny_checkpoint, qualities=tuple(Quality)))
    with pytest.raises(
        InputsError, match="quality: fast is not available on this worker: the device is cpu; use exact"
    ):
        generate(generator)
    assert generate(generator, replace(INPUTS, quality=Quality.EXACT)).path is EnginePath.DIFFUSERS


def test_a_default_that_cannot_be_drawn_ends_the_start(tiny_checkpoint: Path) -> None:
    spec = spec_of(tiny_checkpoint, qualities=tuple(Quality), default_quality=Quality.FAST)
    with pytest.raises(
        CheckpointError, match="quality: fast is not available on this worker: the device is cpu; make exact"
    ):
        load_generator(spec)


def test_a_fast_way_that_fails_its_warm_up_is_refused_with_the_reason(tiny_checkpoint: Path) -> None:
    own = load_pipeline(spec_of(tiny_checkpoint))

    def refuse(*_tensors: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")

    generator = FluxGenerator(own, fused=denoiser_of(own, refuse))
    generator.warm_up()
    with pytest.raises(
        InputsError, match=r"its warm-up failed \(RuntimeError: CUBLAS_STATUS_NOT_SUPPORTED\); use exact"
    ):
        generate(generator)
    assert generate(generator, replace(INPUTS, quality=Quality.EXACT)).path is EnginePath.FUSED


def test_a_job_for_what_the_pool_does_not_allow_is_refused(loaded: LoadedPipeline) -> None:
    generator = FluxGenerator(loaded, why_not_fast="the pool does not allow it")
    with pytest.raises(InputsError, match="is not available on this worker: the pool does not allow it"):
        generate(generator)


def test_a_cpu_has_neither_eight_bit_products_nor_flash_attention() -> None:
    cpu = torch.device("cpu")
    assert why_not_fast(cpu) == "the device is cpu"
    assert why_not_flash(cpu, torch.bfloat16, head_width=128) == "the device is cpu"
    assert choose_attention(cpu, torch.bfloat16, head_width=128) is attention
    assert choose_fast_attention(ScaledOperations(), cpu, head_width=128) is attention
