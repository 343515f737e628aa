"""Responses about the service rather than a task: the queue, pools, models and usage."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class _Response(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class QueueLane(_Response):
    """One lane, with the tasks of all tenants. Numbers are None while they are not known; `why` says the reason."""

    name: str
    priority: str | None
    """Of the requests that are sent to it; None when none is."""
    waiting: int | None
    """Tasks that no worker has begun."""
    running: int | None
    """Tasks that a worker has begun."""
    workers: int | None
    """Workers that are ready for its tasks."""
    oldest_waiting_seconds: int | None
    """How long the first waiting task has waited at least."""
    completed_per_minute: float | None
    """Tasks that were finished in the last minute."""
    eta_seconds: float | None
    """Until the result of a task that is sent now."""
    why: str
    """What the estimate comes from, and what is missing."""


class Queue(_Response):
    """All lanes."""

    lanes: tuple[QueueLane, ...]
    seconds_per_task: float | None
    """How long a worker took for a task lately."""


class Pool(_Response):
    """The workers of one pool. Numbers are None while they are not known; `problem` says the reason."""

    consumer_group: str
    """Of its first lane."""
    lanes: tuple[str, ...]
    ready: int | None
    """Workers with a loaded model."""
    busy: int | None
    """Those that have a task, or for which one waits."""
    lag: int | None
    """Tasks that are not done."""
    waiting: int | None
    """Those that no worker has begun."""
    completed_per_minute: float | None
    """Tasks that were finished in the last minute."""
    name: str | None = None
    """Of the FluxWorkerPool. This and what follows is None unless its operator publishes it."""
    desired: int | None = None
    """Workers that the operator has asked for."""
    starting: int | None = None
    """Workers that pull their image or load their model."""
    draining: int | None = None
    """Workers that finish their task and end."""
    min: int | None = None
    max: int | None = None
    paused: bool | None = None
    constraint: str | None = None
    """What determined the number of workers, in a word."""
    reason: str | None = None
    """The operator's plan, in sentences."""
    next_ready_in_seconds: int | None = None
    """Until the first of the starting workers is expected to be ready."""
    start_seconds: int | None = None
    """How long workers took to become ready."""
    lag_eta_seconds: int | None = None
    """Until no task is left at the present rate; None while their number does not shrink."""
    model: str | None = None
    """The checkpoint."""
    model_family: str | None = None
    license: str | None = None
    """Of the family's published weights."""
    reported_at: datetime | None = None
    """When the operator decided this."""
    problem: str | None
    """What could not be read."""


class Pools(_Response):
    """All pools that serve the gateway."""

    data: tuple[Pool, ...]
    left_out: str | None
    """What is not known, and where it is."""


class ModelLicense(_Response):
    """The terms of a family's published weights; a fine-tune may have further ones."""

    name: str
    url: str
    commercial: bool
    """Whether they allow commercial use."""


class ModelDefaults(_Response):
    """What a task gets that leaves a field out."""

    steps: int
    guidance: float | None
    """None: `guidance` has no effect."""


class ModelLimits(_Response):
    """What a task may ask for."""

    max_steps: int
    max_prompt_tokens: int
    min_side_pixels: int
    max_side_pixels: int
    side_multiple_pixels: int
    max_images: int
    output_formats: tuple[str, ...]
    qualities: tuple[str, ...]


class Model(_Response):
    """One family of models."""

    id: str
    object: str
    created: int
    """When its weights were published, in seconds since 1970."""
    owned_by: str
    family: str
    """As `model_family` of a task has it."""
    license: ModelLicense
    defaults: ModelDefaults
    limits: ModelLimits
    last_result_at: datetime | None
    """When it made the latest images of the tenant; None when it made none of the last 50."""


class ModelList(_Response):
    """All families."""

    object: str
    data: tuple[Model, ...]


class OutcomeCounts(_Response):
    """Tasks that have ended, by how."""

    succeeded: int
    failed: int
    expired: int
    canceled: int


class Usage(_Response):
    """What tasks used."""

    tasks: OutcomeCounts
    images: int
    megapixels: float
    """Millions of pixels of these images."""
    gpu_seconds: float
    """Of the workers' GPUs."""


class PeriodUsage(_Response):
    """One hour or day."""

    start: datetime
    usage: Usage


class UsageReport(_Response):
    """A time, in whole hours or days; tasks count where they ended."""

    start: datetime
    end: datetime
    by: str
    total: Usage
    data: tuple[PeriodUsage, ...]
    """Every hour or day from `start` to before `end`, also those without tasks."""
