"""Calls about dead letters: `client.dead_letters` of both clients. Needs the scope read, and for changes admin."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypedDict, TypeVar, Unpack
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from fluxpool_client.steps import MAX_IMAGE_BYTES, Calls, Outgoing, Run, RunAsync, Steps, json_request, query_of
from fluxpool_contract.messages import DeadLetter, Resolution

PATH: Final = "/v1/dlq"
_PAGE: Final = 200
_ITEMS: Final = 1000

T = TypeVar("T")


class DeadLetterFields(TypedDict, total=False):
    """Filters: a dead letter has to match all, and one value of each."""

    state: Sequence[str]
    error_class: Sequence[str]
    error_code: Sequence[str]
    disposition: Sequence[str]
    pool: Sequence[str]
    model: Sequence[str]
    worker: Sequence[str]
    topic: Sequence[str]
    request_id: Sequence[str]
    tenant: str
    since: datetime
    until: datetime


class ReplayFields(TypedDict, total=False):
    """How dead letters are replayed."""

    ids: Sequence[str]
    """Of those that are meant; or `filter`, in which `{}` means every open one."""
    filter: Mapping[str, Any]
    max: int
    rate_per_second: float
    patch: Mapping[str, Any]
    """JSON merge patch (RFC 7396) for each task."""
    drop_headers: Sequence[str]
    priority: str
    max_replays: int
    force: bool


class _Response(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class StoredDeadLetter(_Response):
    """One dead letter as a list has it."""

    id: str
    """Partition and offset on the dead-letter topic, such as `2/17`."""
    state: str
    """open, replayed or discarded."""
    tenant: str | None
    request_id: str | None
    failed_at: datetime
    stored_at: datetime
    epoch: int
    value_bytes: int
    copies: tuple[str, ...]
    dead_letter: DeadLetter | None
    problem: str | None
    resolution: Resolution | None


class RecordHeader(_Response):
    """One header of the original record."""

    name: str
    value: str


class DeadLetterDetail(StoredDeadLetter):
    """One dead letter with the contents of its record."""

    key: str | None
    headers: tuple[RecordHeader, ...]
    value: str | None
    """None when it is no text: see `value_hex`."""
    value_hex: str | None


class DeadLetterPage(_Response):
    """Some dead letters."""

    data: tuple[StoredDeadLetter, ...]
    matching: int
    has_more: bool
    next_cursor: str | None


class DeadLetterCause(_Response):
    """Dead letters that are alike in what they were counted by; other fields are None."""

    error_class: str | None
    error_code: str | None
    pool: str | None
    model: str | None
    worker: str | None
    hour: datetime | None
    open: int
    resolved: int
    first_failed_at: datetime
    last_failed_at: datetime
    example: str


class DeadLetterSummary(_Response):
    """Causes, those with the most open dead letters first."""

    data: tuple[DeadLetterCause, ...]
    has_more: bool


class ReplayProblem(_Response):
    """What is wrong with a task, or with some."""

    field: str
    message: str


class RefusedTask(_Response):
    """A dead letter whose task would be refused."""

    id: str
    request_id: str | None
    problems: tuple[ReplayProblem, ...]


class ReplayableTask(_Response):
    """A task that would be sent."""

    id: str
    request_id: str
    epoch: int
    topic: str


class ReplayPreview(_Response):
    """What a replay would do."""

    matching: int
    to_send: int
    refused: int
    by_topic: Mapping[str, int]
    by_error_code: Mapping[str, int]
    problems: tuple[ReplayProblem, ...]
    tasks: tuple[ReplayableTask, ...]
    """The first ones."""
    refusals: tuple[RefusedTask, ...]
    """The first ones."""


class ReplayItem(_Response):
    """What became of one dead letter of a job."""

    number: int
    id: str
    outcome: str | None
    """sent, refused, skipped or canceled; None: not done yet."""
    detail: Mapping[str, Any] | None


class ReplayJob(_Response):
    """A replay job."""

    job_id: str
    created_at: datetime | None = None
    created_by: str | None = None
    state: str
    """waiting, running or ended."""
    problem: str | None
    total: int
    sent: int
    refused: int
    skipped: int
    canceled: int = 0
    canceled_by: str | None = None
    items: tuple[ReplayItem, ...]
    next: int | None


class ReplayJobPage(_Response):
    """Some replay jobs, the newest first, without their items."""

    data: tuple[ReplayJob, ...]
    next_cursor: str | None = None


class DeadLetterOperations(Calls):
    """What each call sends and makes of the responses."""

    def list_page(
        self, fields: DeadLetterFields, *, cursor: str | None, order: str, limit: int
    ) -> Steps[DeadLetterPage]:
        """One page of a list."""
        more = {"order": order, "limit": limit, "cursor": cursor}
        return self.ask(DeadLetterPage, Outgoing(method="GET", path=f"{PATH}{query_of({**fields, **more})}"))

    def summary(self, by: Sequence[str], fields: DeadLetterFields) -> Steps[DeadLetterSummary]:
        """Causes."""
        path = f"{PATH}/summary{query_of({**fields, 'by': by})}"
        return self.ask(DeadLetterSummary, Outgoing(method="GET", path=path))

    def show(self, dead_letter_id: str) -> Steps[DeadLetterDetail]:
        """One dead letter."""
        return self.ask(DeadLetterDetail, Outgoing(method="GET", path=_of(dead_letter_id)))

    def export(self, request: Outgoing) -> Steps[bytes]:
        """All dead letters as a file."""
        response = yield from self.exchange(request)
        return response.body

    def preview(self, fields: ReplayFields) -> Steps[ReplayPreview]:
        """What a replay would do."""
        return self.ask(ReplayPreview, json_request("POST", f"{PATH}/replay", {**fields, "dry_run": True}))

    def replay(self, fields: ReplayFields) -> Steps[ReplayJob]:
        """A new job; not repeated, as each request makes one."""
        return self.ask(ReplayJob, replace(json_request("POST", f"{PATH}/replay", fields), is_repeatable=False))

    def job(self, job_id: str, *, after: int) -> Steps[ReplayJob]:
        """A job and some of its items."""
        query = {"after": after, "limit": _ITEMS}
        return self.ask(ReplayJob, Outgoing(method="GET", path=f"{PATH}/replays/{quote(job_id, '')}{query_of(query)}"))

    def jobs(self, *, cursor: str | None, limit: int) -> Steps[ReplayJobPage]:
        """One page of the list of jobs."""
        query = query_of({"cursor": cursor, "limit": limit})
        return self.ask(ReplayJobPage, Outgoing(method="GET", path=f"{PATH}/replays{query}"))

    def cancel_job(self, job_id: str) -> Steps[ReplayJob]:
        """The job that is to end; to repeat it is harmless."""
        return self.ask(ReplayJob, Outgoing(method="POST", path=f"{PATH}/replays/{quote(job_id, '')}/cancel"))

    def items(self, job_id: str) -> Steps[tuple[ReplayItem, ...]]:
        """All items of a job, page by page."""
        items: list[ReplayItem] = []
        after: int | None = -1
        while after is not None:
            page = yield from self.job(job_id, after=after)
            items += page.items
            # Numbers rise from page to page; a server that is no gateway must not keep this in a loop.
            after = page.next if page.next is not None and page.next > after else None
        return tuple(items)

    def discard(self, dead_letter_id: str, *, reason: str) -> Steps[StoredDeadLetter]:
        """Discard one."""
        return self.ask(StoredDeadLetter, json_request("POST", f"{_of(dead_letter_id)}/discard", {"reason": reason}))


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The calls of the blocking client."""

    operations: DeadLetterOperations
    run: Run
    pieces: Callable[[Outgoing], Iterator[bytes]]
    """The bytes of a response as they come."""

    def page(
        self, *, cursor: str | None = None, order: str = "desc", limit: int = 50, **fields: Unpack[DeadLetterFields]
    ) -> DeadLetterPage:
        """One page, the latest failure first; `cursor` is the `next_cursor` of the page before."""
        return self.run(self.operations.list_page(fields, cursor=cursor, order=order, limit=limit))

    def all(self, *, order: str = "asc", **fields: Unpack[DeadLetterFields]) -> Iterator[StoredDeadLetter]:
        """Every dead letter of a list, page by page."""
        cursor: str | None = None
        has_more = True
        while has_more:
            page = self.page(cursor=cursor, order=order, limit=_PAGE, **fields)
            yield from page.data
            cursor, has_more = page.next_cursor, page.has_more and page.next_cursor is not None

    def summary(
        self, by: Sequence[str] = ("error_class", "error_code", "pool"), **fields: Unpack[DeadLetterFields]
    ) -> DeadLetterSummary:
        """Dead letters by cause; also by model, worker and hour."""
        return self.run(self.operations.summary(by, fields))

    def show(self, dead_letter_id: str) -> DeadLetterDetail:
        """One dead letter with the contents of its record."""
        return self.run(self.operations.show(dead_letter_id))

    def export(self, form: str = "jsonl", *, records: bool = False, **fields: Unpack[DeadLetterFields]) -> bytes:
        """All of them as JSON Lines or `csv`; `records`: with key, headers and value of the originals."""
        return self.run(self.operations.export(_export(form, fields, records=records)))

    def export_pieces(
        self, form: str = "jsonl", *, records: bool = False, **fields: Unpack[DeadLetterFields]
    ) -> Iterator[bytes]:
        """The same as it comes. Sent once: parts of it may be in use."""
        return self.pieces(_export(form, fields, records=records))

    def preview(self, **fields: Unpack[ReplayFields]) -> ReplayPreview:
        """What a replay would send and refuse; changes nothing."""
        return self.run(self.operations.preview(fields))

    def replay(self, **fields: Unpack[ReplayFields]) -> ReplayJob:
        """A job that replays them. Sent once."""
        return self.run(self.operations.replay(fields))

    def job(self, job_id: str, *, after: int = -1) -> ReplayJob:
        """How far a job is, with its items behind a number."""
        return self.run(self.operations.job(job_id, after=after))

    def jobs(self, *, cursor: str | None = None, limit: int = 20) -> ReplayJobPage:
        """Some jobs, the newest first; `cursor` is the `next_cursor` of the page before."""
        return self.run(self.operations.jobs(cursor=cursor, limit=limit))

    def cancel(self, job_id: str) -> ReplayJob:
        """End a job before its time; what was sent stays sent, and the others stay open."""
        return self.run(self.operations.cancel_job(job_id))

    def items(self, job_id: str) -> tuple[ReplayItem, ...]:
        """What became of each dead letter of a job."""
        return self.run(self.operations.items(job_id))

    def discard(self, dead_letter_id: str, *, reason: str) -> StoredDeadLetter:
        """Discard one, for a reason."""
        return self.run(self.operations.discard(dead_letter_id, reason=reason))


