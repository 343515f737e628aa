"""The routes that read dead letters: a summary, a list, an export, one with the contents of its record.

A caller sees those of its tenant; with the scope admin, those of all tenants and of none.
"""

from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from fluxpool_contract.bounds import cut_text
from fluxpool_gateway.dead_letters.export import (
    csv_header,
    csv_rows,
    csv_with_original,
    json_lines,
    json_with_original,
)
from fluxpool_gateway.dead_letters.replaying import UNANSWERED
from fluxpool_gateway.dead_letters.rows import DeadLetterQuery, StoredDeadLetter
from fluxpool_gateway.dead_letters.views import (
    CauseView,
    DeadLetterDetailView,
    DeadLetterPageQuery,
    DeadLetterPageView,
    DeadLetterView,
    ExportQuery,
    SummaryQuery,
    SummaryView,
    cursor_of,
    position_of,
)
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, problems, unavailable
from fluxpool_gateway.http.routes import NO_STORE, READ_PROBLEMS, Services, WithServices, json_response
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.http.task_routes import read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_transport.dlq import RecordRef, contents_of

PATH: Final = "/v1/dlq"
MAX_CAUSES: Final = 1000
CHUNK_BYTES: Final = 64 * 1024
"""Of an export with records, that are sent at once."""
LIST_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    422: "A parameter is not allowed; `errors` names each.",
    503: READ_PROBLEMS[503],
}
ITEM_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    404: "There is no such dead letter, or it is another tenant's.",
    503: READ_PROBLEMS[503],
}

router = APIRouter()


def sees_only(caller: Caller) -> str | None:
    """The tenant whose dead letters the caller sees; None for all."""
    return None if KeyScope.ADMIN in caller.scopes else caller.sees_only


@router.get(
    PATH + "/summary",
    response_model=SummaryView,
    responses=problems(LIST_PROBLEMS),
    summary="Dead letters by cause",
    **requires(KeyScope.READ),
)
async def get_summary(query: Annotated[SummaryQuery, Query()], services: WithServices, caller: WithCaller) -> Response:
    """With the first and the last failure of each cause, and the latest dead letter as an example."""
    wanted = query.query(sees_only=sees_only(caller), states=query.state)
    if wanted is None:
        return json_response(SummaryView(data=(), has_more=False))
    by = tuple(dict.fromkeys(query.by))
    found = await read_store(services.dead_letters.summary(wanted, by=by, limit=MAX_CAUSES + 1))
    causes = tuple(map(CauseView.of, found[:MAX_CAUSES]))
    return json_response(SummaryView(data=causes, has_more=len(found) > MAX_CAUSES))


@router.get(
    PATH,
    response_model=DeadLetterPageView,
    responses=problems(LIST_PROBLEMS),
    summary="List dead letters",
    **requires(KeyScope.READ),
)
async def list_dead_letters(
    query: Annotated[DeadLetterPageQuery, Query()], services: WithServices, caller: WithCaller
) -> Response:
    """Without the contents of their records and without stacks, which one dead letter has."""
    wanted = query.query(sees_only=sees_only(caller), states=query.state)
    if wanted is None:
        return json_response(DeadLetterPageView(data=(), matching=0, has_more=False, next_cursor=None))
    after = None if query.cursor is None else position_of(query.cursor)
    page = services.dead_letters.page(wanted, after=after, newest_first=query.order == "desc", limit=query.limit + 1)
    found, matching = await read_store(page)
    shown = found[: query.limit]
    has_more = len(found) > query.limit
    return json_response(
        DeadLetterPageView(
            data=tuple(map(DeadLetterView.of, shown)),
            matching=matching,
            has_more=has_more,
            next_cursor=cursor_of(shown[-1].place) if has_more else None,
        )
    )


