"""The images of a task in the form of the OpenAI API: one response, or one event for each image. Pure."""

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal

from fastapi.sse import format_sse_event
from pydantic import BaseModel, ConfigDict

from fluxpool_contract.messages import GenerationResult, ImageDescription
from fluxpool_gateway.http.openai.image_request import ImageQuality, ImageRequest
from fluxpool_gateway.live.previews import PreviewView

COMPLETED: Final = "image_generation.completed"
PARTIAL: Final = "image_generation.partial_image"
_NATIVE: Final = {ImageQuality.AUTO, ImageQuality.EXACT, ImageQuality.FAST}
"""Qualities that the OpenAI API has no word for in a response."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class _Described(_Model):
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: str | None = None
    """As asked for."""
    size: str
    """WIDTHxHEIGHT in pixels."""
    safety_identifier: str | None = None
    """The end user; absent when the request named none."""
    request_id: str
    """Id of the task. Not in the OpenAI API, like the fields after it."""
    model: str | None = None
    """Model and revision that generated the images."""
    warnings: tuple[str, ...] = ()
    """What had no effect, and what the worker has to say."""


class GeneratedImage(_Model):
    """One image."""

    b64_json: str | None = None
    """The file in base64; absent with `response_format` url."""
    url: str
    """Address of the file; it needs the API key as well."""
    seed: int


class ImagesResponse(_Described):
    """The images of one request."""

    created: int
    """Seconds since 1970 UTC."""
    data: tuple[GeneratedImage, ...]


class CompletedEvent(_Described):
    """One image, as the data of an event."""

    type: Literal["image_generation.completed"] = COMPLETED
    b64_json: str
    url: str
    created_at: int
    """Seconds since 1970 UTC."""
    index: int
    """Number of the image, from 0."""
    seed: int


class PartialImageEvent(_Model):
    """A preview of an image, as the data of an event."""

    type: Literal["image_generation.partial_image"] = PARTIAL
    b64_json: str
    """A small file in `output_format`, whatever that of the image is."""
    partial_image_index: int
    """Number of the preview among those of its image, from 0."""
    created_at: int
    """Seconds since 1970 UTC."""
    background: Literal["opaque"] = "opaque"
    output_format: str
    quality: str
    """As asked for."""
    size: str
    """Of the image, WIDTHxHEIGHT in pixels."""
    request_id: str
    """Id of the task. Not in the OpenAI API, like `index`."""
    index: int
    """Number of the image, from 0."""


@dataclass(slots=True, kw_only=True)
class PartialImages:
    """Chooses at most `wanted.partial_images` previews of each image, spread over its steps."""

    wanted: ImageRequest
    size: str
    _sent: Counter[int] = field(default_factory=Counter, init=False)
    """By image."""

    def event(self, preview: PreviewView, *, now: datetime) -> bytes | None:
        """The event that shows the preview; None when its image has had as many as its steps so far allow."""
        most, number = self.wanted.partial_images, self._sent[preview.index]
        steps_of_image = (preview.total_steps or 0) / self.wanted.n
        done = (preview.step or 0) - preview.index * steps_of_image
        if number >= most or done * (most + 1) < (number + 1) * steps_of_image:
            return None
        self._sent[preview.index] += 1
        event = PartialImageEvent(
            b64_json=preview.data,
            partial_image_index=number,
            created_at=int(now.timestamp()),
            output_format=preview.content_type.removeprefix("image/"),
            quality=ImageQuality.AUTO if self.wanted.quality in _NATIVE else self.wanted.quality,
            size=self.size,
            request_id=preview.request_id,
            index=preview.index,
        )
        return format_sse_event(event=PARTIAL, data_str=event.model_dump_json())


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedImages:
    """A task that succeeded; `files` are those of its images, or empty where only addresses are wanted."""

    wanted: ImageRequest
    warnings: tuple[str, ...]
    request_id: str
    status_url: str
    result: GenerationResult
    files: tuple[bytes, ...]
    now: datetime

    def body(self) -> Iterator[bytes]:
        """The JSON of an `ImagesResponse`, image by image: one can be 16 MB of text."""
        head = ImagesResponse(created=self._at, data=(), **self._described(self.result.images[0]))
        yield head.model_dump_json(exclude_none=True, exclude={"data"}).encode()[:-1] + b',"data":['
        for number, image in enumerate(self.result.images):
            text = base64.b64encode(self.files[number]).decode("ascii") if self.files else None
            shown = GeneratedImage(b64_json=text, url=self._url(image), seed=image.seed)
            yield (b"," if number else b"") + shown.model_dump_json(exclude_none=True).encode()
        yield b"]}"

    def events(self) -> Iterator[bytes]:
        """A `CompletedEvent` for each image, as server-sent events."""
        for image, file in zip(self.result.images, self.files, strict=True):
            event = CompletedEvent(
                b64_json=base64.b64encode(file).decode("ascii"),
                url=self._url(image),
                created_at=self._at,
                index=image.index,
                seed=image.seed,
                **{"quality": ImageQuality.AUTO} | self._described(image),
            )
            yield format_sse_event(event=COMPLETED, data_str=event.model_dump_json(exclude_none=True))

    @property
    def _at(self) -> int:
        return int((self.result.completed_at or self.now).astimezone(UTC).timestamp())

    def _url(self, image: ImageDescription) -> str:
        """As the result has it, unless its worker knew only where the file lies in the store."""
        return image.url if image.url.startswith(("https://", "http://")) else f"{self.status_url}/images/{image.index}"

    def _described(self, image: ImageDescription) -> dict[str, Any]:
        described = {
            "output_format": image.format,
            "size": f"{image.width}x{image.height}",
            "request_id": self.request_id,
            "model": self.result.model,
            "warnings": (*self.warnings, *self.result.warnings),
        }
        if self.wanted.quality not in _NATIVE:
            described["quality"] = self.wanted.quality
        if self.wanted.end_user:
            described["safety_identifier"] = self.wanted.end_user
        return described
