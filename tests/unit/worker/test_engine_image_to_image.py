"""Images from a picture, on the tiny checkpoint: what diffusers' `FluxImg2ImgPipeline` generates, by both ways."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline
from PIL import Image
from safetensors.torch import save_file

from fluxpool_contract.messages import Quality
from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.fused.denoising import FusedDenoiser
from fluxpool_worker.engine.fused.fast.operations import ScaledOperations
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.generation import FluxGenerator
from fluxpool_worker.engine.generator import GenerationCanceledError, InputsError, Pixels
from fluxpool_worker.engine.protocol import AppliedLora, Device, EngineSpec, GenerationInputs
from kit.engines.generating import one_pipeline_call, render

BOTH_WAYS = pytest.mark.parametrize("fused", [False, True], ids=["by-diffusers", "fused"])


def picture(width: int = 64, height: int = 48) -> Image.Image:
    """Smooth colours with an edge, so that a wrong crop or orientation shows."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack((x, y, np.where(x > y, 200, 40)), axis=-1).astype(np.uint8)
    return Image.fromarray(pixels)


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


INPUTS = GenerationInputs(
    prompt="a red fox in the snow", width=64, height=48, steps=5, seed=11, image=as_png(picture()), strength=0.6
)


def generator_of(
    checkpoint: Path, *, fused: bool, dtype: str = "float32", lora_folder: Path | None = None
) -> FluxGenerator:
    spec = EngineSpec(
        model=str(checkpoint), device=Device.CPU, offline=True, transformer_dtype=dtype, encoder_dtype=dtype
    )
    loaded = load_pipeline(spec)
    denoiser = FusedDenoiser(loaded.pipeline, operations=Operations()) if fused else None
    return FluxGenerator(loaded, fused=denoiser, lora_folder=lora_folder)


@pytest.fixture(scope="module")
def generators(tiny_checkpoint: Path) -> dict[bool, FluxGenerator]:
    return {fused: generator_of(tiny_checkpoint, fused=fused) for fused in (False, True)}


@pytest.fixture(scope="module")
def diffusers_pipeline(tiny_checkpoint: Path) -> Any:
    spec = EngineSpec(
        model=str(tiny_checkpoint),
        device=Device.CPU,
        offline=True,
        transformer_dtype="float32",
        encoder_dtype="float32",
    )
    return FluxImg2ImgPipeline.from_pipe(load_pipeline(spec).pipeline)


def by_diffusers(pipeline: Any, inputs: GenerationInputs, image: Image.Image) -> Pixels:
    return one_pipeline_call(pipeline, inputs, image=image, strength=inputs.strength)


def distance(one: Pixels, other: Pixels) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@BOTH_WAYS
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strength": 1.0},
        {"strength": 0.2},
        {"strength": 0.01},
        {"steps": 1, "strength": 0.5},
        {"steps": 10, "strength": 0.3},
        {"width": 96, "height": 128},
        {"width": 16, "height": 16},
        {"negative_prompt": "blurry", "true_cfg_scale": 3.0},
    ],
    ids=str,
)
def test_it_draws_what_diffusers_draws(
    generators: dict[bool, FluxGenerator], diffusers_pipeline: Any, changes: dict[str, Any], *, fused: bool
) -> None:
    inputs = replace(INPUTS, **changes)
    image = picture(inputs.width, inputs.height)
    steps: list[tuple[int, int]] = []

    drawn = render(
        generators[fused],
        replace(inputs, image=as_png(image)),
        on_step=lambda step, total: steps.append((step, total)),
    )

    assert distance(drawn.images[0], by_diffusers(diffusers_pipeline, inputs, image)) <= 1
    run = diffusers_pipeline.num_timesteps
    assert steps == [(step, run) for step in range(1, run + 1)], "those that are run"
    assert drawn.timings_ms["input_image"] > 0


@BOTH_WAYS
def test_it_differs_from_the_picture_and_from_an_image_without_one(
    generators: dict[bool, FluxGenerator], *, fused: bool
) -> None:
    (drawn,) = render(generators[fused], INPUTS).images
    (weaker,) = render(generators[fused], replace(INPUTS, strength=0.2)).images
    (without,) = render(generators[fused], replace(INPUTS, image=None)).images
    (other,) = render(generators[fused], replace(INPUTS, image=as_png(picture().rotate(180)))).images
    for image in (weaker, without, other):
        assert distance(drawn, image) > 10


@BOTH_WAYS
def test_image_i_is_the_single_image_of_seed_plus_i_and_steps_are_counted_through(
    generators: dict[bool, FluxGenerator], *, fused: bool
) -> None:
    steps: list[tuple[int, int]] = []
    images = render(
        generators[fused], replace(INPUTS, n=2), on_step=lambda step, total: steps.append((step, total))
    ).images
    again = [render(generators[fused], replace(INPUTS, seed=INPUTS.seed + index)).images[0] for index in range(2)]
    assert all(np.array_equal(one, other) for one, other in zip(images, again, strict=True))
    assert steps == [(step, 6) for step in range(1, 7)]


