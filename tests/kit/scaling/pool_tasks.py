"""The tasks of a test's pools: topics on the real broker, task records, results and images.

Reads Kafka and the object store without the product's code. Must not know of Kubernetes.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from fluxpool_contract.kafka.ledger import decode_ledger
from kit.brokers.kafka import OffsetReader, TopicReader, create_topics, produce, unique_name
from kit.stores.s3 import S3Service
from kit.waiting import wait_until

BUCKET: Final = "images"
T = TypeVar("T")
_KINDS: Final[Mapping[str, int]] = {"results": 1, "progress": 1, "control": 1, "dlq": 1, "retry-15s": 1, "pools": 1}


@dataclass(slots=True)
class PoolTasks:
    """Topics, groups and images of pools by name; `groups` has the common prefix of a pool's names."""

    bootstrap_servers: str
    s3: S3Service
    groups: dict[str, str] = field(default_factory=dict)
    reader: TopicReader = field(init=False)
    offsets: OffsetReader = field(init=False)

    def __post_init__(self) -> None:
        """Create the clients that observe topics and groups."""
        self.reader = TopicReader(self.bootstrap_servers)
        self.offsets = OffsetReader(self.bootstrap_servers)

    async def describe(self, name: str) -> str:
        """A description of the pool for an expired wait."""
        return f"{len(await self.results(name))} results, lag {await self.lag(name)}"

    async def wait(self, predicate: Callable[[], Awaitable[T]], *, what: str, name: str, deadline_seconds: float) -> T:
        """`wait_until`, with a description of the pool when it expires."""
        try:
            return await wait_until(predicate, deadline_seconds=deadline_seconds, what=what)
        except AssertionError as error:
            error.add_note(await self.describe(name))
            raise

    async def topics(self, name: str, *, partitions: int = 6) -> str:
        """Create a pool's topics and bucket for `name`; return the task topic."""
        prefix = unique_name(name)
        names = {f"{prefix}-{kind}": count for kind, count in _KINDS.items()}
        wanted = {f"{prefix}-tasks": partitions, **names}
        await create_topics(self.bootstrap_servers, wanted, config={"message.timestamp.type": "LogAppendTime"})
        self.groups[name] = prefix
        return f"{prefix}-tasks"

    async def produce(
        self,
        count: int,
        *,
        name: str = "standard",
        prompt: str = "seconds=0.05",
        start: int = 0,
        partition: int | None = None,
    ) -> list[str]:
        """Put tasks on a pool's topic, evenly over the partitions unless one is named; returns their ids."""
        prefix = self.groups[name]
        ids = [f"{prefix}-{number}" for number in range(start, start + count)]
        values = [
            json.dumps({"request_id": task, "prompt": prompt, "width": 64, "height": 64, "steps": 10}) for task in ids
        ]
        await produce(
            self.bootstrap_servers,
            f"{prefix}-tasks",
            [(task.encode(), value.encode()) for task, value in zip(ids, values, strict=True)],
            partition=partition,
        )
        return ids

    async def results(self, name: str = "standard") -> list[dict[str, Any]]:
        """Every record of a pool's results topic."""
        records = await self.reader.records(f"{self.groups[name]}-results")
        results: list[dict[str, Any]] = [json.loads(record.value or b"null") for record in records]
        return results

    async def wait_results(
        self, ids: Iterable[str], *, name: str = "standard", deadline_seconds: float = 120
    ) -> list[dict[str, Any]]:
        """Wait until every id has a result; assert that each has one outcome and one stored image."""
        wanted = set(ids)

        async def complete() -> list[dict[str, Any]]:
            found = await self.results(name)
            return found if {result["request_id"] for result in found} >= wanted else []

        results = await self.wait(
            complete, what=f"{len(wanted)} results of {name}", name=name, deadline_seconds=deadline_seconds
        )
        # A repeated publication of the same result is allowed, a second outcome is not.
        ends = {(result["request_id"], result["status"], result["image_url"]) for result in results}
        assert {end[0] for end in ends} == wanted
        assert len(ends) == len(wanted), ends
        assert {end[1] for end in ends} == {"success"}, results
        return results

    async def wait_state(
        self, is_so: Callable[[dict[str, Any]], bool], *, name: str = "standard", deadline_seconds: float = 60
    ) -> dict[str, Any]:
        """Wait until the latest state that the operator published of a pool is so; `{}` after its deletion."""

        async def latest() -> list[dict[str, Any]]:
            records = await self.reader.records(f"{self.groups[name]}-pools")
            return [state for state in [json.loads(record.value or b"{}") for record in records[-1:]] if is_so(state)]

        [state] = await self.wait(latest, what="the published state", name=name, deadline_seconds=deadline_seconds)
        return state

    def stored_images(self, name: str = "standard") -> list[str]:
        """Keys of a pool's images in the object store."""
        keys = self.s3.keys(BUCKET, prefix=f"{self.groups[name]}/")
        return [key for key in keys if key.endswith((".png", ".jpg", ".webp"))]

    async def lag(self, name: str = "standard") -> int:
        """Records of a pool's task topic that its group did not commit."""
        prefix = self.groups[name]
        records = await self.reader.records(f"{prefix}-tasks")
        committed = await self.offsets.committed(prefix)
        return sum(
            1
            for record in records
            if (found := committed.get((record.topic, record.partition))) is None or record.offset >= found.offset
        )

    async def busy_pods(self, name: str = "standard") -> frozenset[str]:
        """Pods with a task in flight, from the ledger in the committed offsets."""
        committed = await self.offsets.committed(self.groups[name])
        return frozenset(
            entry.worker
            for found in committed.values()
            for entry in decode_ledger(found.metadata).values()
            if not entry.released
        )
