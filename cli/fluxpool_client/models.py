"""The gateway's responses, as its OpenAPI document has them. Fields that this release does not know are kept."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field

from fluxpool_contract.messages import OutputFormat, check_request_id


class TaskStatus(StrEnum):
    """The state of a task."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"


class CancelOutcome(StrEnum):
    """What a request to cancel did."""

    REQUESTED = "requested"
    ENDED = "ended"
    RUNNING = "running"


_ENDS: Final = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.EXPIRED, TaskStatus.CANCELED})
# From left to right: else pydantic takes any text as it is.
Status = Annotated[TaskStatus | str, Field(union_mode="left_to_right")]
# It becomes part of paths and of file names.
RequestId = Annotated[str, AfterValidator(check_request_id)]
Outcome = Annotated[CancelOutcome | str, Field(union_mode="left_to_right")]


class _Response(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class Progress(_Response):
    """How far a running task is."""

    step: int
    total_steps: int
    percent: int


class QueuePlace(_Response):
    """The place of a task that waits: an estimate, by the workers and their speed as they are now."""

    position: int | None
    """Waiting tasks that are likely to begin before it, 0 for the next one; None when that is not known."""
    eta_seconds: float | None
    """Until its result; None when that is not known."""
    why: str
    """What the numbers come from, and what is missing."""


class Image(_Response):
    """One finished image."""

    index: int
    url: str
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    seed: int
    format: str
    content_type: str
    bytes: int
    """Size of the file."""
    sha256: str
    marks: tuple[str, ...] = ()
    """How the file says that a model made it."""

    @property
    def extension(self) -> str:
        """File name extension, without the dot; `img` for a format that this release does not know."""
        return OutputFormat(self.format).extension if self.format in set(OutputFormat) else "img"


class TaskFailure(_Response):
    """Why there is no image."""

    code: str
    message: str
    field: str | None = None
    retryable: bool = False


class AcceptedTask(_Response):
    """A task that is durably queued."""

    request_id: RequestId
    status: Status
    status_url: str


class Preview(_Response):
    """What an image of a task looks like while it is generated."""

    index: int = 0
    """Number of the image, from 0."""
    step: int | None = None
    """After which of all steps."""
    content_type: str
    data: Annotated[Base64Bytes, Field(repr=False)]
    """The file."""


class Task(_Response):
    """The state of a task."""

    request_id: RequestId
    status: Status
    status_url: str
    progress: Progress | None = None
    """While the task is running and its worker reports progress."""
    queue: QueuePlace | None = None
    """While the task is queued."""
    images: tuple[Image, ...] = ()
    image_url: str | None = None
    """Address of the first image."""
    error: TaskFailure | None = None
    attempts: int = 1
    priority: str | None = None
    seed: int | None = None
    """The seed that was used; null until the task succeeded."""
    model: str | None = None
    model_family: str | None = None
    model_license: str | None = None
    warnings: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    group_id: str | None = None
    parent_id: str | None = None
    """The task that this one is a retry of."""
    preset: str | None = None
    """The preset whose parameters it has."""
    preset_reason: str | None = None
    preset_probability: float | None = None
    """Of the gateway's choice; None when the preset was asked for by its name."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    timings: dict[str, float] = {}
    """Milliseconds by stage."""

    @property
    def ended(self) -> bool:
        """Whether nothing more becomes of it."""
        return self.status in _ENDS

    @property
    def succeeded(self) -> bool:
        """Whether its images are there."""
        return self.status == TaskStatus.SUCCEEDED


class PreviewedTask(Task):
    """The state of a task from before, and a preview that came since."""

    preview: Preview


class TaskPage(_Response):
    """Some tasks of a list; it can have fewer than asked for, or none, and still have a next one."""

    data: tuple[Task, ...]
    has_more: bool
    next_cursor: str | None


class Group(_Response):
    """How far the tasks of a group are."""

    group_id: str
    total: int
    counts: dict[str, int]
    """Tasks by status."""
    ended: bool
    """Whether none of them is queued or running."""
    eta_seconds: float | None = None
    """Until the last of them has ended; None when that is not known, or nothing waits."""
    why: str | None = None
    """Where the estimate comes from."""
    first_created_at: datetime
    last_created_at: datetime
    tasks_url: str


class CanceledTask(_Response):
    """What a request to cancel did to one task."""

    request_id: str
    outcome: Outcome | None
    """None for an id that is not known."""
    status: Status | None
    status_url: str | None


class CanceledTasks(_Response):
    """What a request to cancel did to some tasks."""

    data: tuple[CanceledTask, ...]
    has_more: bool
    next_cursor: str | None


class Rating(_Response):
    """What a person says of one image."""

    rating_id: str
    request_id: str
    index: int
    score: int | None = None
    thumb: int | None = None
    aspects: dict[str, int] = {}
    artifacts: int | None = None
    tags: tuple[str, ...] = ()
    comment: str | None = None
    created_at: datetime


class ImageName(_Response):
    """An image of a task."""

    request_id: RequestId
    index: int
    url: str | None = None


class Comparison(_Response):
    """Which of two images a person prefers; `a` is the one with the smaller id, whichever was named first."""

    rating_id: str
    a: ImageName
    b: ImageName
    preferred: str
    created_at: datetime


class ImagePair(_Response):
    """Two images of one prompt to be judged; `a` is to be shown first."""

    prompt: str
    a: ImageName
    b: ImageName


class Interval(_Response):
    """A mean or a share, which lies between `low` and `high` with 95 %."""

    value: float
    low: float
    high: float


class FeedbackGroup(_Response):
    """What was said of the images with one value of a dimension."""

    value: str | None
    scores: int
    mean_score: Interval | None
    comparisons: int
    wins: int
    losses: int
    ties: int
    win_rate: Interval | None


class FeedbackSummary(_Response):
    """Mean scores and win rates, by each dimension."""

    scores: int
    comparisons: int
    model: tuple[FeedbackGroup, ...]
    steps: tuple[FeedbackGroup, ...]
    preset: tuple[FeedbackGroup, ...]
    pool: tuple[FeedbackGroup, ...]


class ApiKey(_Response):
    """What is known of an API key; not the key."""

    id: str
    name: str
    tenant: str
    scopes: tuple[str, ...]
    priorities: tuple[str, ...]
    qualities: tuple[str, ...] | None
    """None: all."""
    loras: tuple[str, ...] | None
    """None: all."""
    presets: tuple[str, ...] | None = None
    """None: all."""
    models: tuple[str, ...] | None = None
    """None: all."""
    submit_limit: str | None = None
    """Tasks that may be submitted with it in a time, as 5/second; None: as many as its tenant may."""
    state: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To some minutes."""
    replaced_by: str | None
    """Id of the key that a rotation made."""


class NewApiKey(ApiKey):
    """A key that was just created."""

    key: str
    """The key itself, which is not shown again."""


class ApiKeyPage(_Response):
    """Some keys, by their ids."""

    keys: tuple[ApiKey, ...]
    next: str | None


class ErrorMember(_Response):
    """The error as clients of the OpenAI API read it."""

    message: str
    type: str
    param: str | None
    code: str
    request_id: str = ""


class FieldError(_Response):
    """One field and what is wrong with it."""

    pointer: str
    """JSON pointer, as `#/width`."""
    detail: str


class RefusedWait(_Response):
    """The wait that a request does not accept."""

    limit: str
    """The field of the request that limits it."""
    position: int | None
    """Tasks that are likely to begin before it."""
    starts_in_seconds: float | None
    """Until a worker would begin it."""
    eta_seconds: float | None
    """Until its result."""
    why: str
    """What the estimate comes from."""


class ProblemDocument(_Response):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str = ""
    correlation_id: str
    request_id: str = ""
    """Of the task that was waited for."""
    wait: RefusedWait | None = None
    """Of a request that would wait longer than it allows."""
    errors: tuple[FieldError, ...] = ()
    error: ErrorMember


class BatchItem(_Response):
    """What became of one request of a batch."""

    code: int
    """As the status of a submission of its own would be: 202, or that of `error`."""
    request_id: str | None = None
    """Of the queued task."""
    status_url: str | None = None
    queue_position: int | None = None
    """Of a request that limits its wait: tasks that are likely to begin before it."""
    eta_seconds: int | None = None
    """Of such a request: until its result."""
    error: ErrorMember | None = None
    """Why there is no task; with 503 that is unknown."""
    wait: RefusedWait | None = None
    """The wait that the request does not accept."""
    errors: tuple[FieldError, ...] = ()
    """Each field at fault."""


class BatchOutcome(_Response):
    """What became of each request of a batch, in their order."""

    items: tuple[BatchItem, ...]
    accepted: int
