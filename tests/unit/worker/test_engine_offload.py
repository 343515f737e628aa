"""Weights in host memory: when, and that the images are those of resident weights."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.checkpoint.offloading import ROOM_BYTES, offload, why_offload, why_offload_from
from fluxpool_worker.engine.checkpoint.weight_files import WEIGHTED_PARTS, weight_paths
from fluxpool_worker.engine.generation import FluxGenerator
from fluxpool_worker.engine.generator import GenerationCanceledError, Pixels
from fluxpool_worker.engine.protocol import Device, EnginePath, EngineSpec, GenerationInputs, Offload

INPUTS = GenerationInputs(prompt="a red fox", width=64, height=48, steps=3, seed=11)


def spec_of(folder: Path) -> EngineSpec:
    return EngineSpec(
        model=str(folder), device=Device.CPU, offline=True, transformer_dtype="float32", encoder_dtype="float32"
    )


def draw(generator: FluxGenerator, inputs: GenerationInputs = INPUTS) -> Pixels:
    return generator.generate(inputs, on_step=lambda _step, _total: None, is_canceled=lambda: False).images[0]


def offloaded(folder: Path) -> FluxGenerator:
    """The blocks' hooks are there; their copies stay where they are, for a CPU has no other memory."""
    loaded = load_pipeline(spec_of(folder))
    offload(loaded.pipeline, torch.device("cpu"))
    return FluxGenerator(replace(loaded, why_offloaded="the GPU is small"))


def test_images_are_those_of_resident_weights(tiny_checkpoint: Path) -> None:
    resident, generator = FluxGenerator(load_pipeline(spec_of(tiny_checkpoint))), offloaded(tiny_checkpoint)
    picture = io.BytesIO()
    Image.new("RGB", (80, 64), (200, 30, 30)).save(picture, "PNG")
    for inputs in (
        INPUTS,
        replace(INPUTS, prompt="a kite", negative_prompt="grey", true_cfg_scale=3.0),
        replace(INPUTS, image=picture.getvalue(), strength=0.7),
        INPUTS,
    ):
        assert np.array_equal(draw(generator, inputs), draw(resident, inputs))


def test_a_canceled_job_leaves_the_next_one_right(tiny_checkpoint: Path) -> None:
    generator, steps = offloaded(tiny_checkpoint), list[int]()
    before = draw(generator)
    with pytest.raises(GenerationCanceledError):
        generator.generate(INPUTS, on_step=lambda step, _total: steps.append(step), is_canceled=lambda: len(steps) >= 2)
    assert np.array_equal(draw(generator), before)


def test_results_name_the_path(tiny_checkpoint: Path) -> None:
    rendering = offloaded(tiny_checkpoint).generate(
        INPUTS, on_step=lambda _step, _total: None, is_canceled=lambda: False
    )
    assert rendering.path is EnginePath.DIFFUSERS_OFFLOADED


def test_weights_stay_on_a_gpu_that_has_room_for_them(tiny_checkpoint: Path) -> None:
    weights = sum(path.stat().st_size for part in WEIGHTED_PARTS for path in weight_paths(tiny_checkpoint / part))
    fits = weights + ROOM_BYTES
    assert why_offload_from(Offload.AUTO, tiny_checkpoint, memory_bytes=fits) is None
    reason = why_offload_from(Offload.AUTO, tiny_checkpoint, memory_bytes=fits - 1)
    assert reason == "the GPU has 5 GB of memory, and all weights on it need 5 GB"
    assert why_offload_from(Offload.NEVER, tiny_checkpoint, memory_bytes=0) is None
    assert why_offload_from(Offload.ALWAYS, tiny_checkpoint, memory_bytes=fits) == "the pool asks for it"


def test_a_folder_without_weights_is_left_to_the_loader(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text("[]")
    assert why_offload_from(Offload.AUTO, tmp_path, memory_bytes=0) is None


def test_a_cpu_keeps_its_weights(tiny_checkpoint: Path) -> None:
    assert why_offload(replace(spec_of(tiny_checkpoint), offload=Offload.ALWAYS), tiny_checkpoint) is None
