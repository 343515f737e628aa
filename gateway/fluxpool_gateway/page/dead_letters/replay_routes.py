"""Edit and replay: a patch for the tasks of dead letters, a dry run of it, the replay, and what became of each."""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse

from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.dead_letters.export import (
    outcome_csv_header,
    outcome_csv_lines,
    outcome_json_lines,
    outcome_reason,
)
from fluxpool_gateway.dead_letters.jobs import ItemOutcome
from fluxpool_gateway.dead_letters.replay_routes import (
    MAX_ITEMS,
    cancel_replay_job,
    get_replay_job,
    list_replay_jobs,
    replay_dead_letters,
)
from fluxpool_gateway.dead_letters.routes import get_dead_letter, list_dead_letters
from fluxpool_gateway.dead_letters.rows import OPEN
from fluxpool_gateway.dead_letters.views import (
    DEFAULT_RATE,
    DeadLetterDetailView,
    DeadLetterPageQuery,
    DeadLetterPageView,
    ReplayJobPageView,
    ReplayJobView,
    ReplayPreview,
    ReplayRequest,
)
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.http.routes import NO_STORE, Services, WithServices
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.page.dead_letters.choosing import Choice, choice_of
from fluxpool_gateway.page.dead_letters.editing import proposed_patch
from fluxpool_gateway.page.dead_letters.reading_routes import parsed_value, shown_value
from fluxpool_gateway.page.forms import WithForm, page_router
from fluxpool_gateway.page.operations import answered, as_number, refused, wanted
from fluxpool_gateway.page.rendering import redirect, render
from fluxpool_transport.dlq import DEFAULT_MAX_REPLAYS

SHOWN_ITEMS: Final = 200
SHOWN_JOBS: Final = 20
_SETTINGS: Final = ("patch", "priority", "drop_headers", "rate_per_second", "max_replays", "force")

router = page_router()


@router.get("/dead-letters/edit", **requires(KeyScope.ADMIN))
async def get_edit(request: Request, services: WithServices, caller: WithCaller) -> Response:
    """The form for the chosen dead letters, with the oldest of them as a sample."""
    choice = choice_of(request.query_params.multi_items())
    sample, _ = await _sample(choice, services, caller)
    settings = {"rate_per_second": f"{DEFAULT_RATE:g}", "max_replays": str(DEFAULT_MAX_REPLAYS)}
    if sample is not None:
        message = "" if sample.dead_letter is None else sample.dead_letter.message
        settings["patch"] = proposed_patch(message, parsed_value(sample.value))
    return await _render_form(request, services, caller, choice=choice, settings=settings)


@router.post("/dead-letters/edit", **requires(KeyScope.ADMIN))
async def post_edit(request: Request, services: WithServices, caller: WithCaller, form: WithForm) -> Response:
    """A dry run; or the replay, when its settings are those of the dry run that was shown."""
    choice = choice_of(form.pairs)
    settings = {name: form.get(name) for name in _SETTINGS}
    digest = _digest(choice, settings)
    is_checked = form.get("checked") == digest
    try:
        replay = _request(choice, settings)
        if form.get("action") == "replay" and is_checked:
            job = answered(await replay_dead_letters(replay, services, caller), ReplayJobView)
            return redirect(request, f"ui/dead-letters/replays/{job.job_id}")
        dry_run = replay.model_copy(update={"dry_run": True})
        preview = answered(await replay_dead_letters(dry_run, services, caller), ReplayPreview)
    except ProblemError as problem:
        return await _render_form(request, services, caller, choice=choice, settings=settings, why=problem)
    return await _render_form(
        request,
        services,
        caller,
        choice=choice,
        settings=settings,
        preview=preview,
        checked=digest,
        # Never more than was looked at: what was sent cannot be taken back.
        is_other=form.get("action") == "replay",
    )


def _request(choice: Choice, settings: Mapping[str, str]) -> ReplayRequest:
    values: dict[str, Any] = {
        **choice.values(),
        "patch": _patch(settings["patch"]),
        "drop_headers": tuple(settings["drop_headers"].replace(",", " ").split()),
        "rate_per_second": as_number(settings["rate_per_second"]),
        "max_replays": as_number(settings["max_replays"]),
        "force": bool(settings["force"]),
    }
    if settings["priority"]:
        values["priority"] = settings["priority"]
    return wanted(ReplayRequest, values)


def _patch(text: str) -> Any:
    """The patch; None for an empty one, which leaves the tasks as they are."""
    if not text.strip():
        return None
    try:
        patch = json.loads(text)
    except (ValueError, RecursionError) as error:
        problem = FieldProblem("patch", f'is not JSON ({error}); write an object such as {{"width": 1024}}')
        raise refused(problem) from error
    return None if patch == {} else patch


