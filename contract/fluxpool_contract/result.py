"""The result: the one terminal answer to a task, published for failures too."""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from fluxpool_contract.problems import ErrorClass, ErrorCode


class ResultStatus(StrEnum):
    """How a task ended."""

    SUCCESS = "success"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class ImageDescription(_Message):
    """One stored image."""

    index: int
    """0-based."""
    url: str
    """Stable address (gateway or public bucket); never a presigned one, which would expire inside the log."""
    object: str
    """Key in the object store, relative to the storage address."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    seed: int
    """Seed of this image."""
    format: str
    """png, jpeg or webp."""
    content_type: str
    """Media type."""
    bytes: int
    """Size of the stored file."""
    sha256: str
    """Of the stored file, lower-case hex."""


class TaskError(_Message):
    """Why there is no image."""

    code: ErrorCode | str
    """Stable name of the failure."""
    error_class: ErrorClass | str
    """What kind of failure it is."""
    message: str
    """For people: what was wrong and what would be right."""
    field: str | None = None
    """The field at fault, where there is one."""
    retryable: bool = False
    """Whether the same request may succeed when it is sent again under another id."""


class GenerationResult(_Message):
    """One record of the results topic. `request_id`, `image_url` and `status` are always there."""

    request_id: str | None
    """Null only when no id could be read from the task."""
    image_url: str | None
    """Address of the first image; null unless `status` is `success`."""
    status: ResultStatus
    """success, failed, expired or canceled."""
    images: tuple[ImageDescription, ...] = ()
    """Every image, in order; empty unless `status` is `success`."""
    error: TaskError | None = None
    """Why there is no image; null when there is one."""
    seed: int | None = None
    """The seed that was used."""
    width: int | None = None
    """Pixels."""
    height: int | None = None
    """Pixels."""
    steps: int | None = None
    """Denoising steps."""
    model: str | None = None
    """Model and revision that drew the images."""
    attempt: int | None = None
    """1 for the first attempt."""
    worker: str | None = None
    """Who answered."""
    pool: str | None = None
    """The worker's pool."""
    timings: dict[str, float] = {}
    """Milliseconds by stage: queue_ms, text_encode_ms, denoise_ms, vae_ms, image_encode_ms, store_ms."""
    warnings: tuple[str, ...] = ()
    """What the caller should know although there is an image."""
    metadata: dict[str, str] = {}
    """The task's own labels."""
    completed_at: datetime | None = None
    """When the outcome was decided."""

    def to_json(self) -> bytes:
        """The record's value."""
        return self.model_dump_json().encode()
