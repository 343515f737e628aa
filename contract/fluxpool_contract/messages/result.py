"""The result: the terminal event of a task, published for failures too."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fluxpool_contract.bounds import (
    MAX_LIST_ITEMS,
    MAX_OBJECT_KEY_BYTES,
    MAX_URL_BYTES,
    Count,
    ErrorMessage,
    Name,
    Offset,
    RecordTime,
)
from fluxpool_contract.messages.task import RequestId
from fluxpool_contract.problems import ErrorClass, ErrorCode


class ResultStatus(StrEnum):
    """How a task ended."""

    SUCCESS = "success"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELED = "canceled"


class Mark(StrEnum):
    """How a file says that a model made its picture."""

    XMP = "xmp"
    """The IPTC's DigitalSourceType in its XMP packet."""
    C2PA = "c2pa"
    """Content credentials: a signed manifest."""


def _check_object_key(key: str) -> str:
    """A result may be forged: its object must not lead out of the store's folder or prefix."""
    if not key.isprintable() or any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError("must be a relative key without empty, . or .. segments and without control characters")
    return key


Url = Annotated[str, Field(max_length=MAX_URL_BYTES)]
ObjectKey = Annotated[str, Field(max_length=MAX_OBJECT_KEY_BYTES), AfterValidator(_check_object_key)]
Milliseconds = Annotated[float, Field(allow_inf_nan=False)]
ImageType = Annotated[str, Field(max_length=64, pattern=r"^image/[a-z0-9.+-]+$")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class ImageDescription(_Message):
    """One stored image."""

    index: Count
    """0-based."""
    url: Url
    """Stable address (gateway or public bucket); never a presigned one, which would expire inside the log."""
    object: ObjectKey
    """Key in the object store, relative to the storage address."""
    width: Count
    """Pixels."""
    height: Count
    """Pixels."""
    seed: Offset
    """Seed of this image."""
    format: Name
    """png, jpeg or webp."""
    content_type: ImageType
    """Media type."""
    bytes: Offset
    """Size of the stored file."""
    sha256: Name
    """Of the stored file, lower-case hex."""
    marks: Annotated[tuple[Mark | Name, ...], Field(max_length=MAX_LIST_ITEMS)] = ()
    """How the file says that a model made it: xmp in every file, c2pa when it is signed. Empty in earlier results."""


class TaskError(_Message):
    """Why there is no image."""

    code: ErrorCode | Name
    """Stable name of the failure."""
    error_class: ErrorClass | Name
    """What kind of failure it is."""
    message: ErrorMessage
    """For people: what was wrong and what would be right. Begins with the field, where there is one. At most 4 KiB."""
    field: Name | None = None
    """The field at fault, where there is one; also named in the message."""
    retryable: bool = False
    """Whether the same request may succeed when it is sent again under another id."""


class GenerationResult(_Message):
    """One record of the results topic. `request_id`, `image_url` and `status` are always there."""

    request_id: RequestId | None
    """Null only when no id could be read from the task."""
    image_url: Url | None
    """Address of the first image; null unless `status` is `success`."""
    status: ResultStatus
    """success, failed, expired or canceled."""
    images: Annotated[tuple[ImageDescription, ...], Field(max_length=MAX_LIST_ITEMS)] = ()
    """Every image, in order; empty unless `status` is `success`."""
    error: TaskError | None = None
    """Why there is no image; null when there is one."""
    seed: Offset | None = None
    """The seed that was used."""
    width: Count | None = None
    """Pixels."""
    height: Count | None = None
    """Pixels."""
    steps: Count | None = None
    """Denoising steps."""
    model: Name | None = None
    """Model and revision that generated the images."""
    quality: Name | None = None
    """exact, or fast: lossy."""
    engine_path: Name | None = None
    """How the worker's engine generated the images: by its fused forward, or by diffusers' modules."""
    model_family: Name | None = None
    """FLUX.1-dev, FLUX.1-Krea-dev, FLUX.1-schnell or tiny."""
    model_license: Name | None = None
    """Licence of the family's published weights: an SPDX identifier, or name, terms and address."""
    attempt: Count | None = None
    """1 for the first attempt."""
    worker: Name | None = None
    """Name of the worker that published the result."""
    pool: Name | None = None
    """The worker's pool."""
    timings: Annotated[dict[str, Milliseconds], Field(max_length=MAX_LIST_ITEMS)] = {}
    """Milliseconds by stage: queue_ms, text_encode_ms, denoise_ms, vae_ms, image_encode_ms, signing_ms, store_ms and,
    with `image`, input_image_ms."""
    warnings: Annotated[tuple[ErrorMessage, ...], Field(max_length=MAX_LIST_ITEMS)] = ()
    """What the caller should know although there is an image."""
    metadata: Annotated[dict[str, str], Field(max_length=MAX_LIST_ITEMS)] = {}
    """The task's own labels."""
    completed_at: RecordTime | None = None
    """When the outcome was decided."""

    def to_json(self) -> bytes:
        """The record's value."""
        return self.model_dump_json().encode()
