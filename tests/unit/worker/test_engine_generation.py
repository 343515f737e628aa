"""Generation with the tiny checkpoint on the CPU: the real diffusers pipeline, small enough for a unit test."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.generation import (
    CFG_IGNORED,
    NEGATIVE_PROMPT_IGNORED,
    RESCUE_WARNING,
    FluxGenerator,
    load_generator,
)
from fluxpool_worker.engine.generator import (
    CheckpointError,
    GenerationCanceledError,
    InputsError,
    NotFiniteError,
)
from fluxpool_worker.engine.protocol import Device, EngineSpec, GenerationInputs
from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint
from kit.engines.generating import one_pipeline_call, render

INPUTS = GenerationInputs(prompt="a red fox in the snow", width=64, height=48, steps=3, seed=11)


def spec_of(checkpoint: Path, **changes: Any) -> EngineSpec:
    return EngineSpec(**{"model": str(checkpoint), "device": Device.CPU, "offline": True, **changes})


@pytest.fixture(scope="module")
def float32(tiny_checkpoint: Path) -> FluxGenerator:
    return FluxGenerator(load_pipeline(spec_of(tiny_checkpoint, transformer_dtype="float32", encoder_dtype="float32")))


@pytest.fixture(scope="module")
def mixed(tiny_checkpoint: Path) -> FluxGenerator:
    """The default dtypes: transformer float16, everything else bfloat16."""
    return load_generator(spec_of(tiny_checkpoint))


@pytest.fixture
def spoil(tiny_checkpoint: Path) -> Callable[..., FluxGenerator]:
    """Load a generator with a changed pipeline, like that of a damaged or overflowing checkpoint."""

    def load(change: Callable[[Any], None], **spec_changes: Any) -> FluxGenerator:
        loaded = load_pipeline(spec_of(tiny_checkpoint, **spec_changes))
        change(loaded.pipeline)
        return FluxGenerator(loaded)

    return load


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "inputs",
    [INPUTS, replace(INPUTS, negative_prompt="blurry", true_cfg_scale=3.0), replace(INPUTS, guidance=7.0)],
    ids=["plain", "classifier-free-guidance", "other-guidance"],
)
def test_split_generation_equals_one_pipeline_call_bit_for_bit(
    tiny_checkpoint: Path, dtype: str, inputs: GenerationInputs
) -> None:
    loaded = load_pipeline(spec_of(tiny_checkpoint, transformer_dtype=dtype, encoder_dtype=dtype))
    expected = one_pipeline_call(loaded.pipeline, inputs)

    (image,) = render(FluxGenerator(loaded), inputs).images

    assert np.array_equal(image, expected)


def test_default_dtypes_generate_an_image_of_the_requested_size(mixed: FluxGenerator) -> None:
    rendering = render(mixed, INPUTS)

    (image,) = rendering.images
    assert image.shape == (48, 64, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10, "an image, not one colour"
    assert rendering.warnings == ()
    assert set(rendering.timings_ms) == {"text_encode", "denoise", "vae"}
    assert all(milliseconds > 0 for milliseconds in rendering.timings_ms.values())


def test_default_dtypes_stay_close_to_float32(mixed: FluxGenerator, float32: FluxGenerator) -> None:
    (low,) = render(mixed, INPUTS).images
    (exact,) = render(float32, INPUTS).images

    assert np.abs(low.astype(int) - exact.astype(int)).mean() < 4


def test_modules_keep_the_dtypes_they_were_loaded_in(tiny_checkpoint: Path) -> None:
    loaded = load_pipeline(spec_of(tiny_checkpoint))
    render(FluxGenerator(loaded), INPUTS)

    pipeline = loaded.pipeline
    assert {parameter.dtype for parameter in pipeline.transformer.parameters()} == {torch.float16}
    for module in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.vae):
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_image_i_is_the_single_image_of_seed_plus_i(mixed: FluxGenerator) -> None:
    both = render(mixed, replace(INPUTS, n=2)).images

    (first,) = render(mixed, INPUTS).images
    (second,) = render(mixed, replace(INPUTS, seed=INPUTS.seed + 1)).images
    assert np.array_equal(both[0], first)
    assert np.array_equal(both[1], second)
    assert not np.array_equal(first, second)


def test_prompt_negative_prompt_and_guidance_change_the_image(mixed: FluxGenerator) -> None:
    changed = [
        INPUTS,
        replace(INPUTS, prompt="a blue whale"),
        replace(INPUTS, guidance=8.0),
        replace(INPUTS, negative_prompt="blurry", true_cfg_scale=4.0),
        replace(INPUTS, negative_prompt="", true_cfg_scale=4.0),
    ]

    pictures = {render(mixed, inputs).images[0].tobytes() for inputs in changed}

    assert len(pictures) == len(changed)


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"negative_prompt": "blurry"}, NEGATIVE_PROMPT_IGNORED),
        ({"true_cfg_scale": 4.0}, CFG_IGNORED),
    ],
)
def test_half_of_classifier_free_guidance_has_no_effect_and_a_warning(
    mixed: FluxGenerator, changes: dict[str, Any], warning: str
) -> None:
    plain = render(mixed, INPUTS)
    half = render(mixed, replace(INPUTS, **changes))

    assert half.warnings == (warning,)
    assert np.array_equal(half.images[0], plain.images[0])


def test_text_beyond_the_limit_of_t5_is_truncated_with_a_warning(mixed: FluxGenerator) -> None:
    words = "x" * 700
    rendering = render(mixed, replace(INPUTS, prompt=words))

    (warning,) = rendering.warnings
    assert warning.startswith("prompt has 7")
    assert warning.endswith("only the first 512 were read")
    assert np.array_equal(rendering.images[0], render(mixed, replace(INPUTS, prompt=words + "y" * 100)).images[0])


def test_steps_are_counted_through_all_images(mixed: FluxGenerator) -> None:
    steps: list[tuple[int, int]] = []

    render(mixed, replace(INPUTS, n=2), on_step=lambda step, total: steps.append((step, total)))

    assert steps == [(done, 6) for done in range(1, 7)]


def test_a_cancelled_job_stops_at_its_step_and_leaves_the_next_one_right(mixed: FluxGenerator) -> None:
    expected = render(mixed, INPUTS).images[0]
    steps: list[int] = []

    with pytest.raises(GenerationCanceledError):
        render(
            mixed,
            replace(INPUTS, prompt="another", width=96, steps=20),
            on_step=lambda step, _total: steps.append(step),
            is_canceled=lambda: len(steps) == 2,
        )

    assert steps == [1, 2]
    assert np.array_equal(render(mixed, INPUTS).images[0], expected)


def test_a_job_cancelled_before_it_starts_generates_nothing(mixed: FluxGenerator) -> None:
    steps: list[int] = []

    with pytest.raises(GenerationCanceledError):
        render(mixed, INPUTS, on_step=lambda step, _total: steps.append(step), is_canceled=lambda: True)

    assert steps == []


def overflow_float16(pipeline: Any) -> None:
    """Activations beyond 65,504 in the image stream, which later layers normalise: finite in bfloat16 only."""
    with torch.no_grad():
        pipeline.transformer.x_embedder.weight.mul_(1e5)


def poison_transformer(pipeline: Any) -> None:
    with torch.no_grad():
        pipeline.transformer.proj_out.weight[0, 0] = float("inf")


def poison_vae(pipeline: Any) -> None:
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.weight.fill_(float("nan"))


def test_a_float16_overflow_is_repeated_with_bfloat16_arithmetic(spoil: Callable[..., FluxGenerator]) -> None:
    generator = spoil(overflow_float16)
    steps: list[tuple[int, int]] = []

    rendering = render(generator, INPUTS, on_step=lambda step, total: steps.append((step, total)))

    assert rendering.warnings == (RESCUE_WARNING.format(index=0),)
    assert rendering.images[0].std() > 10
    assert steps == [(1, 3), (2, 3), (3, 3), (4, 6), (5, 6), (6, 6)]


def test_the_repeated_image_equals_that_of_a_model_without_overflow(spoil: Callable[..., FluxGenerator]) -> None:
    def overflow_exactly(pipeline: Any) -> None:
        # The float32 model holds the same float16 weights, so that only the arithmetic differs.
        with torch.no_grad():
            pipeline.transformer.x_embedder.weight.copy_(
                pipeline.transformer.x_embedder.weight.to(torch.float16).mul(1e5)
            )

    rescued = render(spoil(overflow_exactly), INPUTS).images[0]
    exact = render(spoil(overflow_exactly, transformer_dtype="float32"), INPUTS).images[0]

    assert np.abs(rescued.astype(int) - exact.astype(int)).mean() < 8


def test_the_bfloat16_repetition_does_not_change_the_loaded_weights(tiny_checkpoint: Path) -> None:
    loaded = load_pipeline(spec_of(tiny_checkpoint))
    overflow_float16(loaded.pipeline)
    before = {name: weight.clone() for name, weight in loaded.pipeline.transformer.state_dict().items()}

    render(FluxGenerator(loaded), INPUTS)

    after = loaded.pipeline.transformer.state_dict()
    assert all(
        torch.equal(weight, after[name]) and weight.dtype == after[name].dtype for name, weight in before.items()
    )


@pytest.mark.parametrize(
    ("change", "spec_changes", "message"),
    [
        (poison_transformer, {}, "neither in float16 nor in bfloat16"),
        (poison_transformer, {"transformer_dtype": "bfloat16"}, "not finite in bfloat16"),
        (poison_vae, {}, "the VAE's picture is not finite in bfloat16"),
    ],
)
def test_a_failed_generation_is_an_error_and_never_a_black_image(
    spoil: Callable[..., FluxGenerator], change: Callable[[Any], None], spec_changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotFiniteError, match=message):
        render(spoil(change, **spec_changes), INPUTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 100}, "width: 100 is not a multiple of 16; use 96"),
        ({"height": 8}, "height: 8 is not a multiple of 16; use 16"),
        ({"height": 0}, "height: 0 is not a multiple of 16; use 16"),
        ({"steps": 0}, "steps: 0 is too small; use 1 or more"),
        ({"n": 0}, "n: 0 is too small"),
        ({"seed": -1}, "seed: -1 must be 0 or more"),
        ({"seed": 2**64 - 1, "n": 2}, "seed: .* at most"),
        ({"guidance": float("nan")}, "guidance: nan is not a finite number"),
    ],
)
def test_invalid_parameters_name_the_field(mixed: FluxGenerator, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputsError, match=message):
        render(mixed, replace(INPUTS, **changes))


def test_the_smallest_size_and_one_step_work(mixed: FluxGenerator) -> None:
    (image,) = render(mixed, replace(INPUTS, width=16, height=16, steps=1)).images

    assert image.shape == (16, 16, 3)


def test_the_shape_of_schnell_has_no_guidance_and_reads_256_tokens(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "schnell", guidance_embeds=False)
    generator = load_generator(spec_of(tmp_path / "schnell"))

    plain = render(generator, INPUTS)
    other_guidance = render(generator, replace(INPUTS, guidance=9.0))
    long_prompt = render(generator, replace(INPUTS, prompt="x" * 400))

    assert np.array_equal(plain.images[0], other_guidance.images[0])
    assert long_prompt.warnings[0].endswith("only the first 256 were read")


def test_a_model_that_cannot_generate_fails_its_warm_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file  # noqa: PLC0415 - needed by this test alone

    folder = tmp_path / "broken"
    write_tiny_checkpoint(folder)
    weights_file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(weights_file)
    weights["proj_out.weight"][0, 0] = float("inf")
    save_file(weights, weights_file)

    with pytest.raises(CheckpointError, match=r"was loaded but cannot generate: .*not finite"):
        load_generator(spec_of(folder))
