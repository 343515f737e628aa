"""Commands to every worker at once, on the compacted control topic."""

from pydantic import BaseModel, ConfigDict, Field

from fluxpool_contract.bounds import RecordTime
from fluxpool_contract.messages.task import RequestId


class CancelCommand(BaseModel):
    """Stop this task wherever it is; a command for an unknown id is kept, so that canceling before arrival works."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    request_id: RequestId
    requested_by: str | None = Field(default=None, max_length=256)
    reason: str | None = Field(default=None, max_length=1000)
    waiting_only: bool = False
    """Leave the task alone where an engine has begun it. Workers of release 0.1 cancel it all the same."""
    at: RecordTime
    """UTC when it has no zone."""