@BOTH_WAYS
@pytest.mark.parametrize("after", range(3))
def test_it_is_canceled_between_any_two_steps_and_the_next_one_is_right(
    generators: dict[bool, FluxGenerator], after: int, *, fused: bool
) -> None:
    (before,) = render(generators[fused], INPUTS).images
    steps: list[int] = []
    with pytest.raises(GenerationCanceledError):
        render(
            generators[fused],
            INPUTS,
            on_step=lambda step, _total: steps.append(step),
            is_canceled=lambda: len(steps) >= after,
        )
    assert len(steps) == after
    assert np.array_equal(before, render(generators[fused], INPUTS).images[0])


@BOTH_WAYS
def test_half_precision_stays_close_to_float32(
    tiny_checkpoint: Path, generators: dict[bool, FluxGenerator], *, fused: bool
) -> None:
    half = generator_of(tiny_checkpoint, fused=fused, dtype="bfloat16")
    # The noise differs, as torch generates other numbers in bfloat16; a strength that keeps most shows the rest.
    keeping = replace(INPUTS, steps=20, strength=0.05)
    (low,), (exact,) = render(half, keeping).images, render(generators[fused], keeping).images
    assert np.abs(low.astype(int) - exact.astype(int)).mean() < 8


@BOTH_WAYS
def test_low_memory_draws_almost_the_same(generators: dict[bool, FluxGenerator], *, fused: bool) -> None:
    (usual,) = render(generators[fused], INPUTS).images
    drawn = render(generators[fused], replace(INPUTS, low_memory=True))
    assert distance(usual, drawn.images[0]) <= 8


def test_a_lora_changes_it_alike_on_both_ways(tiny_checkpoint: Path, tmp_path: Path) -> None:
    numbers = torch.Generator().manual_seed(0)
    halves = {half: 0.5 * torch.randn(shape, generator=numbers) for half, shape in (("A", (4, 32)), ("B", (64, 4)))}
    layers = {f"transformer.proj_out.lora_{half}.weight": tensor for half, tensor in halves.items()}
    save_file(layers, tmp_path / "fox.safetensors")
    with_lora = replace(INPUTS, loras=(AppliedLora("fox", 1.0),))
    drawn = []
    for fused in (False, True):
        generator = generator_of(tiny_checkpoint, fused=fused, lora_folder=tmp_path)
        (plain,), (changed,) = render(generator, INPUTS).images, render(generator, with_lora).images
        assert distance(plain, changed) > 10
        drawn.append(changed)
    assert distance(*drawn) <= 1


def test_fast_leaves_out_steps_of_those_that_are_run(tiny_checkpoint: Path) -> None:
    spec = EngineSpec(
        model=str(tiny_checkpoint),
        device=Device.CPU,
        offline=True,
        transformer_dtype="float32",
        encoder_dtype="float32",
    )
    loaded = load_pipeline(spec)
    denoiser = FusedDenoiser(loaded.pipeline, operations=Operations())
    denoiser.add_fast(ScaledOperations())
    generator = FluxGenerator(loaded, fused=denoiser)
    inputs = replace(INPUTS, steps=40, strength=0.5)
    steps: list[int] = []
    (exact,) = render(generator, inputs).images
    (fast,) = render(
        generator, replace(inputs, quality=Quality.FAST), on_step=lambda step, _total: steps.append(step)
    ).images
    assert steps == list(range(1, 21))
    assert 0 < np.abs(exact.astype(int) - fast.astype(int)).mean() < 20


def test_a_picture_of_another_shape_is_cropped_at_its_centre_and_scaled(
    generators: dict[bool, FluxGenerator], diffusers_pipeline: Any
) -> None:
    wide = picture(300, 90)
    expected = wide.resize((64, 48), Image.Resampling.LANCZOS, box=(90, 0, 210, 90))
    (drawn,) = render(generators[True], replace(INPUTS, image=as_png(wide))).images
    assert distance(drawn, by_diffusers(diffusers_pipeline, INPUTS, expected)) <= 1


def test_a_file_that_is_no_picture_names_the_field_and_the_next_job_is_right(
    generators: dict[bool, FluxGenerator],
) -> None:
    (before,) = render(generators[True], INPUTS).images
    with pytest.raises(InputsError, match=r"^image: is no PNG, JPEG or WebP file; send "):
        render(generators[True], replace(INPUTS, image=b"GIF89a"))
    assert np.array_equal(before, render(generators[True], INPUTS).images[0])
