"""Searches in the list of tasks on a real PostgreSQL server, without Kafka."""

import json

import pytest

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import Rating
from fluxpool_gateway.feedback.records import FeedbackSeen
from fluxpool_gateway.search import ContentFilter, words_of
from fluxpool_gateway.store.postgres.connection import open_projector
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.tables import STAR_RATER
from fluxpool_gateway.store.task_list import ListFilter, ListOrder
from fluxpool_gateway.store.task_state import Change, TaskSeen
from fluxpool_gateway.store.task_store import TaskStoreWriter


def seen(request_id: str, body: str) -> TaskSeen:
    return TaskSeen(request_id=request_id, body=body, priority="standard", tenant="default", created_at_ms=1)


def said(rating_id: str, request_id: str, *, score: int | None) -> FeedbackSeen:
    rater = STAR_RATER if score is None else "f" * 32
    rating = Rating(
        rating_id=rating_id, rater_hash=rater, created_at=moment_at(1), request_id=request_id, score=score, tags=("t",)
    )
    return FeedbackSeen(rating_id=rating_id, tenant="default", judgement=rating, at_ms=1)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ListFilter(tenant="default", content=ContentFilter(words=words_of("FUCHS"))), ["c", "a"]),
        (ListFilter(tenant="default", content=ContentFilter(words=words_of("FUCHS"), seed=3)), ["a"]),
        (ListFilter(tenant="default", min_score=4), ["a"]),
        (ListFilter(tenant="default", min_score=2), ["b", "a"]),
        (ListFilter(tenant="default", starred=True), ["c", "b"]),
        (ListFilter(tenant="default", starred=True, min_score=2), ["b"]),
        (ListFilter(tenant="other", starred=True), []),
    ],
)
async def test_tasks_are_found_as_in_sqlite(
    url: str, reader: TaskStoreReader, wanted: ListFilter, expected: list[str]
) -> None:
    engine = open_projector(url)
    bodies = {"a": {"prompt": "Ein Fuchs", "seed": 3}, "b": {"prompt": "ein Hase"}, "c": {"prompt": "fuchs \x00"}}
    changes: list[Change | FeedbackSeen] = [seen(name, json.dumps(body)) for name, body in bodies.items()]
    changes += [
        said("1", "a", score=5),
        said("2", "b", score=2),
        said("3", "b", score=None),
        said("4", "c", score=None),
    ]
    TaskStoreWriter(engine).apply([(("t", 0, number), one) for number, one in enumerate(changes)], {}, now_ms=1)
    engine.dispose()
    page = await reader.list(wanted, order=ListOrder.DESC, limit=10)
    assert ([task.request_id for task in page.tasks], page.next) == (expected, None)
