"""Works on replay jobs, in every server process: takes the next one, sends its tasks again, notes what became of each.

What was done about a dead letter is on Kafka, written by the code that `fluxpool dlq` uses: the task, then its
resolution. So a job that is taken over looks there first for what its former process did. The task of a process that is
killed between both is sent twice, as the same record, which workers know.
"""

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import structlog
from aiokafka.errors import KafkaError
from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import moment_at
from fluxpool_contract.messages import Resolution, ResolutionAction
from fluxpool_gateway.dead_letters.jobs import Item, ItemOutcome, Job, ReplayJobs, canceled_reason
from fluxpool_gateway.dead_letters.rows import is_task_deleted
from fluxpool_gateway.dead_letters.topic import DeadLetterTopic
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.store.reading import StoreUnavailableError, TaskStoreReader
from fluxpool_gateway.store.shared_file import SharedFileError
from fluxpool_transport.dlq import (
    DEFAULT_MAX_REPLAYS,
    DeadLetterEntry,
    RecordRef,
    RefusedReplay,
    ReplayChoices,
    ResolutionInterruptedError,
    SentReplay,
)
from fluxpool_transport.kafka import KafkaUnavailableError, TopicError

IDLE_SECONDS: Final = 2.0
"""Between two looks for a job of another process."""
SAVE_SECONDS: Final = 1.0
"""Between two notes of what was done, which renew the lease."""
RETRY_SECONDS: Final = 2.0
UNANSWERED: Final = (ResolutionInterruptedError, KafkaUnavailableError, KafkaError, TopicError)
"""What a call of Kafka may end with."""

logger = structlog.stdlib.get_logger(__name__)


class ReplayPlan(BaseModel):
    """How a job replays; stored with it."""

    model_config = ConfigDict(frozen=True)

    patch: dict[str, Any] | None = None
    drop_headers: tuple[str, ...] = ()
    to_topic: str | None = None
    max_replays: int = DEFAULT_MAX_REPLAYS
    force: bool = False
    rate_per_second: float
    since_ms: int = 0
    """Timestamp of the job's first dead letter; 0: any."""
    canceled_by: str | None = None
    """Who has canceled the job, if anybody has."""

    def choices(self, retry_topics: frozenset[str]) -> ReplayChoices:
        """The same for the replayer."""
        return ReplayChoices(
            patch=self.patch,
            drop_headers=frozenset(self.drop_headers),
            to_topic=self.to_topic,
            retry_topics=retry_topics,
            max_replays=self.max_replays,
            ignore_max_replays=self.force,
        )


class _LeaseLostError(Exception):
    """Another process works on the job."""


@dataclass(slots=True)
class _Progress:
    """A job that is worked on: what is to do, and what was done and is not saved yet."""

    job: Job
    waiting: dict[RecordRef, list[int]] = field(default_factory=dict)
    unsaved: list[Item] = field(default_factory=list)
    canceled_by: str | None = None

    def __post_init__(self) -> None:
        for item in self.job.items:
            self.waiting.setdefault(RecordRef.parse(item.record), []).append(item.number)

    def note(self, refs: Sequence[RecordRef], outcome: ItemOutcome, **detail: Any) -> None:
        """What became of a dead letter, by any of its records."""
        for ref in refs:
            for number in self.waiting.pop(ref, ()):
                self.unsaved.append(Item(number, str(ref), outcome, json.dumps(detail, ensure_ascii=False)))


