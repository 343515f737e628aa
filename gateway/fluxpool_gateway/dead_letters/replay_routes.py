"""The routes that resolve dead letters, for holders of the scope admin: replay them by jobs, discard one."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Path, Query, Response

from fluxpool_contract.bounds import milliseconds_of
from fluxpool_contract.messages import ResolutionAction, new_request_id
from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.dead_letters.jobs import Job
from fluxpool_gateway.dead_letters.replaying import UNANSWERED, ReplayPlan
from fluxpool_gateway.dead_letters.routes import (
    ITEM_PROBLEMS,
    LIST_PROBLEMS,
    PATH,
    IdInPath,
    found_dead_letter,
    sees_only,
    unreadable_topic,
)
from fluxpool_gateway.dead_letters.rows import OPEN, DeadLetterQuery, StoredDeadLetter
from fluxpool_gateway.dead_letters.views import (
    DeadLetterFilters,
    DeadLetterView,
    DiscardRequest,
    ProblemCountView,
    RefusedView,
    ReplayableView,
    ReplayJobPageView,
    ReplayJobView,
    ReplayPreview,
    ReplayRequest,
)
from fluxpool_gateway.http.problem import BODY_PROBLEMS, ProblemCode, ProblemError, problems, unavailable
from fluxpool_gateway.http.routes import Services, WithServices, json_response
from fluxpool_gateway.http.scopes import WithCaller, requires
from fluxpool_gateway.http.task_routes import read_store
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.store.shared_file import SharedFileError
from fluxpool_transport.dlq import PreparedReplay, RecordRef, RefusedReplay, check_choices

SHOWN: Final = 200
MAX_ITEMS: Final = 1000
MAX_LISTED: Final = 100

logger = structlog.stdlib.get_logger(__name__)
router = APIRouter()


@router.post(
    PATH + "/replay",
    status_code=HTTPStatus.ACCEPTED,
    response_model=ReplayJobView,
    responses={
        200: {"model": ReplayPreview, "description": "What would be sent and refused: a dry run."},
        **problems({**BODY_PROBLEMS, **LIST_PROBLEMS, 422: BODY_PROBLEMS[422]}),
    },
    summary="Replay dead letters",
    **requires(KeyScope.ADMIN),
)
async def replay_dead_letters(wanted: ReplayRequest, services: WithServices, caller: WithCaller) -> Response:
    """Each task is checked as a worker would before it is sent; jobs run one after the other."""
    chosen = chosen_query(wanted, tenant=sees_only(caller))
    dead_letters: Sequence[StoredDeadLetter] = ()
    if chosen is not None:
        dead_letters = await read_store(services.dead_letters.oldest(chosen, limit=wanted.max))
    plan = _plan(wanted, services, dead_letters)
    problem = check_choices(plan.choices(frozenset()), count=len(dead_letters))
    if problem is not None:
        fields = [FieldProblem(f"patch.{problem.field}", problem.message)]
        raise ProblemError(
            ProblemCode.INVALID_REQUEST, str(fields[0]), fields=fields, status=HTTPStatus.UNPROCESSABLE_ENTITY
        )
    if wanted.dry_run:
        matching = 0
        if chosen is not None:
            _, matching = await read_store(services.dead_letters.page(chosen, after=None, newest_first=False, limit=1))
        return json_response(await _preview(dead_letters, plan, services, matching=matching))
    job = Job(
        job_id=new_request_id(),
        created_at_ms=services.now_ms(),
        created_by=caller.name,
        plan=plan.model_dump_json(),
        total=len(dead_letters),
    )
    try:
        await services.dead_letters.jobs.create(job, [str(dead_letter.entry.ref) for dead_letter in dead_letters])
    except SharedFileError as error:
        raise _unusable(error) from error
    services.dead_letters.runner.wake()
    logger.info("replay_job_created", job_id=job.job_id, dead_letters=job.total, by=caller.name)
    view = ReplayJobView.of(job, limit=MAX_ITEMS)
    response = json_response(view, HTTPStatus.ACCEPTED)
    response.headers["location"] = view.status_url
    return response


def chosen_query(wanted: ReplayRequest, *, tenant: str | None) -> DeadLetterQuery | None:
    """The open dead letters that are chosen, of a tenant or any; None when nothing can match."""
    filters = wanted.filter or DeadLetterFilters()
    return filters.query(sees_only=tenant, states=(OPEN,), refs=map(RecordRef.parse, wanted.ids or ()))


def _plan(wanted: ReplayRequest, services: Services, dead_letters: Iterable[StoredDeadLetter]) -> ReplayPlan:
    to_topic = None if wanted.priority is None else wanted.priority.topic(services.dead_letters.topics)
    return ReplayPlan(
        patch=wanted.patch,
        drop_headers=wanted.drop_headers,
        to_topic=to_topic,
        max_replays=wanted.max_replays,
        force=wanted.force,
        rate_per_second=wanted.rate_per_second,
        since_ms=min((milliseconds_of(dead_letter.entry.stored_at) for dead_letter in dead_letters), default=0),
    )


async def _preview(
    dead_letters: Sequence[StoredDeadLetter], plan: ReplayPlan, services: Services, *, matching: int
) -> ReplayPreview:
    choices = plan.choices(frozenset(services.dead_letters.topics.retry))
    entries = [dead_letter.entry for dead_letter in dead_letters]
    sent: list[PreparedReplay] = []
    refused: list[RefusedReplay] = []
    if entries:
        try:
            async with (
                services.dead_letters.topic.replayer(by=None) as replayer,
                aclosing(replayer.plan(entries, choices)) as planned,
            ):
                async for outcome in planned:
                    # Thousands come without a pause, and submissions must not wait for them.
                    await asyncio.sleep(0)
                    if isinstance(outcome, RefusedReplay):
                        refused.append(outcome)
                    else:
                        sent.append(outcome)
        except UNANSWERED as error:
            raise unreadable_topic(error) from error
    letters_of = (entry.dead_letter for entry in entries)
    return ReplayPreview(
        matching=matching,
        to_send=len(sent),
        refused=len(refused),
        by_topic=Counter(item.topic for item in sent),
        by_error_code=Counter(
            "foreign" if dead_letter is None else str(dead_letter.error_code) for dead_letter in letters_of
        ),
        problems=_problem_counts(refused),
        tasks=tuple(
            ReplayableView(id=str(item.entry.ref), request_id=item.request_id, epoch=item.epoch, topic=item.topic)
            for item in sent[:SHOWN]
        ),
        refusals=tuple(
            RefusedView(
                id=str(item.entry.ref),
                request_id=item.entry.request_id,
                problems=tuple({"field": problem.field, "message": problem.message} for problem in item.problems),
            )
            for item in refused[:SHOWN]
        ),
    )


def _problem_counts(refused: Iterable[RefusedReplay]) -> tuple[ProblemCountView, ...]:
    counts: Counter[str] = Counter()
    examples: dict[str, tuple[RefusedReplay, FieldProblem]] = {}
    for item in refused:
        for field, problem in {problem.field: problem for problem in item.problems}.items():
            counts[field] += 1
            examples.setdefault(field, (item, problem))
    return tuple(
        ProblemCountView(
            field=field, message=examples[field][1].message, count=count, example=str(examples[field][0].entry.ref)
        )
        for field, count in counts.most_common(SHOWN)
    )


@router.get(
    PATH + "/replays",
    response_model=ReplayJobPageView,
    responses=problems(LIST_PROBLEMS),
    summary="Replay jobs",
    **requires(KeyScope.ADMIN),
)
async def list_replay_jobs(
    services: WithServices,
    *,
    cursor: Annotated[str, Query(description="`next_cursor` of the page before.", max_length=64)] = "",
    limit: Annotated[int, Query(description="Jobs at most.", ge=1, le=MAX_LISTED)] = 20,
) -> Response:
    """The newest first, without their items. Kept for 30 days after their end."""
    try:
        jobs = () if "\0" in cursor else await services.dead_letters.jobs.list(before=cursor, limit=limit + 1)
    except SharedFileError as error:
        raise _unusable(error) from error
    shown = jobs[:limit]
    page = ReplayJobPageView(
        data=tuple(ReplayJobView.of(job, limit=limit) for job in shown),
        next_cursor=shown[-1].job_id if len(jobs) > limit else None,
    )
    return json_response(page)


@router.get(
    PATH + "/replays/{job_id}",
    response_model=ReplayJobView,
    responses=problems({**LIST_PROBLEMS, 404: "There is no such job."}),
    summary="A replay job and what became of each dead letter",
    **requires(KeyScope.ADMIN),
)
async def get_replay_job(
    job_id: Annotated[str, Path(description="Id of the job, as the replay was answered with.", max_length=64)],
    services: WithServices,
    *,
    after: Annotated[int, Query(description="Number of the item before the first.", ge=-1, le=10**6)] = -1,
    limit: Annotated[int, Query(description="Items at most.", ge=1, le=MAX_ITEMS)] = MAX_ITEMS,
) -> Response:
    """Kept for 30 days after its end."""
    try:
        job = None if "\0" in job_id else await services.dead_letters.jobs.read(job_id, after=after, limit=limit)
    except SharedFileError as error:
        raise _unusable(error) from error
    if job is None:
        raise _no_job(job_id)
    return json_response(ReplayJobView.of(job, limit=limit))


@router.post(
    PATH + "/replays/{job_id}/cancel",
    status_code=HTTPStatus.ACCEPTED,
    response_model=ReplayJobView,
    responses={
        200: {"model": ReplayJobView, "description": "The job has ended."},
        **problems({**LIST_PROBLEMS, 404: "There is no such job."}),
    },
    summary="Cancel a replay job",
    **requires(KeyScope.ADMIN),
)
async def cancel_replay_job(
    job_id: Annotated[str, Path(description="Id of the job.", max_length=64)],
    services: WithServices,
    caller: WithCaller,
) -> Response:
    """What was sent stays sent; dead letters whose turn had not come stay open. To repeat it is harmless."""
    if "\0" in job_id:
        raise _no_job(job_id)
    jobs = services.dead_letters.jobs
    try:
        await jobs.cancel(job_id, by=caller.name or "a caller without a name")
        job = await jobs.read(job_id, limit=MAX_ITEMS)
    except SharedFileError as error:
        raise _unusable(error) from error
    if job is None:
        raise _no_job(job_id)
    services.dead_letters.runner.wake()
    logger.info("replay_job_canceled", job_id=job_id, by=caller.name)
    status = HTTPStatus.ACCEPTED if job.ended_at_ms is None else HTTPStatus.OK
    return json_response(ReplayJobView.of(job, limit=MAX_ITEMS), status)


@router.post(
    PATH + "/{dead_letter_id:path}/discard",
    response_model=DeadLetterView,
    responses=problems({**BODY_PROBLEMS, **ITEM_PROBLEMS, 409: "The dead letter was replayed."}),
    summary="Discard a dead letter",
    **requires(KeyScope.ADMIN),
)
async def discard_dead_letter(
    dead_letter_id: IdInPath, wanted: DiscardRequest, services: WithServices, caller: WithCaller
) -> Response:
    """No replay sends it; it stays on the topic until it expires, with who discarded it, when and why."""
    stored = await found_dead_letter(dead_letter_id, services, tenant=sees_only(caller))
    if stored.state not in {OPEN, ResolutionAction.DISCARDED}:
        raise ProblemError(ProblemCode.ALREADY_RESOLVED, f"the dead letter {dead_letter_id} was {stored.state}")
    if stored.state == OPEN:
        resolved = await discard_open([stored], wanted, services, caller)
        stored = stored if resolved is None else resolved
    return json_response(DeadLetterView.of(stored))


async def discard_open(
    dead_letters: Sequence[StoredDeadLetter], wanted: DiscardRequest, services: Services, caller: Caller
) -> StoredDeadLetter | None:
    """Discard open dead letters; returns the last one as it is projected then. Raises `ProblemError` (503)."""
    last: RecordRef | None = None
    try:
        async with (
            services.dead_letters.topic.replayer(by=caller.name) as replayer,
            aclosing(replayer.discard([one.entry for one in dead_letters], reason=wanted.reason.strip())) as discarded,
        ):
            async for entry, resolution in discarded:
                last = entry.ref
                services.metrics.count_dead_letter("discarded")
                logger.info("dead_letter_discarded", record=str(last), by=resolution.by)
    except UNANSWERED as error:
        raise unreadable_topic(error) from error
    return None if last is None else await read_store(services.dead_letters.until_resolved(last))


def _no_job(job_id: str) -> ProblemError:
    return ProblemError(ProblemCode.NOT_FOUND, f"there is no replay job {job_id!r}; POST {PATH}/replay makes one")


def _unusable(error: SharedFileError) -> ProblemError:
    logger.warning("replay_jobs_unusable", reason=str(error))
    return unavailable(ProblemCode.STORE_UNAVAILABLE, "the replay jobs cannot be read or written now; retry")
