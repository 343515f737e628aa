"""The guarantees of the service, observed from outside during faults.

Four invariants: every accepted task has one terminal result with one event id, a committed offset never passes an
unfinished task, there is one image for each task, and no task is generated more often than the fault allows.
"""

import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

from fluxpool_worker.agent.wiring import ENGINE_JOBS
from kit.brokers.kafka import TopicRecord, produce
from kit.faults.offset_watch import AWAY, OffsetWatch
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench, task_body

END_SECONDS: Final = 150.0
"""For all tasks to end after the last fault, on a busy machine."""

MOST_BEGUN: Final = ENGINE_JOBS + 1
"""Tasks that a worker loses at most when it stops: those in its engine, and one that has its images and is not stored.

The engine's slot is free as soon as the device is: while the images of one task are encoded and stored, the next may
enter the engine.
"""

T = TypeVar("T")


class PromiseWatch(OffsetWatch):
    """Sends tasks to a bench and observes offsets and results meanwhile; use with `async with`."""

    def __init__(self, bench: WorkerBench, *, stored_ids: Callable[[], Iterable[str]] | None = None) -> None:
        """`stored_ids` lists the request id of every stored image; default: of those in the bench's folder."""
        super().__init__(bench)
        self._stored_ids = stored_ids or (lambda: [path.parent.name for path in bench.stored_images()])

    async def submit(self, count: int, prompt: str, *, partition: int | None = None, **fields: Any) -> list[str]:
        """Send that many tasks and return their ids once the brokers have them."""
        names = [f"task-{number:03}" for number in range(len(self._places), len(self._places) + count)]
        bodies = [(name.encode(), task_body(name, prompt, **fields)) for name in names]
        places = await produce(self._bench.bootstrap_servers, self._bench.topics.tasks, bodies, partition=partition)
        self.expect(dict(zip(names, places, strict=True)))
        return names

    async def wait_another_end(self) -> None:
        """Wait until one more task than now has a result, if any is without one."""
        await _until_seen(self._looked, what="the answers")
        known = self.answered
        await self._wait_seen(
            lambda: self.answered > known or self.answered >= len(self._places), what=f"more than {known} answers"
        )

    async def assert_kept(self, *, repeated_generations: int = 0, attempts: frozenset[int] = frozenset({1})) -> None:
        """Wait until every task has ended and assert all invariants.

        `repeated_generations`: the allowed number of generations beyond one for each task.
        """
        names = sorted(self._places)
        await self._wait_seen(lambda: self.is_done, what=f"the ends of {len(names)} tasks, all committed")
        answers = await _until_seen(self._answers, what="the answers")
        _same("different answers", {name: len(distinct) for name, distinct in answers.items()}, dict.fromkeys(names, 1))
        results = [json.loads(value) for [(_, value)] in answers.values()]
        _same("statuses", {result["status"] for result in results}, {"success"})
        _same("attempts", {result["attempt"] for result in results} | attempts, attempts)
        _same("dead letters", await _until_seen(self._dead_letters, what="the dead letters"), ([],))
        _same("stored images", sorted(self._stored_ids()), names)
        await _until_seen(self._looked, what="the offsets")
        _same("broken promises about offsets", self.broken, [])
        generated = sum(len(worker.events("job_done")) for worker in self._bench.workers)
        allowed = range(len(names), len(names) + repeated_generations + 1)
        assert generated in allowed, f"generated {generated} times, not {allowed.start} to {allowed.stop - 1}"

    async def _wait_seen(self, reached: Callable[[], bool], *, what: str) -> None:
        def seen() -> bool:
            self.check_watching()
            return reached()

        await wait_until(seen, deadline_seconds=END_SECONDS, what=what)

    async def _looked(self) -> bool:
        await self.look()
        return True

    async def _dead_letters(self) -> tuple[list[TopicRecord]]:
        """In a tuple, because an empty list is a valid observation, too."""
        return (await self._bench.records(self._bench.topics.dead_letters),)

    async def _answers(self) -> dict[str, set[tuple[bytes, bytes]]]:
        """Request id -> the different (event id, body) of its results."""
        answers: dict[str, set[tuple[bytes, bytes]]] = {}
        for record in await self._bench.records(self._bench.topics.results):
            value = record.value or b"{}"
            answers.setdefault(json.loads(value)["request_id"], set()).add((dict(record.headers)["ce_id"], value))
        return answers


async def _until_seen(look: Callable[[], Awaitable[T]], *, what: str) -> T:
    """The first true value; a read that fails because a broker is down is repeated."""

    async def tolerant() -> T | None:
        try:
            return await look()
        except AWAY:
            return None

    seen = await wait_until(tolerant, deadline_seconds=END_SECONDS, what=what)
    assert seen is not None
    return seen


def _same(what: str, seen: object, expected: object) -> None:
    assert seen == expected, f"{what}: {seen!r} instead of {expected!r}"