class ReplayRunner:
    """The part of one process; `run` it in the background."""

    def __init__(
        self,
        *,
        jobs: ReplayJobs,
        topic: DeadLetterTopic,
        retry_topics: frozenset[str],
        metrics: GatewayMetrics,
        store: TaskStoreReader,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._topic = topic
        self._retry_topics = retry_topics
        self._metrics = metrics
        self._owner = uuid4().hex
        self._wanted = asyncio.Event()
        self._is_usable = True

    def wake(self) -> None:
        """A job was created."""
        self._wanted.set()

    async def run(self) -> None:
        """Work on jobs until cancelled."""
        while True:
            self._wanted.clear()
            job = await self._claim()
            if job is None or not await self._work(job):
                with suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS if job is None else RETRY_SECONDS):
                        await self._wanted.wait()

    async def _claim(self) -> Job | None:
        try:
            job = await self._jobs.claim(self._owner)
        except SharedFileError as error:
            # Once for each outage: the next try is two seconds away.
            if self._is_usable:
                logger.warning("replay_jobs_unusable", reason=str(error))
            self._is_usable = False
            return None
        self._is_usable = True
        return job

    async def _work(self, job: Job) -> bool:
        """Work on a job; whether it has ended."""
        logger.info("replay_job_started", job_id=job.job_id, to_do=len(job.items), total=job.total)
        progress = _Progress(job)
        problem, has_ended = "", False
        try:
            async with asyncio.TaskGroup() as group:
                saving = group.create_task(self._keep_saving(progress), name="replay-progress")
                await self._replay(progress)
                saving.cancel()
            has_ended = True
        except* _LeaseLostError:
            logger.warning("replay_job_taken_over", job_id=job.job_id)
        except* UNANSWERED as group_error:
            problem = " ".join(str(group_error.exceptions[0]).split())
            logger.warning("replay_job_interrupted", job_id=job.job_id, reason=problem)
        except* StoreUnavailableError as group_error:
            problem = "the task store cannot be read"
            logger.warning("replay_job_interrupted", job_id=job.job_id, reason=str(group_error.exceptions[0]))
        except* SharedFileError as group_error:
            logger.warning("replay_jobs_unusable", job_id=job.job_id, reason=str(group_error.exceptions[0]))
        except* Exception as group_error:  # the top of a loop that must live
            logger.exception("replay_job_failed", job_id=job.job_id)
            # Not tried again: it would hold up all later ones.
            problem, has_ended = f"the gateway failed ({type(group_error.exceptions[0]).__name__}); see its log", True
        finally:
            # Also when the process stops: another one goes on at once.
            with suppress(SharedFileError):
                await self._save(progress, problem=problem, release=True, end=has_ended)
        if has_ended:
            logger.info("replay_job_ended", job_id=job.job_id, total=job.total)
        return has_ended

    async def _replay(self, progress: _Progress) -> None:
        job = progress.job
        if not job.items:
            return
        plan = ReplayPlan.model_validate_json(job.plan)
        progress.canceled_by = progress.canceled_by or plan.canceled_by
        # Of a job that was canceled as well: the process before may have sent more than it noted.
        todo = await self._to_do(progress, plan)
        choices = plan.choices(self._retry_topics)
        async with (
            self._topic.replayer(by=job.created_by, job_id=job.job_id) as replayer,
            aclosing(
                replayer.replay(todo, choices, per_second=plan.rate_per_second, is_deleted=self._is_deleted)
            ) as outcomes,
        ):
            # Between two tasks alone: what is sent is to have its resolution.
            while progress.canceled_by is None and (outcome := await anext(outcomes, None)) is not None:
                self._note(progress, outcome)
        for ref in tuple(progress.waiting):
            if progress.canceled_by is None:
                progress.note([ref], ItemOutcome.SKIPPED, reason="Kafka has deleted it")
            else:
                progress.note([ref], ItemOutcome.CANCELED, reason=canceled_reason(progress.canceled_by))

    async def _is_deleted(self, entry: DeadLetterEntry) -> bool:
        name = self._topic.name
        return await self._store.read(lambda connection: is_task_deleted(connection, name, entry.ref))

    async def _to_do(self, progress: _Progress, plan: ReplayPlan) -> Sequence[DeadLetterEntry]:
        """What is still open on Kafka; the others are noted."""
        since = moment_at(plan.since_ms) if plan.since_ms > 0 else None
        todo = []
        for entry in await self._topic.entries(since=since):
            refs = (entry.ref, *entry.copies)
            if progress.waiting.keys().isdisjoint(refs):
                continue
            resolution = entry.resolution
            if resolution is None:
                todo.append(entry)
            elif resolution.job_id == progress.job.job_id and resolution.action == ResolutionAction.REPLAYED:
                progress.note(refs, ItemOutcome.SENT, **_sent(resolution))
            else:
                by = f" by {resolution.by}" if resolution.by else ""
                progress.note(refs, ItemOutcome.SKIPPED, reason=f"it was {resolution.action}{by}")
        return todo

    def _note(self, progress: _Progress, outcome: SentReplay | RefusedReplay) -> None:
        match outcome:
            case SentReplay():
                entry = outcome.prepared.entry
                progress.note((entry.ref, *entry.copies), ItemOutcome.SENT, **_sent(outcome.resolution))
                self._metrics.count_dead_letter("replayed")
            case RefusedReplay():
                entry = outcome.entry
                problems = [{"field": problem.field, "message": problem.message} for problem in outcome.problems]
                progress.note((entry.ref, *entry.copies), ItemOutcome.REFUSED, problems=problems)
                self._metrics.count_dead_letter("refused")

    async def _keep_saving(self, progress: _Progress) -> None:
        while True:
            await asyncio.sleep(SAVE_SECONDS)
            if not await self._save(progress):
                raise _LeaseLostError
            job = await self._jobs.read(progress.job.job_id, limit=0)
            if job is not None:
                progress.canceled_by = ReplayPlan.model_validate_json(job.plan).canceled_by

    async def _save(self, progress: _Progress, *, problem: str = "", release: bool = False, end: bool = False) -> bool:
        unsaved, progress.unsaved = progress.unsaved, []
        try:
            return await self._jobs.save(
                progress.job.job_id, self._owner, unsaved, problem=problem, release=release, end=end
            )
        except SharedFileError:
            progress.unsaved = unsaved + progress.unsaved
            raise


def _sent(resolution: Resolution) -> dict[str, Any]:
    return {
        "request_id": resolution.request_id,
        "epoch": resolution.epoch,
        "topic": resolution.replayed_topic,
        "partition": resolution.replayed_partition,
        "offset": resolution.replayed_offset,
    }
