"""The outcome of every task of a soak: read from topics, group, store and journal at the end, then counted.

Owns the definition of lost and doubled. Knows nothing of faults, and uses no observation made during them.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kit.brokers.kafka import TopicRecord, read_topic
from kit.workers.worker import WorkerBench
from soak_parts.engine import read_journal

READ_SECONDS: Final = 30.0
RECORDS_PER_SECOND: Final = 1000
"""A slower read is stuck, also on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One record of the results topic."""

    request_id: str
    event_id: str
    status: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The final content of topics, group, store and journal."""

    places: Mapping[str, tuple[int, int]]
    """Request id -> partition and offset of every task that the brokers acknowledged."""
    answers: Sequence[Answer]
    images: Sequence[str]
    """The request id of every stored image."""
    committed: Mapping[int, int]
    """Committed offset of each partition."""
    dead_letters: int
    begun: Sequence[str]
    """The request id of every generation that was begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Numbers of tasks with a violated guarantee, and the cost of the faults."""

    lost: int
    """Without a result, or with a success without an image."""
    doubled: int
    """With two results that differ in event id or body, or with two images."""
    failed: int
    """With another result than success, although every task is valid."""
    uncommitted: int
    """Not below the committed offset of their partition: they would be delivered again."""
    dead_letters: int
    repeated_answers: int
    """Records that repeat a result byte for byte under its event id, which readers drop."""
    extra_generations: int
    """Begun beyond one for each task that was begun."""

    @property
    def is_broken(self) -> bool:
        """Whether a guarantee about tasks was violated."""
        return any((self.lost, self.doubled, self.failed, self.uncommitted, self.dead_letters))


def judge(evidence: Evidence) -> Verdict:
    """Count; every task is expected to succeed with one image."""
    answers: defaultdict[str, set[tuple[str, bytes]]] = defaultdict(set)
    statuses: defaultdict[str, set[str]] = defaultdict(set)
    for answer in evidence.answers:
        answers[answer.request_id].add((answer.event_id, answer.body))
        statuses[answer.request_id].add(answer.status)
    images = Counter(evidence.images)
    failed = {name for name, seen in statuses.items() if seen != {"success"}}
    return Verdict(
        lost=sum(name not in answers or (name not in failed and not images[name]) for name in evidence.places),
        doubled=sum(len(answers[name]) > 1 or images[name] > 1 for name in set(answers) | set(images)),
        failed=len(failed),
        uncommitted=sum(offset >= evidence.committed.get(number, 0) for number, offset in evidence.places.values()),
        dead_letters=evidence.dead_letters,
        repeated_answers=len(evidence.answers) - sum(len(distinct) for distinct in answers.values()),
        extra_generations=len(evidence.begun) - len(set(evidence.begun)),
    )


async def gather_evidence(bench: WorkerBench, *, places: Mapping[str, tuple[int, int]], journal: Path) -> Evidence:
    """Read everything; all brokers must be up."""
    return Evidence(
        places=places,
        answers=[_answer_of(record) for record in await _all_records(bench, bench.topics.results, tasks=len(places))],
        images=[path.parent.name for path in bench.stored_images()],
        committed=await bench.committed(),
        dead_letters=len(await _all_records(bench, bench.topics.dead_letters, tasks=len(places))),
        begun=read_journal(journal),
    )


async def _all_records(bench: WorkerBench, topic: str, *, tasks: int) -> list[TopicRecord]:
    deadline_seconds = READ_SECONDS + tasks / RECORDS_PER_SECOND
    return await read_topic(bench.bootstrap_servers, topic, deadline_seconds=deadline_seconds)


def _answer_of(record: TopicRecord) -> Answer:
    body = record.value or b""
    result = json.loads(body)
    event_id = dict(record.headers)["ce_id"].decode()
    return Answer(request_id=result["request_id"], event_id=event_id, status=result["status"], body=body)
