"""The fields of requests. The gateway checks their values, so that an older client does not refuse what it takes."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal, NotRequired, Required, TypedDict


class LoraFields(TypedDict):
    """A LoRA of the pool, and how strongly it acts."""

    name: str
    scale: NotRequired[float]


class TaskWebhookFields(TypedDict):
    """Where the end of a task is posted to."""

    url: str
    events: NotRequired[Sequence[str]]
    """Which ends, as generation.failed; without any, every one."""


class OptionalFields(TypedDict, total=False):
    """Fields of a request for images beside its prompt, as docs/reference/messages.md has them."""

    negative_prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance: float
    true_cfg_scale: float
    n: int
    loras: Sequence[LoraFields]
    image: str
    strength: float
    output_format: Literal["png", "jpeg", "webp"]
    quality: Literal["exact", "fast"]
    embed_parameters: Literal["all", "noPrompt", "none"]
    preview: bool
    group_id: str
    metadata: Mapping[str, str]
    priority: Literal["standard", "vip"]
    max_queue_position: int
    start_within_s: int
    deadline_s: int
    preset: str
    """Name of one of the gateway's presets, or auto."""
    webhook: TaskWebhookFields


class BatchFields(OptionalFields, total=False):
    """One request of a batch."""

    prompt: Required[str]
    idempotency_key: str
    """A repeat with the same key is the same task; the client makes one where there is none."""


class ListFields(TypedDict, total=False):
    """Which tasks to list."""

    status: Sequence[str]
    group_id: str
    created_after: datetime
    created_before: datetime
    order: Literal["asc", "desc"]
    limit: int
    prompt: str
    """Words that the prompt contains."""
    seed: int
    size: str
    """Such as 1024x768."""
    model: str
    preset: str
    min_score: int
    starred: bool


class KeyFields(TypedDict, total=False):
    """What an API key allows beside its scopes."""

    tenant: str
    expires_in_seconds: int
    """Without it, it does not expire."""
    priorities: Sequence[str]
    qualities: Sequence[str]
    loras: Sequence[str]
    presets: Sequence[str]
    models: Sequence[str]
    submit_limit: str
    """Tasks in a time, as 5/second; without it, as many as its tenant may submit."""


class CancelFields(TypedDict, total=False):
    """Which tasks to cancel: give either `request_ids`, or a filter, or `all`."""

    request_ids: Sequence[str]
    group_id: str
    created_after: datetime
    created_before: datetime
    all: bool
    waiting_only: bool
    reason: str


class RatingFields(TypedDict, total=False):
    """What a person says of one image; at least one of the first six."""

    score: int
    thumb: Literal[-1, 1]
    aspects: Mapping[str, int]
    """aesthetic, alignment and fidelity, each 1 to 5."""
    artifacts: int
    tags: Sequence[str]
    comment: str
    index: int
    """Number of the image."""
    rater: str


class ComparisonFields(TypedDict, total=False):
    """What a person says of two images beside which one is preferred."""

    aspects: Mapping[str, str]
    """aesthetic, alignment and fidelity, each a, b, tie or both_bad."""
    seconds: float
    shown_first: Literal["a", "b"]
    rater: str


class ExportFields(TypedDict, total=False):
    """What to export of feedback, and how."""

    format: Literal["jsonl", "parquet"]
    layout: Literal["pickapic", "hpd", "imagereward"]
    ties: bool
    images: bool
