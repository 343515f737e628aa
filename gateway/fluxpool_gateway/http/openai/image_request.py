"""A body of `POST /v1/images/generations`: which native request it is, and which of its fields have no effect. Pure.

Owns every field of the OpenAI API: taken, mapped, ignored with a warning, or refused by name. The limits of values are
the native request's own. docs/reference/openai.md has the table, which a test compares.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.bounds import cut_text
from fluxpool_contract.messages import MAX_IMAGES, OutputFormat, Quality
from fluxpool_contract.problems import FieldProblem, summarize
from fluxpool_gateway.http.generation_request import GenerationRequest, parse_request
from fluxpool_gateway.http.problem import ProblemCode, ProblemError

MAX_PARTIAL_IMAGES: Final = 3
END_USER: Final = "end_user"
"""The label of a task that has `safety_identifier`."""
_BAD_REQUEST: Final = ProblemCode.INVALID_REQUEST.status
"""Also where the native API has 422: clients of the OpenAI API know 400 alone."""
_MAX_SHOWN_FIELDS: Final = 20
_MAX_SHOWN_BYTES: Final = 64
_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")


class ResponseFormat(StrEnum):
    """What a response has of each image."""

    B64_JSON = "b64_json"
    """The file and its address."""
    URL = "url"
    """The address alone."""


class ImageQuality(StrEnum):
    """A quality of the OpenAI API, or a native one."""

    AUTO = "auto"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"
    STANDARD = "standard"
    HD = "hd"
    EXACT = "exact"
    FAST = "fast"


_QUALITIES: Final[Mapping[ImageQuality, Quality]] = {
    ImageQuality.LOW: Quality.FAST,
    ImageQuality.HIGH: Quality.EXACT,
    ImageQuality.XHIGH: Quality.EXACT,
    ImageQuality.MAX: Quality.EXACT,
    ImageQuality.HD: Quality.EXACT,
}
"""Of the others but the native ones: the pool's default."""
_NATIVE_QUALITIES: Final = {ImageQuality.EXACT: Quality.EXACT, ImageQuality.FAST: Quality.FAST}


class ImageRequest(BaseModel):
    """A request for images as clients of the OpenAI API send it. Native fields of a task may stand beside these."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True, use_attribute_docstrings=True)

    prompt: str
    """Description of the image."""
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    """How many images; all of them are one task."""
    size: Annotated[str, Field(max_length=_MAX_SHOWN_BYTES)] = "auto"
    """WIDTHxHEIGHT in pixels, multiples of 16; auto is 1024x1024."""
    quality: Annotated[ImageQuality, Field(strict=False)] = ImageQuality.AUTO
    """low is the native fast; high, xhigh, max and hd are exact; the others are the pool's default. The default is used
    as well where FLUXPOOL_QUALITIES does not name the native one. exact and fast are the native ones themselves."""
    output_format: Annotated[OutputFormat, Field(strict=False)] = OutputFormat.PNG
    """png, jpeg or webp."""
    response_format: Annotated[ResponseFormat, Field(strict=False)] = ResponseFormat.B64_JSON
    """b64_json: the file and its address; url: the address alone."""
    stream: bool = False
    """Answer with server-sent events: pings and previews until the task ends, then an event for each image."""
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIAL_IMAGES)] = 0
    """With `stream`: at most so many previews of each image, where the pool makes them."""
    safety_identifier: Annotated[str, Field(max_length=512)] = ""
    """End user; a label `end_user` of the task."""
    user: Annotated[str, Field(max_length=512)] = ""
    """The same, where `safety_identifier` is absent or empty."""
    model: Annotated[str, Field(max_length=256)] = ""
    """No effect: the pools decide which model they run."""
    background: Annotated[str, Field(max_length=_MAX_SHOWN_BYTES)] = "auto"
    """auto or opaque."""
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100
    """100 alone."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, body: Any) -> Any:
        """As the OpenAI API has it, for every field."""
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body

    @property
    def end_user(self) -> str:
        """Empty when none is named."""
        return self.safety_identifier or self.user


@dataclass(frozen=True, slots=True)
class NativeRequest:
    """What an `ImageRequest` means."""

    request: GenerationRequest
    warnings: tuple[str, ...]
    """The fields without effect, and why."""


