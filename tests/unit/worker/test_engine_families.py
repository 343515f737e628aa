"""Families of models: how a checkpoint is recognised, and what follows for its tasks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.families import DEV, FAMILIES, KREA, SCHNELL, TINY, Family
from fluxpool_contract.messages import GenerationTask
from fluxpool_worker.agent.task.task_records import with_defaults
from fluxpool_worker.engine.checkpoint.families import ForeignModelError, check_pipeline, family_of
from fluxpool_worker.engine.checkpoint.loading import load_pipeline
from fluxpool_worker.engine.generation import GUIDANCE_IGNORED, FluxGenerator
from fluxpool_worker.engine.generator import CheckpointError, InputsError, Rendering
from fluxpool_worker.engine.protocol import Device, EngineSpec, GenerationInputs
from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint

TRANSFORMER = {"_class_name": "FluxTransformer2DModel", "in_channels": 64, "guidance_embeds": True}
INPUTS = GenerationInputs(prompt="a red fox in the snow", width=64, height=48, steps=2, seed=11, guidance=0.0)


def checkpoint(folder: Path, **config: Any) -> Path:
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(TRANSFORMER | config))
    return folder


@pytest.fixture(scope="module")
def schnell(tmp_path_factory: pytest.TempPathFactory) -> FluxGenerator:
    folder = tmp_path_factory.mktemp("models") / "schnell"
    write_tiny_checkpoint(folder, guidance_embeds=False)
    return FluxGenerator(load_pipeline(EngineSpec(model=str(folder), device=Device.CPU, offline=True)))


def render(generator: FluxGenerator, inputs: GenerationInputs) -> Rendering:
    return generator.generate(inputs, on_step=lambda _step, _total: None, is_canceled=lambda: False)


@pytest.mark.parametrize(
    ("name", "config", "family"),
    [
        ("FLUX.1-dev", {}, DEV),
        ("my-fine-tune", {}, DEV),
        ("FLUX.1-Krea-dev", {}, KREA),
        ("FLUX.1-schnell", {"guidance_embeds": False}, SCHNELL),
        ("dev", {"guidance_embeds": False}, SCHNELL),
    ],
)
def test_a_family_is_known_by_the_transformer_and_the_name(
    tmp_path: Path, name: str, config: dict[str, Any], family: Family
) -> None:
    assert family_of(checkpoint(tmp_path / name, **config)) is family


def test_the_name_of_a_hub_id_counts_where_the_folder_is_named_by_its_commit(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "9f83c2d1")
    assert family_of(folder, name="black-forest-labs/FLUX.1-Krea-dev@9f83c2d1") is KREA


def test_random_weights_are_under_no_publisher_s_licence(tiny_checkpoint: Path) -> None:
    assert family_of(tiny_checkpoint) is TINY


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"in_channels": 384}, "384 input channels instead of 64, as FLUX.1's Fill and Control"),
        ({"in_channels": 128}, "128 input channels"),
        ({"_class_name": "Flux2Transformer2DModel"}, "has the transformer 'Flux2Transformer2DModel'"),
    ],
)
def test_a_transformer_of_another_kind_is_refused_by_name(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(ForeignModelError, match=words):
        family_of(checkpoint(tmp_path / "model", **config))


@pytest.mark.parametrize(
    "pipeline",
    ["StableDiffusionXLPipeline", "Flux2Pipeline", "FluxFillPipeline", "FluxKontextPipeline", "FluxControlPipeline"],
)
def test_a_pipeline_of_another_kind_is_refused_by_name_with_those_that_are_supported(pipeline: str) -> None:
    with pytest.raises(ForeignModelError) as refused:
        check_pipeline({"_class_name": pipeline})
    assert f"names the pipeline '{pipeline}'" in str(refused.value)
    assert "use FLUX.1-dev, FLUX.1-Krea-dev, FLUX.1-schnell and their fine-tunes" in str(refused.value)


def test_a_foreign_transformer_ends_the_load_with_the_checkpoint_s_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    import shutil  # noqa: PLC0415 - needed by this test alone

    folder = tmp_path / "fill"
    shutil.copytree(tiny_checkpoint, folder)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 384}))
    with pytest.raises(CheckpointError, match="fill has a transformer of 384 input channels"):
        load_pipeline(EngineSpec(model=str(folder), device=Device.CPU, offline=True))


def test_licences_say_whether_they_allow_commercial_use() -> None:
    assert str(SCHNELL.licence) == "Apache-2.0"
    assert str(DEV.licence).startswith("FLUX.1 [dev] Non-Commercial License (non-commercial), https://")
    assert all(len(str(family.licence)) < 200 for family in FAMILIES.values())


@pytest.mark.parametrize(
    ("fields", "family", "steps", "guidance"),
    [
        ({}, DEV, 28, 3.5),
        ({}, KREA, 28, 4.5),
        ({}, SCHNELL, 4, 0.0),
        ({"steps": 28, "guidance": 3.5}, SCHNELL, 28, 3.5),
        ({"steps": 2}, KREA, 2, 4.5),
        ({}, None, 28, 3.5),
    ],
)
def test_what_a_task_leaves_out_is_the_family_s(
    fields: dict[str, Any], family: Family | None, steps: int, guidance: float
) -> None:
    task = GenerationTask(request_id="a", prompt="a fox", **fields)
    filled = with_defaults(task, family)
    assert (filled.steps, filled.guidance) == (steps, guidance)


def test_steps_beyond_the_family_s_are_refused(schnell: FluxGenerator) -> None:
    with pytest.raises(InputsError, match=r"steps: 60 is too large for FLUX\.1-schnell; use 1 to 50 \(4 by default\)"):
        render(schnell, replace(INPUTS, steps=60))


def test_guidance_that_has_no_effect_is_told(schnell: FluxGenerator) -> None:
    assert render(schnell, INPUTS).warnings == ()
    warned = render(schnell, replace(INPUTS, guidance=3.5)).warnings
    assert warned == (GUIDANCE_IGNORED.format(family="FLUX.1-schnell"),)
