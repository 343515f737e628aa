"""What requests about dead letters have, and what their responses show. Decides nothing."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import DEAD_LETTER_PREFIX, DeadLetter, Resolution
from fluxpool_gateway.dead_letters.jobs import CANCELED_BY, ItemOutcome, Job
from fluxpool_gateway.dead_letters.rows import Cause, DeadLetterQuery, Dimension, ListPosition, StoredDeadLetter
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.http.routes import RequestModel
from fluxpool_gateway.http.task_routes import Moment
from fluxpool_transport.dlq import DEFAULT_MAX_REPLAYS, RecordContents, RecordRef

DEFAULT_RATE: Final = 10.0
"""Tasks a second, as `fluxpool dlq replay` has it: a small load for a pool that serves others."""
MAX_LETTERS: Final = 10_000
"""Of one job: its list is held in memory while it runs."""
MAX_REASON_CHARACTERS: Final = 1000
_MAX_PATCH_BYTES: Final = 64 * 1024
_MAX_PATCH_DEPTH: Final = 20
_ID: Final = r"^[0-9]{1,9}/[0-9]{1,18}$"

_Text = Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f\x7f]*$")]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=100)]
Id = Annotated[str, Field(pattern=_ID)]
State = Literal["open", "replayed", "discarded"]


class DeadLetterFilters(RequestModel):
    """Which dead letters; they match all filters, and one value of each."""

    error_class: _Texts = ()
    """invalid, transient and so on; foreign for records that no worker wrote."""
    error_code: _Texts = ()
    disposition: _Texts = ()
    """Why it was dead-lettered: invalid, exhausted, crash-loop, expired or oversize."""
    pool: _Texts = ()
    model: _Texts = ()
    worker: _Texts = ()
    topic: _Texts = ()
    """The topic that the task came from."""
    request_id: _Texts = ()
    tenant: _Text | None = None
    """Of the task; with the scope admin any, else the caller's own."""
    since: Moment | None = None
    """Failures from then on; UTC when it has no zone."""
    until: Moment | None = None
    """Failures before; UTC when it has no zone."""

    def query(
        self, *, sees_only: str | None, states: Iterable[str] = (), refs: Iterable[RecordRef] = ()
    ) -> DeadLetterQuery | None:
        """The same for the store, of one tenant or all; None when nothing can match."""
        if sees_only is not None and self.tenant not in {None, sees_only}:
            return None
        return DeadLetterQuery(
            tenant=self.tenant if sees_only is None else sees_only,
            refs=frozenset(refs),
            states=frozenset(states),
            fields={name: frozenset(getattr(self, name)) for name in _LISTS},
            since=self.since,
            until=self.until,
        )


_LISTS: Final = ("error_class", "error_code", "disposition", "pool", "model", "worker", "topic", "request_id")


class ListedDeadLetters(DeadLetterFilters):
    """Which dead letters of a list."""

    state: Annotated[tuple[State, ...], Field(max_length=3)] = ()
    """Any unless given; may be repeated."""


class DeadLetterPageQuery(ListedDeadLetters):
    """Which dead letters, and which of their pages."""

    order: Literal["desc", "asc"] = "desc"
    """desc: the latest failure first."""
    limit: Annotated[int, Field(ge=1, le=200)] = 50
    cursor: Annotated[str, AfterValidator(lambda text: str(position_of(text) and text))] | None = None
    """`next_cursor` of the page before."""


class SummaryQuery(ListedDeadLetters):
    """Which dead letters, and what they are counted by."""

    by: Annotated[tuple[Dimension, ...], Field(min_length=1, max_length=len(Dimension))] = (
        Dimension.ERROR_CLASS,
        Dimension.ERROR_CODE,
        Dimension.POOL,
    )
    """error_class, error_code and pool unless given; may be repeated."""


class ExportQuery(ListedDeadLetters):
    """Which dead letters, in what form."""

    format: Literal["jsonl", "csv"] = "jsonl"
    records: bool = False
    """With key, headers and value of each original record, which may contain prompts."""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class DeadLetterView(_View):
    """One dead letter."""

    id: str
    """Partition and offset on the dead-letter topic, such as `2/17`."""
    state: str
    """open, replayed or discarded."""
    tenant: str | None
    """Null: not known."""
    request_id: str | None
    """As far as it could be read."""
    failed_at: datetime
    stored_at: datetime
    epoch: int
    """How often its task had been replayed when it failed."""
    value_bytes: int
    copies: tuple[str, ...]
    """Further records about the same failure."""
    dead_letter: DeadLetter | None
    """Null for a record that no worker wrote."""
    problem: str | None
    """Why there is none."""
    resolution: Resolution | None
    """What was done about it, by whom, when and why."""

    @classmethod
    def of(cls, stored: StoredDeadLetter, **more: Any) -> Self:
        """The view of an entry."""
        entry = stored.entry
        values = {
            "id": str(entry.ref),
            "state": stored.state,
            "tenant": stored.tenant or None,
            "request_id": entry.request_id,
            "failed_at": entry.failed_at,
            "stored_at": entry.stored_at,
            "epoch": entry.epoch,
            "value_bytes": entry.value_bytes,
            "copies": tuple(map(str, entry.copies)),
            "dead_letter": entry.dead_letter,
            "problem": entry.problem or None,
            "resolution": entry.resolution,
        }
        return cls(**{**values, **more})