_NATIVE_FIELDS: Final = frozenset(GenerationRequest.model_fields) | {"num_inference_steps", "guidance_scale"}
_WITHOUT_EFFECT: Final = {
    "style": "describe the style in the prompt",
    "moderation": "prompts are not moderated here",
    "complexity": "there is no planning; steps sets the computation",
}
_REFUSED: Final = {
    "frame_count": "there are no animations; leave it out",
    "frame_duration_ms": "there are no animations; leave it out",
    "svg": "there is no vector output; leave it out and use output_format png, jpeg or webp",
}


def to_native(wanted: ImageRequest, *, qualities: Collection[Quality]) -> NativeRequest:
    """The native request; `qualities` are those that the pools allow, as far as the gateway knows them.

    Raises `ProblemError` (400), which names the field as the client does.
    """
    _check_supported(wanted)
    more = wanted.model_extra or {}
    fields: dict[str, Any] = {name: value for name, value in more.items() if name in _NATIVE_FIELDS}
    warnings = [
        f"{cut_text(name, _MAX_SHOWN_BYTES)} has no effect: {_WITHOUT_EFFECT.get(name, 'it is not a known field')}"
        for name in [name for name in more if name not in _NATIVE_FIELDS][:_MAX_SHOWN_FIELDS]
    ]
    if wanted.stream and wanted.partial_images:
        fields["preview"] = True
    fields |= wanted.model_dump(include={"prompt", "n", "output_format"}, exclude_unset=True, mode="json")
    fields |= _size(wanted, given=fields)
    if wanted.quality in _NATIVE_QUALITIES:
        fields["quality"] = _NATIVE_QUALITIES[wanted.quality]
    elif (quality := _QUALITIES.get(wanted.quality)) in qualities:
        fields["quality"] = quality
    elif quality is not None:
        warnings.append(f"quality {wanted.quality} is the pool's default: the gateway knows of no pool with {quality}")
    if wanted.end_user and isinstance(labels := fields.get("metadata", {}), dict):
        fields["metadata"] = labels | {END_USER: wanted.end_user}
    try:
        return NativeRequest(parse_request(json.dumps(fields).encode()), tuple(warnings))
    except ProblemError as problem:
        raise in_openai_words(problem, wanted) from problem


def in_openai_words(problem: ProblemError, wanted: ImageRequest) -> ProblemError:
    """The refusal of a native request, by the names that this body has, and with 400 for every invalid value."""
    if problem.code not in {ProblemCode.INVALID_REQUEST, ProblemCode.INVALID_SIZE, ProblemCode.UNSUPPORTED_PARAMETER}:
        return problem
    fields = [_renamed(field, wanted) for field in problem.fields]
    detail = summarize(fields) if fields else problem.detail
    return ProblemError(problem.code, detail, fields=fields, headers=problem.headers, status=_BAD_REQUEST)


def _renamed(field: FieldProblem, wanted: ImageRequest) -> FieldProblem:
    if field.field in {"width", "height"} and "size" in wanted.model_fields_set:
        return FieldProblem("size", f"{field.field} {field.message}")
    if field.field == f"metadata.{END_USER}":
        return FieldProblem("safety_identifier" if wanted.safety_identifier else "user", field.message)
    return field


def _size(wanted: ImageRequest, *, given: Mapping[str, Any]) -> dict[str, int]:
    if wanted.size == "auto":
        return {}
    sides = _SIZE.fullmatch(wanted.size)
    if sides is None:
        raise _refused(ProblemCode.INVALID_SIZE, "size", "must be auto, or WIDTHxHEIGHT such as 1536x1024")
    size = {"width": int(sides[1]), "height": int(sides[2])}
    if any(given.get(name, pixels) != pixels for name, pixels in size.items()):
        raise _refused(ProblemCode.INVALID_SIZE, "size", "is not the given width and height; leave out one of both")
    return size


def _check_supported(wanted: ImageRequest) -> None:
    for name, remedy in _REFUSED.items():
        if name in (wanted.model_extra or {}):
            raise _refused(ProblemCode.UNSUPPORTED_PARAMETER, name, f"is not supported: {remedy}")
    if wanted.background not in {"auto", "opaque"}:
        raise _refused(
            ProblemCode.UNSUPPORTED_PARAMETER, "background", "is not supported but for auto and opaque; leave it out"
        )
    if wanted.output_compression != 100:
        raise _refused(
            ProblemCode.UNSUPPORTED_PARAMETER,
            "output_compression",
            "is not supported below 100: the pools set how files are compressed; leave it out",
        )


def _refused(code: ProblemCode, field: str, message: str) -> ProblemError:
    problem = FieldProblem(field, message)
    return ProblemError(code, str(problem), fields=[problem], status=_BAD_REQUEST)
