"""Replay jobs of a gateway as results of commands."""

import json
from collections.abc import Sequence
from typing import Any

from fluxpool_cli.output import Result, Table
from fluxpool_cli.terminal import minute_text
from fluxpool_client import ReplayItem, ReplayJob

_COLUMNS = ("JOB", "STATE", "SENT", "REFUSED", "CANCELED", "CREATED (UTC)", "BY", "PROBLEM")
_OPTIONAL = ("PROBLEM", "BY", "CREATED (UTC)")


def job_document(job: ReplayJob) -> dict[str, Any]:
    """A job without its items."""
    return job.model_dump(mode="json", exclude={"items", "next"})


def job_counts(job: ReplayJob) -> str:
    """What became of its dead letters."""
    return f"{_sent(job)} sent, {job.canceled} canceled, {job.refused + job.skipped} refused"


def jobs_result(jobs: Sequence[ReplayJob], *, has_more: bool) -> Result:
    """A list of jobs."""
    rows = [
        (
            job.job_id,
            job.state,
            _sent(job),
            str(job.refused + job.skipped),
            str(job.canceled),
            minute_text(job.created_at),
            job.created_by or "-",
            job.problem or "-",
        )
        for job in jobs
    ]
    return Result(
        document={"jobs": [job_document(job) for job in jobs]},
        parts=[Table(_COLUMNS, rows, optional=_OPTIONAL, empty="no replay jobs; `fluxpool dlq replay` makes one")],
        names=[job.job_id for job in jobs],
        notes=["older ones are not shown; raise --limit"] if has_more else (),
    )


def job_result(job: ReplayJob, items: Sequence[ReplayItem]) -> Result:
    """A job, and what became of each of its dead letters."""
    rows = [(item.id, item.outcome or "open", json.dumps(item.detail) if item.detail else "-") for item in items]
    by = f" by {job.created_by}" if job.created_by else ""
    return Result(
        document=job_document(job) | {"items": [item.model_dump(mode="json") for item in items]},
        parts=[
            f"{job.job_id} {job.state}: {job_counts(job)}",
            f"created at {minute_text(job.created_at)} (UTC){by}",
            *([f"problem: {job.problem}"] if job.problem else []),
            "",
            Table(("RECORD", "OUTCOME", "DETAIL"), rows),
        ],
        names=[item.id for item in items],
    )


def _sent(job: ReplayJob) -> str:
    return f"{job.sent} of {job.total}"
