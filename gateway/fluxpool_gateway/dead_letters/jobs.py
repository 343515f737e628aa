"""Replay jobs, in a file or tables that all server processes share: one job at a time, whichever process works on it.

A job is a list of records with what became of each. Its process has a lease, which another one takes over once it has
run out. What was done about a dead letter is on Kafka: a job that is lost with a damaged file loses none, and is
requested again. Owns the statements.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from fluxpool_gateway.store.batches import Batches
from fluxpool_gateway.store.shared_file import Operation, Shared, SharedFile, SharedFileError, Statements

FILE_SUFFIX: Final = ".replays"
LEASE_SECONDS: Final = 15.0
"""A process that was killed holds up its job for so long."""
KEPT_SECONDS: Final = 30 * 24 * 3600
"""After its end; as long as dead letters are kept."""
MAX_JOBS: Final = 1000
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS replay_job (id TEXT PRIMARY KEY, created_at_ms INTEGER NOT NULL, created_by TEXT,
    plan TEXT NOT NULL, total INTEGER NOT NULL, owner TEXT NOT NULL, leased_until_ms INTEGER NOT NULL,
    ended_at_ms INTEGER, problem TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS replay_item (job_id TEXT, number INTEGER, record TEXT NOT NULL, outcome TEXT,
    detail TEXT, PRIMARY KEY (job_id, number)) WITHOUT ROWID""",
)
_JOB: Final = "SELECT id, created_at_ms, created_by, plan, total, ended_at_ms, leased_until_ms, problem FROM replay_job"
_NO_OWNER: Final = ""
CANCELED_BY: Final = "canceled_by"
"""Field of a plan."""

T = TypeVar("T")


class ItemOutcome(StrEnum):
    """What became of one dead letter."""

    SENT = "sent"
    REFUSED = "refused"
    """Its task would fail again, or may not be sent; it stays open."""
    SKIPPED = "skipped"
    """It was resolved by others meanwhile, or Kafka has deleted it."""
    CANCELED = "canceled"
    """The job was canceled before its turn; it stays open."""


