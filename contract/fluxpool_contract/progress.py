"""Progress of a task while it is worked on; lossy by design, nobody's correctness may hang on it."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class ProgressType(StrEnum):
    """What happened."""

    STARTED = "started"
    STEP = "step"
    RETRYING = "retrying"


class ProgressEvent(BaseModel):
    """One record of the progress topic."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    request_id: str
    type: ProgressType | str
    """Readers treat a type they do not know as "in progress"."""
    attempt: int = 1
    step: int | None = None
    total_steps: int | None = None
    worker: str | None = None
    pool: str | None = None
    at: datetime

    def to_json(self) -> bytes:
        """The record's value."""
        return self.model_dump_json(exclude_none=True).encode()
