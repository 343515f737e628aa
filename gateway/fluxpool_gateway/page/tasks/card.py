"""A task as the page shows it: in words, with what was asked for, and its time as a waterfall. Pure."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fluxpool_gateway.store.task_state import TaskState, TaskStatus
from fluxpool_gateway.tasks.lookup import RecentTask
from fluxpool_gateway.tasks.view import TaskView

STATUS_WORDS: Final = {
    TaskStatus.QUEUED: "Waiting",
    TaskStatus.RUNNING: "Running",
    TaskStatus.SUCCEEDED: "Succeeded",
    TaskStatus.FAILED: "Failed",
    TaskStatus.EXPIRED: "Expired",
    TaskStatus.CANCELED: "Canceled",
}
_SHOWN_PARAMETERS: Final = (
    ("negative_prompt", "Negative prompt"),
    ("steps", "Steps"),
    ("guidance", "Guidance"),
    ("true_cfg_scale", "True CFG scale"),
    ("n", "Images"),
    ("output_format", "Format"),
    ("quality", "Quality"),
    ("strength", "Strength"),
    ("image", "Start picture"),
)
_STAGES: Final = (
    ("input_image_ms", "Start picture"),
    ("text_encode_ms", "Encode"),
    ("denoise_ms", "Steps"),
    ("vae_ms", "VAE"),
    ("image_encode_ms", "Image file"),
    ("signing_ms", "Signed"),
    ("store_ms", "Stored"),
)
"""In the order in which a worker does them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One stage of a waterfall; times in seconds since the task was accepted."""

    name: str
    begin_seconds: float
    seconds: float | None
    """None for a moment."""
    begin_share: float
    """Of the whole, 0 to 1000, as is the next."""
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCard:
    """One task of the caller's tenant."""

    view: TaskView
    request: Mapping[str, Any]
    """As sent; empty while it is not projected, or when only its result is known."""
    retriable: bool
    """Whether it has ended and its request is still stored."""

    @property
    def request_id(self) -> str:
        """Its id."""
        return self.view.request_id

    @property
    def word(self) -> str:
        """Its status."""
        return STATUS_WORDS[self.view.status]

    @property
    def prompt(self) -> str:
        """What was asked for."""
        prompt = self.request.get("prompt")
        return prompt if isinstance(prompt, str) else ""

    @property
    def size(self) -> str:
        """Width and height in pixels."""
        return f"{self.request.get('width', 1024)} \N{MULTIPLICATION SIGN} {self.request.get('height', 1024)}"

    @property
    def begun(self) -> str:
        """What a running task waits for between its start and its first step, and after its last one."""
        progress = self.view.progress
        if progress is None:
            return "a worker has begun it"
        return f"step {progress.step} of {progress.total_steps}"

    @property
    def place(self) -> str:
        """Its place in the queue, in words."""
        queue = self.view.queue
        if queue is None or queue.position is None:
            return "place not known"
        return "next" if queue.position == 0 else f"{queue.position} before it"

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """What was asked for beyond the prompt, by name."""
        shown = [("Size", self.size)]
        shown += [(title, str(self.request[name])) for name, title in _SHOWN_PARAMETERS if name in self.request]
        loras = self.request.get("loras")
        if isinstance(loras, list):
            shown += [("LoRA", f"{lora.get('name')} at {lora.get('scale', 1.0)}") for lora in loras if is_object(lora)]
        return shown

    @property
    def waterfall(self) -> list[Bar]:
        """The stages of a task that has ended, from its acceptance to its result."""
        return [*_waterfall(self.view)]


def is_object(value: object) -> bool:
    """Whether a JSON value has fields; any producer may write a task."""
    return isinstance(value, dict)


def card_of(found: TaskState | RecentTask, view: TaskView) -> TaskCard:
    """The card of a task."""
    if isinstance(found, RecentTask) or found.body is None:
        return TaskCard(view=view, request={}, retriable=False)
    request = json.loads(found.body)
    return TaskCard(view=view, request=request if is_object(request) else {}, retriable=found.status.terminal)


def _waterfall(view: TaskView) -> Iterator[Bar]:
    timings = view.timings
    if view.created_at is None or view.completed_at is None or not timings:
        return
    stages = [("Queued", max(0.0, timings.get("queue_ms", 0.0)) / 1000)]
    stages += [(title, max(0.0, timings[name]) / 1000) for name, title in _STAGES if name in timings]
    published_at = max(0.0, (view.completed_at - view.created_at).total_seconds())
    whole = max(published_at, sum(seconds for _, seconds in stages), 0.001)
    yield Bar(name="Accepted", begin_seconds=0.0, seconds=None, begin_share=0.0, share=0.0)
    at = 0.0
    for name, seconds in stages:
        yield Bar(
            name=name, begin_seconds=at, seconds=seconds, begin_share=1000 * at / whole, share=1000 * seconds / whole
        )
        at += seconds
    yield Bar(
        name="Published", begin_seconds=published_at, seconds=None, begin_share=1000 * published_at / whole, share=0.0
    )