@dataclass(frozen=True, slots=True)
class Item:
    """One dead letter of a job."""

    number: int
    record: str
    outcome: ItemOutcome | None = None
    """None: not done yet."""
    detail: str | None = None
    """JSON object about the outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One replay job."""

    job_id: str
    created_at_ms: int
    created_by: str | None
    plan: str
    """How it replays, as JSON; with `CANCELED_BY` it is to end."""
    total: int
    ended_at_ms: int | None = None
    is_running: bool = False
    problem: str = ""
    """Why it is waiting, if it failed for the moment."""
    counts: dict[ItemOutcome, int] = field(default_factory=dict)
    items: Sequence[Item] = ()
    """Those that were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Create:
    job: Job
    records: Sequence[str]

    def apply(self, connection: Statements, now_ms: int) -> None:
        ended = (now_ms - KEPT_SECONDS * 1000, MAX_JOBS)
        old = (
            "(SELECT id FROM replay_job WHERE ended_at_ms < ? OR (ended_at_ms IS NOT NULL AND id NOT IN"
            " (SELECT id FROM replay_job ORDER BY created_at_ms DESC LIMIT ?)))"
        )
        connection.execute(f"DELETE FROM replay_item WHERE job_id IN {old}", ended)  # noqa: S608 - a constant
        connection.execute(f"DELETE FROM replay_job WHERE id IN {old}", ended)  # noqa: S608
        job = self.job
        connection.execute(
            "INSERT INTO replay_job VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (job.job_id, job.created_at_ms, job.created_by, job.plan, len(self.records), _NO_OWNER, 0, None, ""),
        )
        connection.executemany(
            "INSERT INTO replay_item VALUES (?, ?, ?, ?, ?)",
            [(job.job_id, number, record, None, None) for number, record in enumerate(self.records)],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """The oldest job that has not ended, with the items that are not done; None while another process has it."""

    owner: str

    def apply(self, connection: Statements, now_ms: int) -> Job | None:
        row = connection.execute(
            "SELECT id, created_at_ms, created_by, plan, total, owner, leased_until_ms FROM replay_job"
            " WHERE ended_at_ms IS NULL ORDER BY created_at_ms, id LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        job_id, created_at_ms, created_by, plan, total, owner, leased_until_ms = row
        if owner not in {_NO_OWNER, self.owner} and leased_until_ms > now_ms:
            return None
        connection.execute(
            "UPDATE replay_job SET owner = ?, leased_until_ms = ? WHERE id = ?",
            (self.owner, now_ms + int(LEASE_SECONDS * 1000), job_id),
        )
        query = "SELECT number, record FROM replay_item WHERE job_id = ? AND outcome IS NULL ORDER BY number"
        return Job(
            job_id=job_id,
            created_at_ms=created_at_ms,
            created_by=created_by,
            plan=plan,
            total=total,
            is_running=True,
            items=[Item(*item) for item in connection.execute(query, (job_id,))],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Save:
    """Save outcomes and renew the lease, or end it; whether the lease still was the owner's."""

    job_id: str
    owner: str
    items: Sequence[Item]
    problem: str
    release: bool
    end: bool

    def apply(self, connection: Statements, now_ms: int) -> bool:
        # These records are in Kafka, whichever process has the lease by now.
        connection.executemany(
            "UPDATE replay_item SET outcome = ?, detail = ? WHERE job_id = ? AND number = ?",
            [
                (None if item.outcome is None else item.outcome.value, item.detail, self.job_id, item.number)
                for item in self.items
            ],
        )
        leased_until_ms = 0 if self.release else now_ms + int(LEASE_SECONDS * 1000)
        changed = connection.execute(
            "UPDATE replay_job SET owner = ?, leased_until_ms = ?, problem = ?, ended_at_ms = ?"
            " WHERE id = ? AND owner = ? AND ended_at_ms IS NULL",
            (
                _NO_OWNER if self.release else self.owner,
                leased_until_ms,
                self.problem,
                now_ms if self.end else None,
                self.job_id,
                self.owner,
            ),
        )
        return changed.rowcount == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cancel:
    """Note who cancels a job that has not ended; one that no process works on ends with that."""

    job_id: str
    by: str

    def apply(self, connection: Statements, now_ms: int) -> None:
        query = "SELECT plan, owner FROM replay_job WHERE id = ? AND ended_at_ms IS NULL"
        row = connection.execute(query, (self.job_id,)).fetchone()
        if row is None:
            return
        plan, owner = row
        fields = json.loads(plan)
        # In the plan, so that whichever process works on it, or takes it over, finds it; the first one counts.
        fields[CANCELED_BY] = fields.get(CANCELED_BY) or self.by
        connection.execute("UPDATE replay_job SET plan = ? WHERE id = ?", (json.dumps(fields), self.job_id))
        if owner != _NO_OWNER:
            # What its process has done since its last note only that process knows, or Kafka.
            return
        detail = json.dumps({"reason": canceled_reason(fields[CANCELED_BY])})
        connection.execute(
            "UPDATE replay_item SET outcome = ?, detail = ? WHERE job_id = ? AND outcome IS NULL",
            (ItemOutcome.CANCELED.value, detail, self.job_id),
        )
        connection.execute("UPDATE replay_job SET ended_at_ms = ?, problem = '' WHERE id = ?", (now_ms, self.job_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    job_id: str
    after: int
    limit: int

    def apply(self, connection: Statements, now_ms: int) -> Job | None:
        row = connection.execute(f"{_JOB} WHERE id = ?", (self.job_id,)).fetchone()
        if row is None:
            return None
        items = connection.execute(
            "SELECT number, record, outcome, detail FROM replay_item WHERE job_id = ? AND number > ?"
            " ORDER BY number LIMIT ?",
            (self.job_id, self.after, self.limit),
        )
        read = [
            Item(number, record, None if outcome is None else ItemOutcome(outcome), detail)
            for number, record, outcome, detail in items
        ]
        return replace(_job_of(row, connection, now_ms), items=read)


@dataclass(frozen=True, slots=True, kw_only=True)
class _List:
    before: str
    limit: int

    def apply(self, connection: Statements, now_ms: int) -> Sequence[Job]:
        # The ids are UUIDs of version 7: in the order in which the jobs were created.
        query = f"{_JOB} WHERE ? = '' OR id < ? ORDER BY id DESC LIMIT ?"
        rows = list(connection.execute(query, (self.before, self.before, self.limit)))
        return [_job_of(row, connection, now_ms) for row in rows]


def _job_of(row: Sequence[Any], connection: Statements, now_ms: int) -> Job:
    """The job in a row of `_JOB`, without its items."""
    job_id, created_at_ms, created_by, plan, total, ended_at_ms, leased_until_ms, problem = row
    counted = connection.execute(
        "SELECT outcome, count(*) FROM replay_item WHERE job_id = ? AND outcome IS NOT NULL GROUP BY outcome",
        (job_id,),
    )
    return Job(
        job_id=job_id,
        created_at_ms=created_at_ms,
        created_by=created_by,
        plan=plan,
        total=total,
        ended_at_ms=ended_at_ms,
        is_running=ended_at_ms is None and leased_until_ms > now_ms,
        problem=problem,
        counts={ItemOutcome(outcome): count for outcome, count in counted},
    )


def canceled_reason(by: str) -> str:
    """Why an item was canceled."""
    return f"the job was canceled by {by}"


class ReplayJobs:
    """The jobs, for one event loop; close it at the end. Every call raises `SharedFileError`."""

    def __init__(self, shared: Shared, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        """`shared` comes from `replay_file`, or stands for tables of PostgreSQL, whose clock counts then."""
        self._shared = shared
        self._now_ms = now_ms
        self._batches: Batches[Operation[Any], Any] = Batches(self._apply, name="replays", error=SharedFileError)

    async def create(self, job: Job, records: Sequence[str]) -> None:
        """Add a job about these records."""
        await self._batches.add(_Create(job=job, records=records))

    async def claim(self, owner: str) -> Job | None:
        """The job to work on, with what is still to do; None when there is none, or another process has it."""
        return cast("Job | None", await self._batches.add(_Claim(owner=owner)))

    async def save(
        self,
        job_id: str,
        owner: str,
        items: Sequence[Item],
        *,
        problem: str = "",
        release: bool = False,
        end: bool = False,
    ) -> bool:
        """Save outcomes and renew the lease, or give it back; False when another process has it."""
        operation = _Save(job_id=job_id, owner=owner, items=items, problem=problem, release=release or end, end=end)
        return cast("bool", await self._batches.add(operation))

    async def cancel(self, job_id: str, *, by: str) -> None:
        """Have a job end before its time; nothing where there is none, or it has ended."""
        await self._batches.add(_Cancel(job_id=job_id, by=by))

    async def read(self, job_id: str, *, after: int = -1, limit: int) -> Job | None:
        """A job with at most `limit` of its items behind a number."""
        return cast("Job | None", await self._batches.add(_Read(job_id=job_id, after=after, limit=limit)))

    async def list(self, *, before: str = "", limit: int) -> Sequence[Job]:
        """The newest jobs, or those before an id, without their items."""
        return cast("Sequence[Job]", await self._batches.add(_List(before=before, limit=limit)))

    async def close(self) -> None:
        """Work off what is waiting and disconnect."""
        await self._batches.close(self._shared.close)

    def _apply(self, operations: Sequence[Operation[Any]]) -> Sequence[Any]:
        return self._shared.apply(operations, now_ms=self._now_ms())


def replay_file(file: Path) -> SharedFile:
    """The jobs in this file."""
    return SharedFile(file, schema=_SCHEMA, version=_SCHEMA_VERSION)
