"""What the soak counts as lost or doubled: a count that were always zero would prove nothing."""

import importlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.on_change("benchmarks")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
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
    """Two tasks that went well, but for the changes."""
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


def test_tasks_that_went_well_count_as_nothing(soak_count: Any) -> None:
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
def test_what_is_missing_or_too_many_breaks_a_promise(
    soak_count: Any, changes: Mapping[str, Any], counted: Mapping[str, int]
) -> None:
    verdict = soak_count.judge(evidence(soak_count, **changes))
    assert asdict(verdict) == {**CLEAN, **counted}
    assert verdict.is_broken


@pytest.mark.parametrize("differing", [{"event_id": "another"}, {"body": b'{"seed": 2}'}])
def test_a_second_answer_that_differs_is_a_doubled_task(soak_count: Any, differing: Mapping[str, Any]) -> None:
    answers = [answer(soak_count, "a"), answer(soak_count, "b"), answer(soak_count, "b", **differing)]
    verdict = soak_count.judge(evidence(soak_count, answers=answers))
    assert asdict(verdict) == {**CLEAN, "doubled": 1}
    assert verdict.is_broken


def test_a_task_without_an_answer_is_lost_whatever_was_stored(soak_count: Any) -> None:
    verdict = soak_count.judge(evidence(soak_count, answers=[answer(soak_count, "a")]))
    assert asdict(verdict) == {**CLEAN, "lost": 1}
    assert verdict.is_broken


def test_a_failed_task_is_failed_and_not_lost_for_want_of_an_image(soak_count: Any) -> None:
    answers = [answer(soak_count, "a"), answer(soak_count, "b", status="failed")]
    verdict = soak_count.judge(evidence(soak_count, answers=answers, images=["a"]))
    assert asdict(verdict) == {**CLEAN, "failed": 1}
    assert verdict.is_broken


def test_repeated_answers_and_extra_generations_are_counted_and_break_nothing(soak_count: Any) -> None:
    answers = [answer(soak_count, "a"), answer(soak_count, "b"), answer(soak_count, "b")]
    verdict = soak_count.judge(evidence(soak_count, answers=answers, begun=["a", "b", "b", "b"]))
    assert asdict(verdict) == {**CLEAN, "repeated_answers": 1, "extra_generations": 2}
    assert not verdict.is_broken
