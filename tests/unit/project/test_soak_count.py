"""The soak finds lost and duplicate tasks, so that its zero counts mean something."""

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.on_change("benchmarks")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CLEAN = {
    "lost": 0,
    "doubled": 0,
    "failed": 0,
    "uncommitted": 0,
    "dead_letters": 0,
    "repeated_answers": 0,
    "extra_generations": 0,
}


@pytest.fixture
def soak_count(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("soak_parts.count")


def evidence(soak_count: Any, **changes: Any) -> Any:
    """Two successful tasks, except for the changes."""
    well: dict[str, Any] = {
        "places": {"a": (0, 0), "b": (1, 0)},
        "answers": [answer(soak_count, "a"), answer(soak_count, "b")],
        "images": ["a", "b"],
        "committed": {0: 1, 1: 1},
        "dead_letters": 0,
        "begun": ["a", "b"],
    }
    return soak_count.Evidence(**{**well, **changes})


def answer(soak_count: Any, name: str, **changes: Any) -> Any:
    well = {"request_id": name, "event_id": f"event-{name}", "status": "success", "body": b"{}"}
    return soak_count.Answer(**{**well, **changes})


def test_successful_tasks_count_as_nothing(soak_count: Any) -> None:
    verdict = soak_count.judge(evidence(soak_count))
    assert asdict(verdict) == CLEAN
    assert not verdict.is_broken


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"images": ["a"]}, {"lost": 1}),
        ({"images": ["a", "b", "b"]}, {"doubled": 1}),
        ({"committed": {0: 1}}, {"uncommitted": 1}),
        ({"committed": {0: 1, 1: 0}}, {"uncommitted": 1}),
        ({"dead_letters": 1}, {"dead_letters": 1}),
    ],
)
def test_missing_and_duplicate_items_are_violations(
    soak_count: Any, changes: Mapping[str, Any], counted: Mapping[str, int]
) -> None:
    verdict = soak_count.judge(evidence(soak_count, **changes))
    assert asdict(verdict) == {**CLEAN, **counted}
    assert verdict.is_broken


@pytest.mark.parametrize("differing", [{"event_id": "another"}, {"body": b'{"seed": 2}'}])
def test_a_second_different_result_is_a_duplicate_task(soak_count: Any, differing: Mapping[str, Any]) -> None:
    answers = [answer(soak_count, "a"), answer(soak_count, "b"), answer(soak_count, "b", **differing)]
    verdict = soak_count.judge(evidence(soak_count, answers=answers))
    assert asdict(verdict) == {**CLEAN, "doubled": 1}
    assert verdict.is_broken


def test_a_task_without_a_result_is_lost_also_with_stored_images(soak_count: Any) -> None:
    verdict = soak_count.judge(evidence(soak_count, answers=[answer(soak_count, "a")]))
    assert asdict(verdict) == {**CLEAN, "lost": 1}
    assert verdict.is_broken


def test_a_failed_task_without_an_image_is_not_lost(soak_count: Any) -> None:
    answers = [answer(soak_count, "a"), answer(soak_count, "b", status="failed")]
    verdict = soak_count.judge(evidence(soak_count, answers=answers, images=["a"]))
    assert asdict(verdict) == {**CLEAN, "failed": 1}
    assert verdict.is_broken


def test_repeated_results_and_extra_generations_are_counted_and_are_no_violations(soak_count: Any) -> None:
    answers = [answer(soak_count, "a"), answer(soak_count, "b"), answer(soak_count, "b")]
    verdict = soak_count.judge(evidence(soak_count, answers=answers, begun=["a", "b", "b", "b"]))
    assert asdict(verdict) == {**CLEAN, "repeated_answers": 1, "extra_generations": 2}
    assert not verdict.is_broken