def _digest(choice: Choice, settings: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([choice.fields, sorted(settings.items())]).encode()).hexdigest()


async def _sample(choice: Choice, services: Services, caller: Caller) -> tuple[DeadLetterDetailView | None, int]:
    """The oldest of the chosen dead letters with its record, and how many there are."""
    if choice.ids:
        sample = answered(await get_dead_letter(choice.ids[0], services, caller), DeadLetterDetailView)
        return sample, len(choice.ids)
    query = wanted(DeadLetterPageQuery, {**choice.filters.values(), "state": (OPEN,), "order": "asc", "limit": 1})
    page = answered(await list_dead_letters(query, services, caller), DeadLetterPageView)
    if not page.data:
        return None, 0
    return answered(await get_dead_letter(page.data[0].id, services, caller), DeadLetterDetailView), page.matching


async def _render_form(
    request: Request,
    services: Services,
    caller: Caller,
    *,
    choice: Choice,
    settings: Mapping[str, str],
    preview: ReplayPreview | None = None,
    checked: str = "",
    is_other: bool = False,
    why: ProblemError | None = None,
) -> Response:
    sample, count = await _sample(choice, services, caller)
    problems = {} if why is None else {problem.field.partition(".")[0]: problem.message for problem in why.fields}
    return render(
        request,
        "dead_letters/edit.html",
        **({} if why is None else {"status": why.status}),
        choice=choice,
        settings={**dict.fromkeys(_SETTINGS, ""), **settings},
        sample=sample,
        value=None if sample is None else shown_value(sample.value),
        count=count,
        priorities=[*Priority],
        preview=preview,
        checked=checked,
        is_other=is_other,
        problems=problems,
        why=None if why is None or problems.keys() & set(_SETTINGS) else why.detail,
    )


@router.get("/dead-letters/replays", **requires(KeyScope.ADMIN))
async def get_jobs(
    request: Request, services: WithServices, cursor: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """Who replayed dead letters when, and what came of it."""
    page = answered(await list_replay_jobs(services, cursor=cursor, limit=SHOWN_JOBS), ReplayJobPageView)
    return render(request, "dead_letters/jobs.html", page=page, cursor=cursor)


@router.get("/dead-letters/replays/{job_id}", **requires(KeyScope.ADMIN))
async def get_job(
    job_id: str,
    request: Request,
    services: WithServices,
    after: Annotated[int, Query(ge=-1, le=10**6)] = -1,
) -> Response:
    """How far a replay is, and what became of each dead letter."""
    answer = await get_replay_job(job_id, services, after=after, limit=SHOWN_ITEMS)
    job = answered(answer, ReplayJobView)
    return render(request, "dead_letters/job.html", job=job, after=after, words=OUTCOME_WORDS, reason_of=outcome_reason)


@router.post("/dead-letters/replays/{job_id}/cancel", **requires(KeyScope.ADMIN))
async def post_cancel(job_id: str, request: Request, services: WithServices, caller: WithCaller) -> Response:
    """Cancel what a replay has not sent yet, and show the replay again."""
    job = answered(await cancel_replay_job(job_id, services, caller), ReplayJobView)
    return redirect(request, f"ui/dead-letters/replays/{job.job_id}")


OUTCOME_WORDS: Final = {
    ItemOutcome.SENT: "Sent again",
    ItemOutcome.REFUSED: "Refused, stays open",
    ItemOutcome.SKIPPED: "Skipped",
    ItemOutcome.CANCELED: "Canceled, stays open",
}


@router.get("/dead-letters/replays/{job_id}/export", **requires(KeyScope.ADMIN))
async def get_job_export(
    job_id: str,
    services: WithServices,
    file_format: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
) -> Response:
    """What became of each dead letter, as a file."""
    # The first part before the status, as in the export of dead letters.
    first = answered(await get_replay_job(job_id, services, after=-1, limit=MAX_ITEMS), ReplayJobView)

    async def chunks() -> AsyncIterator[bytes]:
        part = first
        lines = outcome_csv_lines if file_format == "csv" else outcome_json_lines
        if file_format == "csv":
            yield outcome_csv_header()
        yield lines(part.items)
        while part.next is not None:
            answer = await get_replay_job(job_id, services, after=part.next, limit=MAX_ITEMS)
            part = answered(answer, ReplayJobView)
            yield lines(part.items)

    return StreamingResponse(
        chunks(),
        media_type="text/csv; charset=utf-8" if file_format == "csv" else "application/jsonl",
        headers={**NO_STORE, "content-disposition": f'attachment; filename="replay-{first.job_id}.{file_format}"'},
    )
