"""The route that exports feedback for fine-tuning, streamed page by page."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, TypeVar, assert_never

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Connection

from fluxpool_contract.json_body import json_line
from fluxpool_contract.messages import ComparedImage, Comparison
from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.feedback.layouts import (
    Files,
    Layout,
    Row,
    has_winner,
    hpd_row,
    imagereward_row,
    pickapic_row,
    to_json,
)
from fluxpool_gateway.feedback.parquet import ParquetFile
from fluxpool_gateway.feedback.reads import read_comparisons, read_ranks, read_ratings
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, problems
from fluxpool_gateway.http.routes import NO_STORE, READ_PROBLEMS, Services, WithServices
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.http.task_routes import read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.images.routes import stored_image

_ROWS: Final = 1000
"""Read at once: some megabytes with long prompts."""
_PAIRS_WITH_FILES: Final = 8
"""Sixteen images, about 30 MB."""

T = TypeVar("T")

router = APIRouter()


class ExportFormat(StrEnum):
    """The form of an export."""

    JSONL = "jsonl"
    """One JSON object a line; files in base64."""
    PARQUET = "parquet"


_MEDIA_TYPES: Final = {
    ExportFormat.JSONL: "application/x-ndjson",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
}


class ExportQuery(BaseModel):
    """What to export."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    format: ExportFormat = ExportFormat.JSONL
    """jsonl or parquet; a gateway without pyarrow has jsonl alone."""
    layout: Layout = Layout.PICKAPIC
    """Columns: pickapic or hpd (comparisons), imagereward (ratings with a score)."""
    ties: bool = False
    """With pickapic: also pairs without a winner, with labels of 0.5."""
    images: bool = True
    """With pickapic: the files of the images; null for those that are not stored any more."""


@router.get(
    "/v1/feedback/export",
    response_class=Response,
    responses={
        200: {"content": {media_type: {} for media_type in _MEDIA_TYPES.values()}},
        **problems(
            {
                **SECURITY_PROBLEMS,
                422: "A parameter is not allowed, or the gateway has no pyarrow for Parquet.",
                503: READ_PROBLEMS[503],
            }
        ),
    },
    summary="Export feedback for fine-tuning",
    **requires(KeyScope.ADMIN),
)
async def export_feedback(
    query: Annotated[ExportQuery, Query()], services: WithServices, caller: WithCaller
) -> Response:
    """Of the tenant of the key. A response that breaks off is not complete: an image or the store could not be read."""
    pages = _pages(query, services, caller)
    pieces = _lines(pages) if query.format is ExportFormat.JSONL else _parquet(query.layout, pages)
    # What fails at once is answered as a problem.
    first = await anext(pieces, b"")

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    name = f"feedback-{query.layout}.{query.format}"
    headers = {**NO_STORE, "content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(body(), media_type=_MEDIA_TYPES[query.format], headers=headers)


async def _lines(pages: AsyncIterator[Sequence[Row]]) -> AsyncIterator[bytes]:
    async for rows in pages:
        yield b"".join(json_line(json.dumps(to_json(row), ensure_ascii=False)) for row in rows)


async def _parquet(layout: Layout, pages: AsyncIterator[Sequence[Row]]) -> AsyncIterator[bytes]:
    try:
        file = await asyncio.to_thread(ParquetFile, layout)
    except ImportError as error:
        problem = FieldProblem("format", "this gateway has no pyarrow; install fluxpool[parquet] there, or use jsonl")
        raise ProblemError(
            ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=HTTPStatus.UNPROCESSABLE_ENTITY
        ) from error
    async for rows in pages:
        yield await asyncio.to_thread(file.add, rows)
    yield await asyncio.to_thread(file.end)


async def _pages(query: ExportQuery, services: Services, caller: Caller) -> AsyncIterator[Sequence[Row]]:
    match query.layout:
        case Layout.IMAGEREWARD:
            async for rows in _rated(services, caller.tenant):
                yield rows
        case Layout.PICKAPIC | Layout.HPD:
            async for rows in _compared(query, services, caller):
                yield rows
        case _:
            assert_never(query.layout)


async def _page(services: Services, read: Callable[[Connection], T]) -> T:
    return await read_store(services.store.read(read))


async def _rated(services: Services, tenant: str) -> AsyncIterator[Sequence[Row]]:
    ranks = await _page(services, partial(read_ranks, tenant=tenant))
    after: str | None = ""
    while after is not None:
        page = await _page(services, partial(read_ratings, tenant=tenant, after=after, limit=_ROWS))
        after = page[-1].rating_id if page else None
        # One that came meanwhile has no rank.
        yield [
            imagereward_row(judgement, rank=ranks[judgement.rating_id])
            for judgement in page
            if judgement.rating_id in ranks
        ]


async def _compared(query: ExportQuery, services: Services, caller: Caller) -> AsyncIterator[Sequence[Row]]:
    has_files = query.layout is Layout.PICKAPIC and query.images
    limit = _PAIRS_WITH_FILES if has_files else _ROWS
    has_ties = query.layout is Layout.PICKAPIC and query.ties
    after: str | None = ""
    while after is not None:
        page = await _page(services, partial(read_comparisons, tenant=caller.tenant, after=after, limit=limit))
        after = page[-1].rating_id if page else None
        rows: list[Row] = []
        for judgement in page:
            if not (has_winner(judgement) or has_ties):
                continue
            if query.layout is Layout.HPD:
                rows.append(hpd_row(judgement))
            else:
                rows.append(
                    pickapic_row(judgement, await _files(judgement, services, caller) if has_files else Files())
                )
        yield rows


async def _files(judgement: Comparison, services: Services, caller: Caller) -> Files:
    async def read(image: ComparedImage) -> bytes | None:
        key = None if image.origin is None else image.origin.object
        if key is None:
            return None
        return await stored_image(services.objects, key, caller, request_id=image.request_id)

    return Files(*await asyncio.gather(read(judgement.a), read(judgement.b)))
