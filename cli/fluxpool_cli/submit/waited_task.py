"""A task that was waited for: its result, and how a command ends that waited for it."""

from collections.abc import Sequence
from pathlib import Path

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.output import Result
from fluxpool_client import Task, TaskStatus


def task_result(task: Task, files: Sequence[Path]) -> Result:
    """The task, with the files that its images were saved as."""
    document = task.model_dump(mode="json", exclude_unset=True)
    if files:
        document["files"] = [str(file) for file in files]
    marks = [", ".join(image.marks) for image in task.images]
    notes = [f"marks: {'; '.join(dict.fromkeys(marks))}"] if any(marks) else []
    return Result(
        document=document,
        parts=[f"{task.request_id} {task.status}", *map(str, files)],
        names=[task.request_id],
        notes=[*notes, *(f"warning: {warning}" for warning in task.warnings)],
    )


def failure_of(task: Task) -> str:
    """Why there are no images."""
    error = task.error
    if error is None:
        return f"{task.request_id} {task.status}"
    # The message names the field itself.
    what = f": {error.message}" if error.message else ""
    return f"{task.request_id} {task.status}{what}{f' ({error.code})' if error.code else ''}"


def raise_unless_succeeded(*tasks: Task) -> None:
    """Raise `CommandError` when one of these ended without images: 6 when nothing worse than canceling happened."""
    without = [task for task in tasks if not task.succeeded]
    if without:
        canceled = all(task.status == TaskStatus.CANCELED for task in without)
        code = ExitCode.CANCELED if canceled else ExitCode.FAILED
        raise CommandError(code, "\n".join(map(failure_of, without)))
