"""The state of a pool: what the operator decided last, and the workers it counted; the gateway explains waits with it.

Only Kubernetes knows what starts and what is desired, and a gateway has no rights there.
"""

from functools import partial
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fluxpool_contract.bounds import Count, Name, RecordTime, cut_text

HEARTBEAT_SECONDS: Final = 30.0
"""An operator writes the state again after so long without a change."""
VALID_SECONDS: Final = 120
"""Four heartbeats: after so long without one the operator is away."""
MAX_REASON_BYTES: Final = 1024
MAX_LANES: Final = 8
"""As many as a pool may have."""


class PoolLane(BaseModel):
    """A lane of the pool."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: Name
    topic: Name
    consumer_group: Name


class PoolState(BaseModel):
    """One pool, as its operator observed and planned it."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    namespace: Name
    pool: Name
    lanes: Annotated[tuple[PoolLane, ...], Field(max_length=MAX_LANES)]
    """What its workers serve."""
    desired_replicas: Count
    """Workers that the operator has asked Kubernetes for."""
    ready_replicas: Count
    """Workers with a loaded model."""
    starting_replicas: Count = 0
    """Workers that pull their image or load their model."""
    draining_replicas: Count = 0
    """Workers that finish their task and end."""
    min_replicas: Count
    max_replicas: Count
    paused: bool = False
    """Nothing is scaled."""
    constraint: Name
    """What determined the number: lag, partitions, minimum, maximum, quota, capacity, stale, fallback, hold, rate, idle
    or paused; readers accept other words."""
    reason: Annotated[str, AfterValidator(partial(cut_text, max_bytes=MAX_REASON_BYTES))]
    """The plan in one or two sentences, cut to 1,024 bytes."""
    eta_seconds: Count | None = None
    """Until the lag is zero at the present rate; absent while it does not shrink."""
    start_seconds: Count | None = None
    """How long a worker takes from its creation until it is ready; absent while none was observed."""
    next_ready_at: RecordTime | None = None
    """When the first of the starting workers is expected to be ready."""
    model: Name | None = None
    """The checkpoint of the pool: `spec.model.id`."""
    model_family: Name | None = None
    """Family of the model; absent while it is not known."""
    license: Name | None = None
    """Licence of the family's published weights."""
    decided_at: RecordTime
    valid_seconds: Count = VALID_SECONDS
    """After so long it says nothing of now, because the operator should have written a later one."""

    @property
    def key(self) -> str:
        """Key of the record."""
        return f"{self.namespace}/{self.pool}"

    def to_json(self) -> bytes:
        """The record's value."""
        return self.model_dump_json(exclude_none=True).encode()
