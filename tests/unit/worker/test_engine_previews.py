"""Previews of an image while it is denoised: what they show, when, and that they change nothing."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fluxpool_contract.messages.progress import MAX_PREVIEW_BYTES
from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.files.preview_file import SIDE_PIXELS, encode_preview
from fluxpool_worker.engine.fused import FusedDenoiser
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.generation import FluxGenerator
from fluxpool_worker.engine.generator import LatentPreview, Pixels, Rendering
from fluxpool_worker.engine.latents.previews import ImagePreviews, LatentMap
from fluxpool_worker.engine.protocol import Device, EngineSpec, GenerationInputs
from fluxpool_worker.marks import DigitalSourceType

STEPS = 12
INPUTS = GenerationInputs(
    prompt="a red fox in the snow", width=96, height=64, steps=STEPS, seed=11, preview_every_steps=3
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> Any:
    spec = EngineSpec(
        model=str(tiny_checkpoint),
        device=Device.CPU,
        offline=True,
        transformer_dtype="float32",
        encoder_dtype="float32",
    )
    return load_pipeline(spec)


@pytest.fixture(scope="module", params=["diffusers", "fused"])
def generator(request: pytest.FixtureRequest, pipeline: Any) -> FluxGenerator:
    fused = FusedDenoiser(pipeline.pipeline, operations=Operations()) if request.param == "fused" else None
    return FluxGenerator(pipeline, fused=fused)


def generate(
    generator: FluxGenerator, inputs: GenerationInputs, on_preview: Callable[[LatentPreview], None] | None = None
) -> Rendering:
    return generator.generate(
        inputs, on_step=lambda _step, _total: None, is_canceled=lambda: False, on_preview=on_preview
    )


def previews_of(generator: FluxGenerator, inputs: GenerationInputs) -> list[LatentPreview]:
    found: list[LatentPreview] = []
    generate(generator, inputs, found.append)
    return found


def likeness(one: Pixels, other: Pixels) -> float:
    """Correlation of two pictures of one size, -1 to 1."""
    return float(np.corrcoef(one.astype(float).ravel(), other.astype(float).ravel())[0, 1])


def final_map(pipeline: Any, inputs: GenerationInputs) -> Pixels:
    """The map of the latents that a call of the diffusers pipeline ends with."""
    (latents,) = pipeline.pipeline(
        prompt=inputs.prompt,
        guidance_scale=inputs.guidance,
        width=inputs.width,
        height=inputs.height,
        num_inference_steps=inputs.steps,
        generator=torch.Generator("cpu").manual_seed(inputs.seed),
        output_type="latent",
        return_dict=False,
    )
    patch = 2 * pipeline.pipeline.vae_scale_factor
    shown = LatentMap(CPU).pixels(latents[0], rows=inputs.height // patch, columns=inputs.width // patch)
    pixels: Pixels = shown.numpy()
    return pixels


def test_previews_come_nearer_to_the_image_that_is_generated_and_to_no_other(
    generator: FluxGenerator, pipeline: Any
) -> None:
    found = previews_of(generator, INPUTS)
    own, another = final_map(pipeline, INPUTS), final_map(pipeline, replace(INPUTS, seed=12))
    likenesses = [likeness(preview.pixels(), own) for preview in found]
    assert likenesses == sorted(likenesses)
    assert likenesses[0] > 0.5
    assert likenesses[-1] > 0.98
    assert abs(likeness(found[-1].pixels(), another)) < 0.3


def test_images_are_equal_with_and_without_previews(generator: FluxGenerator) -> None:
    shown: list[LatentPreview] = []
    inputs = replace(INPUTS, n=2, negative_prompt="people", true_cfg_scale=2.0)
    with_previews = generate(generator, inputs, shown.append)
    without = generate(generator, replace(inputs, preview_every_steps=0))
    assert shown
    for one, other in zip(with_previews.images, without.images, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("every", "steps", "n", "shown"),
    [
        (3, STEPS, 1, [(3, 0), (6, 0), (9, 0)]),
        (3, 4, 2, [(1, 0), (2, 0), (3, 0), (5, 1), (6, 1), (7, 1)]),
        (100, STEPS, 1, [(3, 0), (6, 0), (9, 0)]),
        (1, 3, 1, [(1, 0), (2, 0)]),
        (1, 1, 1, []),
        (0, STEPS, 1, []),
    ],
    ids=["every-third", "few-steps-and-two-images", "at-least-three", "each", "one-step", "none"],
)
def test_previews_come_every_so_many_steps_and_not_with_the_last(
    generator: FluxGenerator, every: int, steps: int, n: int, shown: list[tuple[int, int]]
) -> None:
    found = previews_of(generator, replace(INPUTS, steps=steps, n=n, preview_every_steps=every))
    assert [(preview.step, preview.index) for preview in found] == shown
    assert {preview.total_steps for preview in found} <= {steps * n}


def test_a_preview_that_is_read_late_shows_its_own_step(generator: FluxGenerator) -> None:
    at_once: list[Pixels] = []
    later: list[LatentPreview] = []

    def keep(preview: LatentPreview) -> None:
        at_once.append(preview.pixels().copy())
        later.append(preview)

    generate(generator, INPUTS, keep)
    assert all(np.array_equal(one, other.pixels()) for one, other in zip(at_once, later, strict=True))


def test_the_map_has_the_latents_where_diffusers_unpacks_them(pipeline: Any) -> None:
    packed = torch.randn(1, 6 * 4, 64, generator=torch.Generator().manual_seed(1))
    patch = 2 * pipeline.pipeline.vae_scale_factor
    unpacked = pipeline.pipeline._unpack_latents(  # noqa: SLF001 - the reference
        packed, 4 * patch, 6 * patch, pipeline.pipeline.vae_scale_factor
    )
    latent_map = LatentMap(CPU)
    for row, column in ((0, 0), (3, 7), (7, 11)):
        alone = torch.zeros_like(unpacked)
        alone[0, :, row, column] = unpacked[0, :, row, column]
        repacked = pipeline.pipeline._pack_latents(alone, 1, 16, 8, 12)  # noqa: SLF001 - the reference
        whole = latent_map.pixels(packed[0], rows=4, columns=6)
        single = latent_map.pixels(repacked[0], rows=4, columns=6)
        assert torch.equal(single[row, column], whole[row, column])
        single[row, column] = single[1, 1]
        assert len(np.unique(single.reshape(-1, 3).numpy(), axis=0)) == 1


def test_on_a_straight_way_every_preview_is_the_end() -> None:
    clean, noise = torch.randn(2, 24, 64, generator=torch.Generator().manual_seed(1))
    sigmas = tuple(1 - step / 8 for step in range(9))
    shown: list[Pixels] = []
    latent_map = LatentMap(CPU)
    previews = ImagePreviews(
        latent_map, every=2, sigmas=sigmas, rows=4, columns=6, show=lambda pixels: shown.append(pixels())
    )
    for step in range(1, 9):
        latents = clean + sigmas[step] * (noise - clean)
        previews.after_step(step, latents, velocity=noise - clean)
        before = clean + sigmas[step - 1] * (noise - clean)
        previews.after_pipeline_step(step, latents[None], before=before[None])
    end = latent_map.pixels(clean, rows=4, columns=6).numpy().astype(int)
    assert len(shown) == 2 * 3
    assert all(np.abs(pixels.astype(int) - end).max() <= 1 for pixels in shown)


def test_latents_that_are_not_finite_have_a_preview_and_no_error() -> None:
    packed = torch.full((24, 64), float("nan"))
    packed[0] = float("inf")
    assert LatentMap(CPU).pixels(packed, rows=4, columns=6).shape == (8, 12, 3)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((128, 128), (256, 256)),
        ((256, 16), (256, 16)),
        ((8, 12), (171, 256)),
        ((2, 256), (2, 256)),
        ((1, 1), (256, 256)),
    ],
)
def test_a_preview_file_is_small_whatever_it_shows(size: tuple[int, int], expected: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = encode_preview(noise, source_type=DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA)
    assert file is not None
    assert len(file) <= MAX_PREVIEW_BYTES
    with Image.open(io.BytesIO(file)) as picture:
        assert (picture.height, picture.width) == expected
        assert picture.format == "WEBP"
        assert b"trainedAlgorithmicMedia" in picture.info["xmp"]
    assert max(expected) == SIDE_PIXELS