class HeaderView(_View):
    """One header of a record."""

    name: str
    value: str
    """Bytes that are not UTF-8 are escaped, such as `\\\\xff`."""


class DeadLetterDetailView(DeadLetterView):
    """One dead letter with everything that its record has; the stack is part of `dead_letter`."""

    key: str | None
    headers: tuple[HeaderView, ...]
    """Those of the original."""
    value: str | None
    """The original's value; null when it is no text."""
    value_hex: str | None
    """The same in hexadecimal digits; null when it is text."""

    @classmethod
    def with_contents(cls, stored: StoredDeadLetter, contents: RecordContents) -> Self:
        """The view of an entry and its record."""
        return cls.of(
            stored,
            dead_letter=contents.dead_letter,
            key=contents.key,
            headers=tuple(HeaderView(name=name, value=value) for name, value in contents.headers),
            value=contents.value,
            value_hex=contents.value_hex,
        )


class OriginalHeaderView(_View):
    """One header of an original record, byte for byte."""

    name: str
    value: str | None
    value_base64: str | None


class OriginalView(_View):
    """An original record, byte for byte: text where the bytes are UTF-8, else base64."""

    key: str | None
    key_base64: str | None
    headers: tuple[OriginalHeaderView, ...]
    value: str | None
    value_base64: str | None


class ExportedDeadLetterView(DeadLetterView):
    """One dead letter of an export with records."""

    record: OriginalView | None
    """Null when Kafka has deleted it meanwhile."""


class DeadLetterPageView(_View):
    """Some dead letters, in the order of their failures."""

    data: tuple[DeadLetterView, ...]
    matching: int
    """How many pass the filters, on all pages."""
    has_more: bool
    next_cursor: str | None


class CauseView(_View):
    """Dead letters that are alike in what was asked for; the other fields are null."""

    error_class: str | None = None
    error_code: str | None = None
    pool: str | None = None
    model: str | None = None
    worker: str | None = None
    hour: datetime | None = None
    open: int
    resolved: int
    first_failed_at: datetime
    last_failed_at: datetime
    example: str
    """Id of the latest."""

    @classmethod
    def of(cls, cause: Cause) -> Self:
        """The view of a cause."""
        values: dict[str, Any] = {name.value: value for name, value in cause.dimensions.items()}
        if (hour := values.get(Dimension.HOUR.value)) is not None:
            values["hour"] = moment_at(hour)
        return cls(
            **values,
            open=cause.open,
            resolved=cause.resolved,
            first_failed_at=cause.first_failed_at,
            last_failed_at=cause.last_failed_at,
            example=str(cause.example),
        )


class SummaryView(_View):
    """Causes, those with the most open dead letters first."""

    data: tuple[CauseView, ...]
    has_more: bool
    """There are further causes, with fewer open dead letters; narrow the filters."""


def position_of(cursor: str) -> ListPosition:
    """The place that a cursor names; raises `ValueError` for a text that `cursor_of` never makes."""
    parts = cursor.split(".")
    if len(parts) != len(("failed_at_ms", "partition", "offset")) or not all(
        part.isascii() and part.isdigit() and len(part) <= most for part, most in zip(parts, (15, 9, 18), strict=True)
    ):
        raise ValueError("is not a cursor; take next_cursor of the page before as it is, or leave it out")
    failed_at_ms, partition, offset = map(int, parts)
    return ListPosition(failed_at_ms, RecordRef(partition, offset))


def cursor_of(place: ListPosition) -> str:
    """The cursor of a place."""
    return f"{place.failed_at_ms}.{place.ref.partition}.{place.ref.offset}"


