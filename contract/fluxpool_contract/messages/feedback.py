"""Feedback on images: ratings and pairwise comparisons, for preference tuning and the choice of presets.

The topic is compacted: of the records with one key the last one counts, and one without a value takes it back. A record
says by itself how its images were made, because it outlives their tasks.
"""

import hashlib
import uuid
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.bounds import MAX_COUNT, MAX_OBJECT_KEY_BYTES, MAX_URL_BYTES, Count, Name, RecordTime
from fluxpool_contract.messages.task import MAX_PROMPT_CHARACTERS, RequestId

MAX_COMMENT_CHARACTERS: Final = 1000
MAX_FEEDBACK_TAGS: Final = 16
MAX_SECONDS: Final = 86_400.0
"""Of one judgement; a page that was left open says nothing of it."""
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "feedback.fluxpool.dev")


class Preference(StrEnum):
    """Outcome of a comparison."""

    A = "a"
    B = "b"
    TIE = "tie"
    BOTH_BAD = "both_bad"

    @property
    def swapped(self) -> "Preference":
        """The same outcome once a and b have changed places."""
        return {Preference.A: Preference.B, Preference.B: Preference.A}.get(self, self)


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class ImageOrigin(_Part):
    """How an image was made, as far as it was known when it was judged."""

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)] | None = None
    model: Name | None = None
    """Model and revision."""
    pool: Name | None = None
    preset: Name | None = None
    """The preset of the task, if it had one."""
    quality: Name | None = None
    steps: Count | None = None
    """Denoising steps."""
    object: Annotated[str, Field(max_length=MAX_OBJECT_KEY_BYTES)] | None = None
    """Key of the file in the object store."""
    url: Annotated[str, Field(max_length=MAX_URL_BYTES)] | None = None
    """Stable address of the image."""


class _Feedback(_Part):
    rating_id: Annotated[RequestId, Field(description="Key of the record; a later one with the same key replaces it.")]
    tenant: Name = "default"
    rater_hash: str | None = Field(default=None, max_length=128)
    """Stable pseudonym of the person; never a name or an address."""
    created_at: RecordTime


Score = Annotated[int, Field(ge=1, le=5)]


class AspectScores(_Part):
    """Scores of single aspects of an image, 1 to 5."""

    aesthetic: Score | None = None
    alignment: Score | None = None
    """How well it shows what the prompt says."""
    fidelity: Score | None = None
    """How real it looks."""


class Rating(_Feedback):
    """One person's opinion of one image."""

    request_id: RequestId
    image_index: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    score: Score | None = None
    thumb: Annotated[int, Field(ge=-1, le=1)] | None = None
    """-1 down, 1 up, 0 taken back."""
    aspects: AspectScores | None = None
    """aesthetic, alignment and fidelity, each 1 to 5."""
    artifacts: Annotated[int, Field(ge=0, le=5)] | None = None
    """Visible defects: 0 none, 5 it is spoiled."""
    tags: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=MAX_FEEDBACK_TAGS)] = ()
    comment: str | None = Field(default=None, max_length=MAX_COMMENT_CHARACTERS)
    origin: ImageOrigin | None = None
    """How the image was made: prompt, model, pool, preset, quality, steps, object, url."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        scored = any(value is not None for value in (self.score, self.thumb, self.aspects, self.artifacts))
        if not scored and not self.tags and not self.comment:
            raise ValueError("score: give at least one of score, thumb, aspects, artifacts, tags or comment")
        return self

    @property
    def reward(self) -> float | None:
        """What it says as a number from 0 (bad) to 1 (good): by the score, else by the thumb; None without both."""
        if self.score is not None:
            return (self.score - 1) / 4
        return {-1: 0.0, 1: 1.0}.get(self.thumb) if self.thumb is not None else None


class ComparedImage(BaseModel):
    """One side of a comparison."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    request_id: RequestId
    image_index: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    origin: ImageOrigin | None = None
    """How it was made."""

    @property
    def key(self) -> tuple[str, int]:
        """What it is known by, within its tenant."""
        return self.request_id, self.image_index


class AspectPreferences(_Part):
    """Outcomes for single aspects: a, b, tie or both_bad."""

    aesthetic: Preference | None = None
    alignment: Preference | None = None
    fidelity: Preference | None = None

    @property
    def swapped(self) -> "AspectPreferences":
        """The same once a and b have changed places."""
        given = {name: getattr(self, name) for name in AspectPreferences.model_fields}
        return self.model_copy(update={name: value.swapped for name, value in given.items() if value is not None})


class Comparison(_Feedback):
    """Which of two images of the same prompt is better."""

    a: ComparedImage
    b: ComparedImage
    preferred: Preference
    aspects: AspectPreferences | None = None
    """aesthetic, alignment and fidelity, each as `preferred`."""
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    """How long the person took."""
    shown_first: Literal["a", "b"] | None = None
    """Which image was shown first, or on the left: people prefer it a little."""

    @model_validator(mode="after")
    def _two_images(self) -> Self:
        if self.a.key == self.b.key:
            raise ValueError("b: must be another image than a")
        return self

    @property
    def in_order(self) -> "Comparison":
        """The same judgement with the image of the smaller id as `a`: one form for either way to ask."""
        if self.a.key < self.b.key:
            return self
        shown: dict[str | None, str] = {"a": "b", "b": "a"}
        return self.model_copy(
            update={
                "a": self.b,
                "b": self.a,
                "preferred": self.preferred.swapped,
                "aspects": None if self.aspects is None else self.aspects.swapped,
                "shown_first": shown.get(self.shown_first),
            }
        )


def rating_id_of(tenant: str, rater_hash: str, image: tuple[str, int]) -> str:
    """The key of what a person says of an image: a second rating replaces the first."""
    request_id, index = image
    return str(uuid.uuid5(_NAMESPACE, f"rating/{tenant}/{rater_hash}/{request_id}/{index}"))


def comparison_id_of(tenant: str, rater_hash: str, one: tuple[str, int], other: tuple[str, int]) -> str:
    """The key of what a person says of two images, whichever of them is named first."""
    (first, first_index), (second, second_index) = sorted((one, other))
    pair = f"{first}/{first_index}/{second}/{second_index}"
    return str(uuid.uuid5(_NAMESPACE, f"comparison/{tenant}/{rater_hash}/{pair}"))


def prompt_key(prompt: str) -> str:
    """What texts of the same prompt have in common, for a column: 32 hexadecimal digits."""
    return hashlib.sha256(" ".join(prompt.split()).encode(errors="replace")).hexdigest()[:32]
