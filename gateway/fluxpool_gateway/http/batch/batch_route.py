"""`POST /v1/generations/batch`: many submissions in one request, each with an outcome of its own.

Owns the form of the batch and of its answer. What a submission is, and its limits and idempotency, are
`http.submission`'s; the size of the body is bounded by `http.protocol`.
"""

import itertools
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from fluxpool_gateway.http.generation_request import MAX_BATCH_BYTES
from fluxpool_gateway.http.problem import FieldProblemDocument, OpenAIError, ProblemError, RefusedWait, problems
from fluxpool_gateway.http.request_context import BATCH_PATH, status_url_of
from fluxpool_gateway.http.routes import SUBMIT_PROBLEMS, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.http.task_routes import base_of
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.queue.admission import ETA_HEADER, POSITION_HEADER

MAX_REQUESTS: Final = 256
"""With 3 KiB each the body is full."""
_PROBLEMS: Final = {
    **{status: text for status, text in SUBMIT_PROBLEMS.items() if status not in {409, 410, 429, 503}},
    400: "The body is not JSON, or a header is not allowed.",
    413: f"The body is larger than {MAX_BATCH_BYTES} bytes.",
    422: "This is no batch; `errors` names each field.",
}

router = APIRouter()


class BatchRequest(BaseModel):
    """Requests for images."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    requests: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_REQUESTS)]
    """Each with the fields of `POST /v1/generations`, and `idempotency_key`: repeats with the same key are one task."""


class BatchItem(BaseModel):
    """What became of one request."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    code: int
    """As the status of `POST /v1/generations` would be: 202, or that of `error`."""
    request_id: str | None = None
    """Of the queued task."""
    status_url: str | None = None
    queue_position: int | None = None
    """Of a request that limits its wait: tasks that are likely to begin before it."""
    eta_seconds: int | None = None
    """Of such a request: until its result."""
    error: OpenAIError | None = None
    """Why there is no task; with 503 that is unknown."""
    wait: RefusedWait | None = None
    """The wait that the request does not accept."""
    errors: tuple[FieldProblemDocument, ...] = ()
    """Each invalid field."""


class BatchOutcome(BaseModel):
    """What became of each request."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    items: tuple[BatchItem, ...]
    """In the order of the requests."""
    accepted: int
    """How many were queued."""


@router.post(
    BATCH_PATH,
    status_code=HTTPStatus.ACCEPTED,
    response_model=BatchOutcome,
    responses=problems(_PROBLEMS),
    summary="Submit many requests for images",
    **requires(KeyScope.SUBMIT),
)
async def submit_batch(batch: BatchRequest, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """Answers once what became of each is known: some may be queued, and others refused."""
    submission: Submission = request.app.submission
    outcomes, mores = await submission.submit_each(batch.requests, caller, request.scope["headers"])
    base = base_of(request, services)
    items = tuple(
        _refused(outcome)
        if isinstance(outcome, ProblemError)
        else _accepted(outcome, dict(more), status_url=status_url_of(outcome, base=base))
        for outcome, more in zip(outcomes, mores, strict=True)
    )
    for outcome in outcomes:
        if isinstance(outcome, ProblemError):
            services.metrics.count_refusal(outcome.code)
    accepted = sum(item.error is None for item in items)
    body = BatchOutcome(items=items, accepted=accepted).model_dump_json(exclude_defaults=True)
    response = Response(body, status_code=HTTPStatus.ACCEPTED, media_type="application/json")
    # Limits are counted in the order of the requests: the last headers say what is left.
    for name, value in itertools.chain.from_iterable(mores):
        if name not in {POSITION_HEADER, ETA_HEADER}:
            response.headers[name] = value
    return response


def _accepted(request_id: str, headers: Mapping[str, str], *, status_url: str) -> BatchItem:
    position, eta = headers.get(POSITION_HEADER), headers.get(ETA_HEADER)
    return BatchItem(
        code=HTTPStatus.ACCEPTED,
        request_id=request_id,
        status_url=status_url,
        queue_position=None if position is None else int(position),
        eta_seconds=None if eta is None else int(eta),
    )


def _refused(problem: ProblemError) -> BatchItem:
    return BatchItem(
        code=problem.status,
        error=problem.openai_error(),
        wait=problem.wait,
        errors=tuple(FieldProblemDocument(pointer=field.pointer, detail=field.message) for field in problem.fields),
    )
