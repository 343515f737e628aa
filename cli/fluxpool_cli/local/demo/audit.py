"""Compares the results, image files and offsets of a demo with what was submitted.

Owns the counts and the problems; sends and changes nothing.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxpool_contract.messages import GenerationResult, ResultStatus
from fluxpool_worker.image_parameters import ImageParametersError, read_parameters

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".webp"})


@dataclass(slots=True, kw_only=True)
class Audit:
    """The counts; `problems` is empty when all are as expected."""

    images: int = 0
    """Image files of the submitted tasks."""
    succeeded: int = 0
    """Submitted tasks with a result of success."""
    lost: int = 0
    """Submitted tasks without any result, or whose successful result has no image file."""
    doubled: int = 0
    """Different results and image files beyond the first of a task."""
    problems: list[str] = field(default_factory=list)

    def line(self, *, seconds: float) -> str:
        """The demo's last line."""
        return (
            f"demo: {self.images} images, {self.succeeded} results success, {self.lost} lost, "
            f"{self.doubled} doubled, {seconds:.0f} s"
        )


def audit(
    submitted: Mapping[str, Mapping[str, Any]],
    *,
    results: Sequence[GenerationResult],
    image_folder: Path,
    lag_records: Mapping[str, int],
) -> Audit:
    """Compare the submitted tasks (by `request_id`) with results (repeats dropped), files and each group's lag."""
    found = Audit()
    by_id: dict[str, list[GenerationResult]] = {request_id: [] for request_id in submitted}
    for result in results:
        if result.request_id in by_id:
            by_id[result.request_id].append(result)
    files = _images_by_task(image_folder)
    for request_id, body in submitted.items():
        _judge(request_id, body, by_id[request_id], files.get(request_id, []), image_folder=image_folder, found=found)
    for group, records in lag_records.items():
        if records:
            found.problems.append(f"group {group} has a lag of {records}")
    return found


def _images_by_task(folder: Path) -> dict[str, list[Path]]:
    """Image files by the folder they lie in, which is named after the task."""
    by_task: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix in IMAGE_SUFFIXES:
            by_task.setdefault(file.parent.name.partition("~")[0], []).append(file)
    return by_task


def _judge(
    request_id: str,
    body: Mapping[str, Any],
    results: Sequence[GenerationResult],
    files: Sequence[Path],
    *,
    image_folder: Path,
    found: Audit,
) -> None:
    found.images += len(files)
    if not results:
        found.lost += 1
        found.problems.append(f"{request_id} has no result")
        return
    found.doubled += len(results) - 1
    if len(results) > 1:
        found.problems.append(f"{request_id} has {len(results)} results")
    result = results[-1]
    found.succeeded += result.status is ResultStatus.SUCCESS
    if result.status is not ResultStatus.SUCCESS:
        why = f": {result.error.message}" if result.error else ""
        found.problems.append(f"{request_id} {result.status}{why}")
        return
    expected = body.get("n", 1)
    if len(files) > expected:
        found.doubled += len(files) - expected
        found.problems.append(f"{request_id} has {len(files)} image files instead of {expected}")
    if len(files) < expected:
        found.lost += 1
        found.problems.append(f"{request_id} succeeded, but {expected - len(files)} of its image files are missing")
    for image in result.images:
        file = image_folder / image.object
        if not file.is_file():
            found.problems.append(f"{request_id}: there is no file {file}")
            continue
        found.problems += [f"{file}: {problem}" for problem in _differences(file, body, request_id, image.sha256)]


def _differences(file: Path, body: Mapping[str, Any], request_id: str, sha256: str) -> list[str]:
    payload = file.read_bytes()
    problems = []
    if hashlib.sha256(payload).hexdigest() != sha256:
        problems.append("its content differs from the result (sha256)")
    try:
        embedded = read_parameters(payload)
    except ImageParametersError as error:
        return [*problems, str(error)]
    asked = {**body, "request_id": request_id}
    return problems + [
        f"{name} is {embedded.get(name)!r} in the image, but {asked[name]!r} was submitted"
        for name in ("request_id", "prompt", "width", "height", "steps", "seed")
        if name in asked and embedded.get(name) != asked[name]
    ]


def status_counts(results: Sequence[GenerationResult], submitted: Mapping[str, Any]) -> Counter[str]:
    """How the submitted tasks ended so far."""
    return Counter(
        {result.request_id: result.status.value for result in results if result.request_id in submitted}.values()
    )
