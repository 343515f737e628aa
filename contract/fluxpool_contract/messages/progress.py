"""Progress of a task while it is in flight; lossy by design: correctness must not depend on it."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import Count, Name, RecordTime
from fluxpool_contract.messages.task import RequestId


class ProgressType(StrEnum):
    """What happened."""

    STARTED = "started"
    STEP = "step"
    RETRYING = "retrying"


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
    worker: Name | None = None
    """Name of the worker."""
    pool: Name | None = None
    """The worker's pool."""
    at: RecordTime
    """When it happened; UTC when it has no zone."""

    def to_json(self) -> bytes:
        """The record's value."""
        return self.model_dump_json(exclude_none=True).encode()
