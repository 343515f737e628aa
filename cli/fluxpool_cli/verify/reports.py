"""What one image file says of its origin, and what that is worth.

Owns the verdict of a file and its document; asks no gateway and writes nothing. Anyone may have made a file: its texts
may hold anything.
"""

import hashlib
import stat
import warnings
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from fluxpool_client import Task
from fluxpool_contract.messages import format_time
from fluxpool_worker.image_marks import ContentCredentials, FoundMarks, SignatureState, UnreadableImageError, read_marks
from fluxpool_worker.image_parameters import ImageParametersError, read_parameters
from fluxpool_worker.marks import CLAIM_GENERATOR

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
"""Four times an uncompressed image of the largest size."""


class Verdict(StrEnum):
    """What the marks of a file are worth."""

    MARKED = "marked"
    """It says that a model made it, and no mark is invalid; with given roots: a signer below them says so."""
    NOT_MARKED = "not-marked"
    UNTRUSTED = "untrusted"
    """No signer below the given roots says so."""
    INVALID = "invalid"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """One file."""

    file: str
    verdict: Verdict
    problem: str | None = None
    """Why it is not marked."""
    found: FoundMarks | None = None
    """None when the file cannot be read."""
    parameters: dict[str, Any] | None = None
    """What is embedded of its task."""
    sha256: str | None = None
    is_ours: bool | None = None
    """Whether this installation made it; None when that cannot be told."""
    model: str | None = None
    """Model that made it, as a gateway knows it."""
    model_family: str | None = None
    model_license: str | None = None
    """Licence of the weights that the family's publisher names."""

    def document(self) -> dict[str, Any]:
        """For machines."""
        found = self.found
        return {
            "file": self.file,
            "verdict": self.verdict,
            "problem": self.problem,
            "ours": self.is_ours,
            "format": found and found.format,
            "marks": [] if found is None else list(found.marks),
            "source_type": found and found.source_type,
            "creator_tool": found and found.creator_tool,
            "credentials": _credentials_document(found.credentials) if found and found.credentials else None,
            "parameters": self.parameters,
            "sha256": self.sha256,
            "model": self.model,
            "model_family": self.model_family,
            "model_license": self.model_license,
        }


def _credentials_document(credentials: ContentCredentials) -> dict[str, Any]:
    signed_at = credentials.signed_at
    return {**asdict(credentials), "signed_at": None if signed_at is None else format_time(signed_at)}


def report_on(file: Path, *, anchors: str | None) -> FileReport:
    """The report on one file; `anchors` are the roots that its signer must lead to, in PEM form."""
    try:
        payload = _read(file)
        found = read_marks(payload, anchors=anchors)
    except (UnreadableImageError, OSError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return FileReport(file=str(file), verdict=Verdict.UNREADABLE, problem=reason)
    try:
        # Pillow's remarks about damaged EXIF would be lines of ours.
        with warnings.catch_warnings(action="ignore"):
            parameters = read_parameters(payload)
    except ImageParametersError:
        parameters = None
    verdict, problem = _judge(found, must_be_trusted=anchors is not None)
    credentials = found.credentials
    signed_by_us = (
        credentials is not None
        and credentials.state is SignatureState.TRUSTED
        and credentials.generator == CLAIM_GENERATOR
    )
    return FileReport(
        file=str(file),
        verdict=verdict,
        problem=problem,
        found=found,
        parameters=parameters,
        sha256=hashlib.sha256(payload).hexdigest(),
        is_ours=True if signed_by_us else None,
    )


def with_task(report: FileReport, task: Task | None) -> FileReport:
    """The report with what a gateway knows of the task that the file names; None when it knows no such task."""
    if task is None or report.sha256 not in {image.sha256 for image in task.images}:
        return replace(report, is_ours=bool(report.is_ours))
    return replace(
        report, is_ours=True, model=task.model, model_family=task.model_family, model_license=task.model_license
    )


def _read(file: Path) -> bytes:
    # Without waiting for a writer, when it is a pipe.
    found = file.stat()
    if stat.S_ISDIR(found.st_mode):
        raise UnreadableImageError("is a folder")
    if not stat.S_ISREG(found.st_mode):
        raise UnreadableImageError("is no regular file")
    if found.st_size > MAX_FILE_BYTES:
        raise UnreadableImageError(f"has {found.st_size} bytes; files of more than {MAX_FILE_BYTES} are not read")
    return file.read_bytes()


def _judge(found: FoundMarks, *, must_be_trusted: bool) -> tuple[Verdict, str | None]:
    credentials = found.credentials
    if credentials is not None and credentials.state is SignatureState.INVALID:
        return Verdict.INVALID, f"its signature is not valid: {'; '.join(credentials.problems)}"
    if must_be_trusted and (credentials is None or credentials.state is not SignatureState.TRUSTED):
        return Verdict.UNTRUSTED, "it is not signed" if credentials is None else "its signer is not one of the trusted"
    if not found.says_that_a_model_made_it:
        return Verdict.NOT_MARKED, "nothing in it says that a model made it"
    if credentials is not None and found.source_type is not None and credentials.source_type != found.source_type:
        return Verdict.INVALID, "XMP and the signed manifest name different sources"
    return Verdict.MARKED, None