@router.get(
    PATH + "/export",
    response_class=Response,
    responses={
        200: {
            "description": "A stream: one JSON object a line as in a list, with `records` also the original record, "
            "or CSV with a header.",
            "content": {
                "application/jsonl": {"schema": {"type": "string"}},
                "text/csv": {"schema": {"type": "string"}},
            },
        },
        **problems(LIST_PROBLEMS),
    },
    summary="Export dead letters",
    **requires(KeyScope.READ),
)
async def export_dead_letters(
    query: Annotated[ExportQuery, Query()], services: WithServices, caller: WithCaller
) -> Response:
    """The oldest failure first. In CSV, cells that spreadsheets take for formulas begin with an apostrophe."""
    wanted = query.query(sees_only=sees_only(caller), states=query.state)
    as_csv = query.format == "csv"
    if query.records:
        lines = _lines_with_originals(services, wanted, as_csv=as_csv)
    else:
        lines = _lines(services, wanted, as_csv=as_csv)
    # The first part before the status: what fails later ends the stream without its end.
    try:
        first = await read_store(_next_of(lines))
    except UNANSWERED as error:
        raise unreadable_topic(error) from error

    async def chunks() -> AsyncIterator[bytes]:
        if as_csv:
            yield csv_header(with_records=query.records)
        yield first
        async for part in lines:
            yield part

    name = f"dead-letters.{query.format}"
    return StreamingResponse(
        chunks(),
        media_type="text/csv; charset=utf-8" if as_csv else "application/jsonl",
        headers={**NO_STORE, "content-disposition": f'attachment; filename="{name}"'},
    )


async def _lines(services: Services, wanted: DeadLetterQuery | None, *, as_csv: bool) -> AsyncIterator[bytes]:
    async for part in services.dead_letters.pages(wanted):
        yield csv_rows(part) if as_csv else json_lines(part)


async def _lines_with_originals(
    services: Services, wanted: DeadLetterQuery | None, *, as_csv: bool
) -> AsyncIterator[bytes]:
    line = csv_with_original if as_csv else json_with_original
    waiting = bytearray()
    async for stored, original in services.dead_letters.with_originals(wanted):
        waiting += line(stored, original)
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


async def _next_of(lines: AsyncIterator[bytes]) -> bytes:
    async for part in lines:
        return part
    return b""


IdInPath = Annotated[
    str, Path(description="Partition and offset on the dead-letter topic, as `2/17` or `2%2F17`.", examples=["2/17"])
]


@router.get(
    PATH + "/{dead_letter_id:path}",
    response_model=DeadLetterDetailView,
    responses=problems(ITEM_PROBLEMS),
    summary="One dead letter with the contents of its record",
    **requires(KeyScope.READ),
)
async def get_dead_letter(dead_letter_id: IdInPath, services: WithServices, caller: WithCaller) -> Response:
    """Headers, value and stack; a value that is no text is shown in hexadecimal digits."""
    stored = await found_dead_letter(dead_letter_id, services, tenant=sees_only(caller))
    try:
        record = await services.dead_letters.topic.record(stored.entry)
    except UNANSWERED as error:
        raise unreadable_topic(error) from error
    if record is None:
        raise _no_dead_letter(dead_letter_id)
    return json_response(DeadLetterDetailView.with_contents(stored, contents_of(stored.entry, record)))


async def found_dead_letter(text: str, services: Services, *, tenant: str | None) -> StoredDeadLetter:
    """The dead letter with this id, of a tenant or any; raises `ProblemError` (404)."""
    try:
        ref = RecordRef.parse(text)
    except ValueError:
        raise _no_dead_letter(text) from None
    stored = await read_store(services.dead_letters.find(ref, tenant=tenant))
    if stored is None:
        raise _no_dead_letter(text)
    return stored


def unreadable_topic(error: Exception) -> ProblemError:
    """503: Kafka did not answer."""
    reason = " ".join(str(error).split())
    return unavailable(ProblemCode.QUEUE_UNAVAILABLE, f"the dead-letter topic cannot be used now ({reason}); retry")


def _no_dead_letter(text: str) -> ProblemError:
    shown = cut_text(text, 64)
    return ProblemError(ProblemCode.NOT_FOUND, f"there is no dead letter {shown!r}; list them with GET {PATH}")
