"""The promises of the service, looked at from outside while everything is being broken.

Four things hold whatever happens: every accepted task has one terminal answer with one event id, a committed offset
never passes an unfinished task, there is one image for each task, and nobody draws more often than the fault allows.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from confluent_kafka import KafkaException

from kit.kafka import ScriptClientError, TopicRecord, produce
from kit.waiting import wait_until
from kit.worker import WorkerBench, task_body

LOOK_INTERVAL_SECONDS: Final = 0.5
"""Between two looks: each opens connections of its own, and the workers need the cores."""
END_SECONDS: Final = 150.0
"""For all tasks to end once nothing is broken any more, on a busy machine."""

_AWAY: Final = (ScriptClientError, KafkaException, TimeoutError, LookupError)
"""What a look ends with while brokers are away, which is the point of most tests."""
T = TypeVar("T")


class PromiseWatch:
    """Sends tasks to a bench and looks at offsets and answers all the while; use with `async with`.

    It sees the standard lane. A look that fails, because the brokers are away, is left out.
    """

    def __init__(self, bench: WorkerBench, *, stored_ids: Callable[[], Iterable[str]] | None = None) -> None:
        """`stored_ids` lists the request id of every stored image; unless given, of those in the bench's folder."""
        self._bench = bench
        self._stored_ids = stored_ids or (lambda: [path.parent.name for path in bench.stored_images()])
        self._places: dict[str, tuple[int, int]] = {}
        self._committed: dict[int, int] = {}
        self._looking = asyncio.Lock()
        self._ending = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.broken: list[str] = []
        """Promises about offsets that were seen broken, in words."""
        self.looks = 0
        """How many looks succeeded."""

    async def submit(self, count: int, prompt: str, *, partition: int | None = None, **fields: Any) -> list[str]:
        """Send that many tasks and return their ids once the brokers have them."""
        names = [f"task-{number:03}" for number in range(len(self._places), len(self._places) + count)]
        bodies = [(name.encode(), task_body(name, prompt, **fields)) for name in names]
        places = await produce(self._bench.bootstrap_servers, self._bench.topics.tasks, bodies, partition=partition)
        self._places |= dict(zip(names, places, strict=True))
        return names

    async def wait_another_end(self) -> None:
        """Wait until one more task has an answer than now, if any is still without."""
        known = len((await _until_seen(self._answered, what="the answers"))[0])

        async def more() -> bool:
            (answered,) = await self._answered()
            return len(answered) > known or answered >= self._places.keys()

        await _until_seen(more, what=f"more than {known} answers")

    async def assert_kept(self, *, repeated_generations: int = 0, attempts: frozenset[int] = frozenset({1})) -> None:
        """Wait until every task has ended and assert all promises.

        `repeated_generations` is how many more pictures may have been drawn than there are tasks.
        """
        names = sorted(self._places)

        async def ended() -> bool:
            found = set(await self._answers()) >= set(names) and await self._all_committed()
            await asyncio.sleep(0 if found else LOOK_INTERVAL_SECONDS)
            return found

        await _until_seen(ended, what=f"the ends of {len(names)} tasks, all committed")
        answers = await _until_seen(self._answers, what="the answers")
        _same("different answers", {name: len(distinct) for name, distinct in answers.items()}, dict.fromkeys(names, 1))
        results = [json.loads(value) for [(_, value)] in answers.values()]
        _same("statuses", {result["status"] for result in results}, {"success"})
        _same("attempts", {result["attempt"] for result in results} | attempts, attempts)
        _same("dead letters", await _until_seen(self._dead_letters, what="the dead letters"), ([],))
        _same("stored images", sorted(self._stored_ids()), names)
        await _until_seen(self._look, what="the offsets")
        _same("broken promises about offsets", self.broken, [])
        drawn = sum(len(worker.events("job_done")) for worker in self._bench.workers)
        allowed = range(len(names), len(names) + repeated_generations + 1)
        assert drawn in allowed, f"drawn {drawn} times, not {allowed.start} to {allowed.stop - 1}"

    async def __aenter__(self) -> Self:
        """Begin to look."""
        self._watching = asyncio.create_task(self._watch(), name="promise-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, once the look under way is over: its clients live in a thread that nobody can cancel."""
        self._ending.set()
        if self._watching is not None:
            await asyncio.wait({self._watching})
            if error is None:
                self._watching.result()

    async def _watch(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(*_AWAY):
                await self._look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), LOOK_INTERVAL_SECONDS)

    async def _look(self) -> bool:
        async with self._looking:
            # Offsets first: whatever had ended when they were committed is among the answers read after them.
            committed = await self._bench.committed()
            answered = set(await self._answers())
            self.broken += self._broken_by(committed, answered)
            self._committed |= committed
            self.looks += 1
        return True

    def _broken_by(self, committed: dict[int, int], answered: set[str]) -> list[str]:
        went_back = [
            f"the offset of partition {partition} went back from {known} to {committed[partition]}"
            for partition, known in self._committed.items()
            if committed.get(partition, known) < known
        ]
        return went_back + [
            f"offset {committed[partition]} of partition {partition} passed {name} at {offset}, which has no answer"
            for name, (partition, offset) in self._places.items()
            if offset < committed.get(partition, 0) and name not in answered
        ]

    async def _all_committed(self) -> bool:
        committed = await self._bench.committed()
        return all(offset < committed.get(partition, 0) for partition, offset in self._places.values())

    async def _answered(self) -> tuple[set[str]]:
        """In a tuple, because no answers are an answer, too."""
        return (set(await self._answers()),)

    async def _dead_letters(self) -> tuple[list[TopicRecord]]:
        """In a tuple, as above."""
        return (await self._bench.records(self._bench.topics.dead_letters),)

    async def _answers(self) -> dict[str, set[tuple[bytes, bytes]]]:
        """Request id -> the different (event id, body) of its answers."""
        answers: dict[str, set[tuple[bytes, bytes]]] = {}
        for record in await self._bench.records(self._bench.topics.results):
            value = record.value or b"{}"
            answers.setdefault(json.loads(value)["request_id"], set()).add((dict(record.headers)["ce_id"], value))
        return answers


async def _until_seen(look: Callable[[], Awaitable[T]], *, what: str) -> T:
    """The first true answer; a look that fails because a broker is away is made again."""

    async def tolerant() -> T | None:
        try:
            return await look()
        except _AWAY:
            return None

    seen = await wait_until(tolerant, deadline_seconds=END_SECONDS, what=what)
    assert seen is not None
    return seen


def _same(what: str, seen: object, expected: object) -> None:
    assert seen == expected, f"{what}: {seen!r} instead of {expected!r}"
