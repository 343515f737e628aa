"""How tasks are shown. Pure: states in, results out."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from fluxpool_cli.output import Part, Result, Table
from fluxpool_cli.terminal import minute_text, utc_text
from fluxpool_client import Group, Task

COLUMNS = ("REQUEST ID", "STATUS", "CREATED (UTC)", "TOOK", "PRIORITY", "DETAIL")
OPTIONAL_COLUMNS = ("PRIORITY", "TOOK", "CREATED (UTC)")
"""Columns that a narrow terminal omits, the first one first."""


def document_of(task: Task) -> dict[str, Any]:
    """For machines: the fields that the gateway sent."""
    return task.model_dump(mode="json", exclude_unset=True)


def detail_of(task: Task) -> str:
    """What a person wants to know of the state beside its name."""
    if task.error is not None:
        return f"{task.error.message} ({task.error.code})"
    if task.images:
        return f"{len(task.images)} image{'' if len(task.images) == 1 else 's'}"
    if task.progress is not None:
        return f"step {task.progress.step} of {task.progress.total_steps}"
    if task.queue is not None:
        place = "" if task.queue.position is None else f"{task.queue.position} before it; "
        eta = "" if task.queue.eta_seconds is None else f"about {task.queue.eta_seconds:.0f} s; "
        return f"{place}{eta}{task.queue.why}"
    return "-"


def tasks_result(tasks: Sequence[Task], *, notes: Sequence[str] = ()) -> Result:
    """A list."""
    rows = [
        (
            task.request_id,
            str(task.status),
            minute_text(task.created_at),
            _took(task),
            task.priority or "-",
            detail_of(task),
        )
        for task in tasks
    ]
    return Result(
        document={"tasks": [document_of(task) for task in tasks]},
        parts=[Table(COLUMNS, rows, optional=OPTIONAL_COLUMNS, empty="no tasks")],
        names=[task.request_id for task in tasks],
        notes=notes,
        final=all(task.ended for task in tasks),
    )


def task_result(task: Task, files: Sequence[Path] = ()) -> Result:
    """One task with everything that is known of it."""
    document = document_of(task)
    if files:
        document["files"] = [str(file) for file in files]
    rows = list(_rows(task))
    parts: list[Part] = [Table(("", ""), rows)]
    parts += [f"image {image.index}  {image.width}x{image.height} {image.format} {image.url}" for image in task.images]
    return Result(
        document=document,
        parts=[*parts, *map(str, files)],
        names=[task.request_id],
        notes=[f"warning: {warning}" for warning in task.warnings],
        final=task.ended,
    )


def _rows(task: Task) -> Iterable[tuple[str, str]]:
    values: dict[str, Any] = {
        "request id": task.request_id,
        "status": task.status,
        "detail": detail_of(task),
        "priority": task.priority,
        "preset": task.preset,
        "group": task.group_id,
        "retry of": task.parent_id,
        "attempts": task.attempts,
        "seed": task.seed,
        "model": task.model,
        "created": task.created_at,
        "started": task.started_at,
        "completed": task.completed_at,
        "timings": ", ".join(f"{name} {value:.0f} ms" for name, value in task.timings.items()),
        "metadata": ", ".join(f"{name}={value}" for name, value in task.metadata.items()),
    }
    for name, value in values.items():
        if value not in {None, ""}:
            yield name, f"{utc_text(value)} UTC" if isinstance(value, datetime) else str(value)


def group_result(group: Group) -> Result:
    """How far a group is."""
    rows = [(status, str(count)) for status, count in group.counts.items()]
    line = f"{group.group_id}: {group.total} tasks, {'all ended' if group.ended else 'not ended'}"
    if group.eta_seconds is not None:
        line += f", about {group.eta_seconds:.0f} s"
    return Result(
        document=group.model_dump(mode="json"),
        parts=[line, Table(("STATUS", "TASKS"), rows)],
        names=[group.group_id],
        notes=[group.why] if group.why else (),
        final=group.ended,
    )


def event_result(task: Task) -> Result:
    """One event, in a line."""
    at = task.completed_at or task.started_at or task.created_at
    when = "-" if at is None else f"{utc_text(at)}"
    return Result(
        document=document_of(task),
        parts=[f"{when}  {task.request_id}  {task.status}  {detail_of(task)}"],
        names=[task.request_id],
    )


def _took(task: Task) -> str:
    if task.completed_at is None or task.created_at is None:
        return "-"
    return f"{(task.completed_at - task.created_at).total_seconds():.1f} s"
