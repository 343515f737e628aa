"""Inputs of the partitioner: the size of a task, and which groups consume which topics."""

import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.task import GenerationParameters
from fluxpool_contract.settings.worker import Lane, serving_groups

NAMES = TopicNames(tasks="t", tasks_vip="v")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1.0),
        ({"width": 512, "height": 512}, 0.25),
        ({"steps": 14, "n": 4}, 2.0),
        ({"true_cfg_scale": 2.0, "negative_prompt": ""}, 2.0),
        ({"true_cfg_scale": 2.0}, 1.0),
        ({"negative_prompt": "blurry"}, 1.0),
    ],
)
def test_a_task_is_as_large_as_its_pixels_steps_images_and_passes(fields: dict[str, object], expected: float) -> None:
    assert GenerationParameters.model_validate({"prompt": "a", **fields}).relative_work == expected


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        pytest.param((), {"g": "t", "g-vip": "v"}, id="a pool that serves both topics"),
        pytest.param((Lane(name="a", topic="x"), Lane(name="b", topic="y")), {"g": "x", "g-b": "y"}, id="lanes"),
        pytest.param((Lane(name="a", topic="x", consumer_group="own"),), {"own": "x"}, id="a lane with its own group"),
    ],
)
def test_groups_are_named_as_the_workers_name_them(lanes: tuple[Lane, ...], expected: dict[str, str]) -> None:
    assert serving_groups("g", lanes, NAMES) == expected
