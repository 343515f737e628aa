"""Dead letters and replay jobs on a real PostgreSQL server, without Kafka."""

import asyncio
from collections.abc import Sequence

from fluxpool_contract.messages.resolution import ResolutionAction
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.dead_letters.jobs import Item, ItemOutcome, Job, ReplayJobs
from fluxpool_gateway.dead_letters.rows import (
    DeadLetterQuery,
    Dimension,
    ListPosition,
    StoredDeadLetter,
    count_dead_letters,
    list_dead_letters,
    summarize_dead_letters,
)
from fluxpool_gateway.store.postgres.connection import Lock
from fluxpool_gateway.store.postgres.shared_tables import SharedTables
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_transport.dlq.reading import RecordRef, entry_of
from kit.gateways.dead_letter_topic import MemoryTopic, letter_at


async def test_dead_letters_and_their_resolutions_are_projected_and_read(
    writer: TaskStoreWriter, reader: TaskStoreReader
) -> None:
    topic = MemoryTopic(writer, TenantTrust(secret=None))

    async def listed(
        wanted: DeadLetterQuery, *, after: ListPosition | None = None, newest_first: bool = True, limit: int = 9
    ) -> Sequence[StoredDeadLetter]:
        return await reader.read(
            lambda connection: list_dead_letters(
                connection, topic.name, wanted, after=after, newest_first=newest_first, limit=limit
            )
        )

    topic.add(
        letter_at(0),
        letter_at(1, pool="fa\0st"),
        letter_at(2, partition=1),
        letter_at(5, origin_offset=2, request_id="wide-2"),
    )
    topic.resolve(entry_of(topic.records[2]), ResolutionAction.DISCARDED, reason="a te\0st")
    found = await listed(DeadLetterQuery(), limit=2)
    assert [str(one.entry.ref) for one in found] == ["0/5", "0/1"]
    assert await reader.read(lambda connection: count_dead_letters(connection, topic.name, DeadLetterQuery())) == 3
    [resolved] = await listed(DeadLetterQuery(states=frozenset({"discarded"})), newest_first=False)
    assert (str(resolved.entry.ref), resolved.entry.copies) == ("0/5", (RecordRef(1, 2),))
    assert resolved.entry.resolution is not None
    assert resolved.entry.resolution.reason == "a te\0st"
    later = await listed(DeadLetterQuery(), after=found[0].place)
    assert [str(one.entry.ref) for one in later] == ["0/1", "0/0"]
    refs = frozenset(RecordRef(0, offset) for offset in range(10_000))
    assert len(await listed(DeadLetterQuery(refs=refs))) == 3
    by = [Dimension.POOL, Dimension.HOUR]
    causes = await reader.read(
        lambda connection: summarize_dead_letters(connection, topic.name, DeadLetterQuery(), by=by, limit=9)
    )
    assert [(cause.dimensions[Dimension.POOL], cause.open, cause.resolved) for cause in causes] == [
        ("default", 1, 1),
        ("fa\ufffdst", 1, 0),
    ]


async def test_replicas_share_the_jobs_of_replays(url: str) -> None:
    one, two = (ReplayJobs(SharedTables(url, Lock.REPLAYS, durable=True)) for _ in range(2))
    await one.create(Job(job_id="a", created_at_ms=1, created_by="ops", plan="{}", total=2), ["0/0", "0/1"])
    claims = await asyncio.gather(one.claim("one"), two.claim("two"))
    [claimed] = [claim for claim in claims if claim is not None]
    owner, jobs = ("one", one) if claims[0] is claimed else ("two", two)
    assert await jobs.save("a", owner, [Item(0, "0/0", ItemOutcome.SENT, '{"epoch": 1}')], release=True)
    taken = await two.claim("three")
    assert taken is not None
    assert [item.record for item in taken.items] == ["0/1"]
    assert not await one.save("a", owner, [])
    assert await two.save("a", "three", [Item(1, "0/1", ItemOutcome.REFUSED)], end=True)
    read = await one.read("a", limit=9)
    assert read is not None
    assert (read.counts, read.is_running) == ({ItemOutcome.SENT: 1, ItemOutcome.REFUSED: 1}, False)
    assert read.ended_at_ms is not None
    await one.create(Job(job_id="b", created_at_ms=2, created_by=None, plan="{}", total=0), [])
    listed = await two.list(limit=2)
    assert [(job.job_id, job.counts) for job in listed] == [("b", {}), ("a", read.counts)]
    assert [job.job_id for job in await two.list(before="b", limit=2)] == ["a"]
    await one.cancel("b", by="ops")
    assert await one.claim("one") is None
    await one.close()
    await two.close()
