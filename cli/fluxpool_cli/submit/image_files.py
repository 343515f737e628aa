"""Writes the images of a finished task as files; the gateway chooses no name, and no file is overwritten."""

import os
from pathlib import Path
from typing import Final

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.submit.polling import Deadline, patiently
from fluxpool_client import Client, Task

_SHORTEST_SECONDS: Final = 30.0
"""The least time for downloading images, even when the task finished just before --timeout."""


def check_folder(folder: Path) -> None:
    """Make the folder; raises `CommandError` (2) when files cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(
            ExitCode.USAGE, f"--output-dir: {folder} cannot be made ({error.strerror}); name another folder"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CommandError(ExitCode.USAGE, f"--output-dir: {folder} cannot be written to; name another folder")


def save_images(gateway: Client, task: Task, folder: Path, *, deadline: Deadline) -> list[Path]:
    """Write every image into `folder` as `{request_id}-{index}.{extension}` and return the files.

    Raises `CommandError` (1) when a file cannot be written or holds something else.
    """
    patience = Deadline.after(max(_SHORTEST_SECONDS, deadline.remaining_seconds))
    contents = patiently(lambda: gateway.download(task), deadline=patience)
    files = [folder / f"{task.request_id}-{image.index}.{image.extension}" for image in task.images]
    for file, content in zip(files, contents, strict=True):
        write_image(file, content)
    return files


def write_image(file: Path, content: bytes) -> None:
    """Write a file unless it is there already; raises `CommandError` (1) when it cannot be, or holds something else."""
    try:
        with file.open("xb") as target:
            try:
                target.write(content)
                target.flush()
            except BaseException:
                file.unlink(missing_ok=True)
                raise
    except FileExistsError:
        # The same task may be asked for twice, under one --idempotency-key.
        if file.is_file() and file.read_bytes() == content:
            return
        raise CommandError(
            ExitCode.FAILED, f"{file} is there already and holds something else; name another --output-dir"
        ) from None
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{file} cannot be written: {error.strerror}") from None