def _check_patch(patch: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a task can be patched with at all; raises `ValueError`."""
    if patch is None:
        return None
    try:
        text = json.dumps(patch, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ValueError("must be JSON in UTF-8 without NaN and Infinity") from None
    if len(text) > _MAX_PATCH_BYTES or _depth(patch) > _MAX_PATCH_DEPTH:
        raise ValueError(f"must be at most {_MAX_PATCH_BYTES} bytes and {_MAX_PATCH_DEPTH} levels deep")
    return patch


def _depth(value: Any) -> int:
    levels = 0
    level: list[Any] = [value]
    while level:
        children = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        level, levels = children, levels + 1
    return levels


def _check_header(name: str) -> str:
    if name.startswith(DEAD_LETTER_PREFIX):
        raise ValueError("describes the failure and is never sent")
    return name


class ReplayRequest(RequestModel):
    """Which open dead letters to replay, and how."""

    ids: Annotated[tuple[Id, ...], Field(min_length=1, max_length=MAX_LETTERS)] | None = None
    """Dead letters by their ids; or `filter`."""
    filter: DeadLetterFilters | None = None
    """All open dead letters that pass; `{}` for every one."""
    dry_run: bool = False
    """Only say what would be sent and what would be refused."""
    max: Annotated[int, Field(strict=True, ge=1, le=MAX_LETTERS)] = MAX_LETTERS
    """At most so many, the oldest failures first."""
    rate_per_second: Annotated[float, Field(ge=0.1, le=10_000, allow_inf_nan=False)] = DEFAULT_RATE
    """Tasks a second at most."""
    patch: Annotated[dict[str, Any] | None, AfterValidator(_check_patch)] = None
    """JSON merge patch (RFC 7396) for each task; null removes a field."""
    drop_headers: Annotated[tuple[Annotated[_Text, AfterValidator(_check_header)], ...], Field(max_length=100)] = ()
    """Headers of the original that are left out."""
    priority: Priority | None = None
    """Send the tasks to the topic of this priority instead of where they came from."""
    max_replays: Annotated[int, Field(strict=True, ge=1, le=1000)] = DEFAULT_MAX_REPLAYS
    """Refuse a task that was replayed as often."""
    force: bool = False
    """Send it however often it was replayed."""

    @model_validator(mode="after")
    def _chooses(self) -> Self:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or filter; an empty filter is every open dead letter")
        return self


class DiscardRequest(RequestModel):
    """Why a dead letter is discarded."""

    reason: Annotated[str, Field(max_length=MAX_REASON_CHARACTERS, pattern=r"\S")]
    """Stored in its resolution."""


class ProblemCountView(_View):
    """A reason why tasks would be refused."""

    field: str
    """Of the task, or a header."""
    message: str
    """That of the example."""
    count: int
    example: str
    """Id of one dead letter."""


class RefusedView(_View):
    """A dead letter whose task would be refused."""

    id: str
    request_id: str | None
    problems: tuple[dict[str, str], ...]


class ReplayableView(_View):
    """A task that would be sent."""

    id: str
    request_id: str
    epoch: int
    topic: str


class ReplayPreview(_View):
    """What a replay would do; nothing was written."""

    dry_run: Literal[True] = True
    matching: int
    """Open dead letters that were chosen; at most `max` of them are looked at."""
    to_send: int
    refused: int
    by_topic: Mapping[str, int]
    """Tasks that would be sent, by the topic."""
    by_error_code: Mapping[str, int]
    """Dead letters that were looked at, by the error code of their failure."""
    problems: tuple[ProblemCountView, ...]
    """Why tasks would be refused, the most frequent first."""
    tasks: tuple[ReplayableView, ...]
    """The first 200 of those that would be sent."""
    refusals: tuple[RefusedView, ...]
    """The first 200 of those that would be refused."""


class ReplayItemView(_View):
    """What became of one dead letter."""

    number: int
    id: str
    outcome: ItemOutcome | None
    """Null: not done yet. sent; refused: it stays open; skipped: it was resolved otherwise, or expired;
    canceled: the job was, and it stays open."""
    detail: Mapping[str, Any] | None
    """Where the task was sent to, the problems of a refusal, or the reason."""


class ReplayJobView(_View):
    """A replay job."""

    job_id: str
    state: Literal["waiting", "running", "ended"]
    created_at: datetime
    created_by: str | None
    ended_at: datetime | None
    problem: str | None
    """Why it does not go on at the moment."""
    total: int
    sent: int
    refused: int
    skipped: int
    canceled: int
    canceled_by: str | None
    """Who has canceled it; one that runs ends after the task that is being sent."""
    items: tuple[ReplayItemView, ...]
    """In the order of their numbers."""
    next: int | None
    """`after` of the next page of items; null on the last one."""
    status_url: str

    @classmethod
    def of(cls, job: Job, *, limit: int) -> Self:
        """The view of a job that was read with this limit."""
        state: Literal["waiting", "running", "ended"] = "running" if job.is_running else "waiting"
        items = tuple(
            ReplayItemView(
                number=item.number,
                id=item.record,
                outcome=item.outcome,
                detail=None if item.detail is None else json.loads(item.detail),
            )
            for item in job.items
        )
        return cls(
            job_id=job.job_id,
            state="ended" if job.ended_at_ms is not None else state,
            created_at=moment_at(job.created_at_ms),
            created_by=job.created_by,
            ended_at=None if job.ended_at_ms is None else moment_at(job.ended_at_ms),
            problem=job.problem or None,
            total=job.total,
            sent=job.counts.get(ItemOutcome.SENT, 0),
            refused=job.counts.get(ItemOutcome.REFUSED, 0),
            skipped=job.counts.get(ItemOutcome.SKIPPED, 0),
            canceled=job.counts.get(ItemOutcome.CANCELED, 0),
            canceled_by=json.loads(job.plan).get(CANCELED_BY),
            items=items,
            next=items[-1].number if len(items) == limit and items[-1].number + 1 < job.total else None,
            status_url=f"/v1/dlq/replays/{job.job_id}",
        )


class ReplayJobPageView(_View):
    """Some replay jobs, the newest first."""

    data: tuple[ReplayJobView, ...]
    """Without their items: `status_url` has them."""
    next_cursor: str | None
    """`cursor` of the next page; null on the last one."""
