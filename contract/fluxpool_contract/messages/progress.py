"""Progress of a task while it is in flight; lossy by design: correctness must not depend on it."""

import base64
import binascii
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fluxpool_contract.bounds import Count, Name, RecordTime
from fluxpool_contract.messages.task import RequestId

MAX_PREVIEW_BYTES: Final = 24 * 1024
"""Of the file of a preview."""


def _check_base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("must be base64 (RFC 4648)") from error
    return text


class ProgressType(StrEnum):
    """What happened."""

    STARTED = "started"
    STEP = "step"
    RETRYING = "retrying"
    PREVIEW = "preview"


class Preview(BaseModel):
    """A small picture of an image that is being generated."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    content_type: Annotated[str, Field(pattern=r"^image/(webp|jpeg|png)$")]
    """image/webp; readers accept image/jpeg and image/png, too."""
    data: Annotated[str, Field(max_length=MAX_PREVIEW_BYTES * 4 // 3), AfterValidator(_check_base64)]
    """The file in base64, at most 24 KiB of it."""
    index: Count = 0
    """Number of the image in its task, from 0."""


class ProgressEvent(BaseModel):
    """One record of the progress topic."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    request_id: RequestId
    type: ProgressType | Name
    """Readers treat a type they do not know as "in progress"."""
    attempt: Count = 1
    """1 for the first attempt."""
    step: Count | None = None
    """Denoising steps that are done."""
    total_steps: Count | None = None
    """Denoising steps of all images."""
    preview: Preview | None = None
    """What the image looks like by now; only with `preview`, whose `step` may be before that of an earlier event."""
    worker: Name | None = None
    """Name of the worker."""
    pool: Name | None = None
    """The worker's pool."""
    at: RecordTime
    """When it happened; UTC when it has no zone."""

    def to_json(self) -> bytes:
        """The record's value."""
        return self.model_dump_json(exclude_none=True).encode()