@dataclass(frozen=True, slots=True)
class AsyncDeadLetters:
    """The calls of the asyncio client, as `DeadLetters` has them."""

    operations: DeadLetterOperations
    run: RunAsync
    pieces: Callable[[Outgoing], AsyncIterator[bytes]]
    """The bytes of a response as they come."""

    async def page(
        self, *, cursor: str | None = None, order: str = "desc", limit: int = 50, **fields: Unpack[DeadLetterFields]
    ) -> DeadLetterPage:
        """One page, the latest failure first."""
        return await self.run(self.operations.list_page(fields, cursor=cursor, order=order, limit=limit))

    async def all(self, *, order: str = "asc", **fields: Unpack[DeadLetterFields]) -> AsyncIterator[StoredDeadLetter]:
        """Every dead letter of a list, page by page."""
        cursor: str | None = None
        has_more = True
        while has_more:
            page = await self.page(cursor=cursor, order=order, limit=_PAGE, **fields)
            for item in page.data:
                yield item
            cursor, has_more = page.next_cursor, page.has_more and page.next_cursor is not None

    async def summary(
        self, by: Sequence[str] = ("error_class", "error_code", "pool"), **fields: Unpack[DeadLetterFields]
    ) -> DeadLetterSummary:
        """Dead letters by cause."""
        return await self.run(self.operations.summary(by, fields))

    async def show(self, dead_letter_id: str) -> DeadLetterDetail:
        """One dead letter with the contents of its record."""
        return await self.run(self.operations.show(dead_letter_id))

    async def export(self, form: str = "jsonl", *, records: bool = False, **fields: Unpack[DeadLetterFields]) -> bytes:
        """All of them as a file."""
        return await self.run(self.operations.export(_export(form, fields, records=records)))

    def export_pieces(
        self, form: str = "jsonl", *, records: bool = False, **fields: Unpack[DeadLetterFields]
    ) -> AsyncIterator[bytes]:
        """The same as it comes. Sent once: parts of it may be in use."""
        return self.pieces(_export(form, fields, records=records))

    async def preview(self, **fields: Unpack[ReplayFields]) -> ReplayPreview:
        """What a replay would send and refuse."""
        return await self.run(self.operations.preview(fields))

    async def replay(self, **fields: Unpack[ReplayFields]) -> ReplayJob:
        """A job that replays them. Sent once."""
        return await self.run(self.operations.replay(fields))

    async def job(self, job_id: str, *, after: int = -1) -> ReplayJob:
        """How far a job is."""
        return await self.run(self.operations.job(job_id, after=after))

    async def jobs(self, *, cursor: str | None = None, limit: int = 20) -> ReplayJobPage:
        """Some jobs, the newest first."""
        return await self.run(self.operations.jobs(cursor=cursor, limit=limit))

    async def cancel(self, job_id: str) -> ReplayJob:
        """End a job before its time; what was sent stays sent, and the others stay open."""
        return await self.run(self.operations.cancel_job(job_id))

    async def items(self, job_id: str) -> tuple[ReplayItem, ...]:
        """What became of each dead letter of a job."""
        return await self.run(self.operations.items(job_id))

    async def discard(self, dead_letter_id: str, *, reason: str) -> StoredDeadLetter:
        """Discard one, for a reason."""
        return await self.run(self.operations.discard(dead_letter_id, reason=reason))


def _export(form: str, fields: DeadLetterFields, *, records: bool) -> Outgoing:
    query = query_of({**fields, "format": form, "records": "true" if records else None})
    return Outgoing(method="GET", path=f"{PATH}/export{query}", max_bytes=MAX_IMAGE_BYTES)


def _of(dead_letter_id: str) -> str:
    return f"{PATH}/{quote(dead_letter_id)}"
