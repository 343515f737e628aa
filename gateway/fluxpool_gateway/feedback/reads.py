"""What the store knows of feedback: one judgement, sums by how images were made, and pairs still to be judged."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any, Final

from sqlalchemy import Connection, Select, Table, func, select, tuple_

from fluxpool_contract.messages import Comparison, Preference, Rating, comparison_id_of, prompt_key
from fluxpool_gateway.feedback.figures import Compared, Scored, Setup
from fluxpool_gateway.store.tables import comparisons, ratings
from fluxpool_gateway.store.task_list import ListFilter, list_tasks
from fluxpool_gateway.store.task_state import TaskState, TaskStatus

PAIRED_TASKS: Final = 500
"""Pairs are made of so many tasks, the newest."""
_MAX_PAIRS: Final = 2000
"""Looked at in one prompt."""

Image = tuple[str, int]
"""Request id and number."""


def find_rating(connection: Connection, rating_id: str, *, tenant: str) -> Rating | None:
    """The judgement under a key."""
    where = (ratings.c.tenant == tenant, ratings.c.rating_id == rating_id)
    body = connection.execute(select(ratings.c.body).where(*where)).scalar_one_or_none()
    return None if body is None else Rating.model_validate_json(body)


def find_comparison(connection: Connection, rating_id: str, *, tenant: str) -> Comparison | None:
    """The judgement of two images under a key."""
    where = (comparisons.c.tenant == tenant, comparisons.c.rating_id == rating_id)
    body = connection.execute(select(comparisons.c.body).where(*where)).scalar_one_or_none()
    return None if body is None else Comparison.model_validate_json(body)


def find_keys_of_task(connection: Connection, request_id: str, *, tenant: str) -> list[str]:
    """Of all judgements of the images of a task."""
    keys: set[str] = set()
    for table, column in (
        (ratings, ratings.c.request_id),
        (comparisons, comparisons.c.a_request_id),
        (comparisons, comparisons.c.b_request_id),
    ):
        found = connection.execute(select(table.c.rating_id).where(table.c.tenant == tenant, column == request_id))
        keys.update(found.scalars())
    return sorted(keys)


def read_scored(connection: Connection, tenant: str) -> list[Scored]:
    """The tenant's scores, summed by how the images were made."""
    setup = (ratings.c.model, ratings.c.steps, ratings.c.preset, ratings.c.pool)
    score = ratings.c.score
    statement = (
        select(*setup, func.count(), func.sum(score), func.sum(score * score))
        .where(ratings.c.tenant == tenant, score.is_not(None))
        .group_by(*setup)
    )
    return [Scored(Setup(*row[:4]), row[4], int(row[5]), int(row[6])) for row in connection.execute(statement)]


def read_compared(connection: Connection, tenant: str) -> list[Compared]:
    """The tenant's comparisons, counted by how the images were made and by outcome."""
    setups = [comparisons.c[f"{side}_{name}"] for side in "ab" for name in Setup._fields]
    columns = (*setups, comparisons.c.preferred)
    statement: Select[Any] = select(*columns, func.count()).where(comparisons.c.tenant == tenant).group_by(*columns)
    return [
        Compared(Setup(*row[:4]), Setup(*row[4:8]), Preference(row[8]), row[9]) for row in connection.execute(statement)
    ]


def read_comparisons(connection: Connection, tenant: str, *, after: str, limit: int) -> list[Comparison]:
    """The tenant's comparisons behind a key, in the order of their keys."""
    return [Comparison.model_validate_json(body) for body in _bodies(connection, comparisons, tenant, after, limit)]


def read_ratings(connection: Connection, tenant: str, *, after: str, limit: int) -> list[Rating]:
    """The tenant's ratings behind a key, in the order of their keys."""
    return [Rating.model_validate_json(body) for body in _bodies(connection, ratings, tenant, after, limit)]


def _bodies(connection: Connection, table: Table, tenant: str, after: str, limit: int) -> Sequence[str]:
    statement = select(table.c.body).where(table.c.tenant == tenant, table.c.rating_id > after)
    return connection.execute(statement.order_by(table.c.rating_id).limit(limit)).scalars().all()


def read_ranks(connection: Connection, tenant: str) -> dict[str, int]:
    """The rank of each rating with a score among those of its rater for its prompt; 1 is the best."""
    rank = func.rank().over(partition_by=(ratings.c.prompt_key, ratings.c.rater_hash), order_by=ratings.c.score.desc())
    statement = select(ratings.c.rating_id, rank).where(ratings.c.tenant == tenant, ratings.c.score.is_not(None))
    return {row[0]: row[1] for row in connection.execute(statement)}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images of one prompt, in the order in which they are to be shown."""

    first: Image
    second: Image
    prompt: str


def find_pair(
    connection: Connection, *, tenant: str, rater_hash: str, is_judged: Callable[[str], bool], chance: random.Random
) -> Pair | None:
    """A pair that the rater has not judged, out of the newest tasks; rather of images that were made differently.

    `is_judged` knows keys of comparisons that are not in the store yet.
    """
    wanted = ListFilter(tenant=tenant, statuses=frozenset({TaskStatus.SUCCEEDED}))
    by_prompt: dict[str, list[TaskState]] = defaultdict(list)
    prompts: dict[str, str] = {}
    for task in list_tasks(connection, wanted, limit=PAIRED_TASKS).tasks:
        prompt = prompt_of(task)
        if prompt is not None:
            prompts[prompt_key(prompt)] = prompt
            by_prompt[prompt_key(prompt)].append(task)
    keys = list(by_prompt)
    chance.shuffle(keys)
    for key in keys:
        pairs = list(islice(_pairs(by_prompt[key], chance), _MAX_PAIRS))
        ids = [comparison_id_of(tenant, rater_hash, *pair) for pair in pairs]
        judged = _stored(connection, tenant, ids)
        for pair, comparison_id in zip(pairs, ids, strict=True):
            if comparison_id not in judged and not is_judged(comparison_id):
                first, second = pair if chance.random() < 0.5 else (pair[1], pair[0])
                return Pair(first, second, prompts[key])
    return None


def prompt_of(task: TaskState) -> str | None:
    """The task's prompt; None while only its result is known."""
    prompt = None if task.body is None else json.loads(task.body).get("prompt")
    return prompt if isinstance(prompt, str) else None


def _pairs(tasks: Sequence[TaskState], chance: random.Random) -> Iterator[tuple[Image, Image]]:
    """Those of different tasks in random order, then those of one task."""
    images = {task.request_id: _images(task) for task in tasks}
    names = list(images)
    chance.shuffle(names)
    for one, other in combinations(names, 2):
        yield from ((left, right) for left in images[one] for right in images[other])
    for name in names:
        yield from combinations(images[name], 2)


def _images(task: TaskState) -> list[Image]:
    described = json.loads(task.result or "{}").get("images", ())
    return [(task.request_id, image["index"]) for image in described]


def _stored(connection: Connection, tenant: str, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(ids), 300):
        chunk = [(tenant, one) for one in ids[start : start + 300]]
        where = tuple_(comparisons.c.tenant, comparisons.c.rating_id).in_(chunk)
        found.update(connection.execute(select(comparisons.c.rating_id).where(where)).scalars())
    return found
