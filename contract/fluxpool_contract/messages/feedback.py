"""Feedback on images: ratings and pairwise comparisons, for preference tuning."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.bounds import MAX_COUNT, Name, RecordTime
from fluxpool_contract.messages.task import RequestId


class Preference(StrEnum):
    """Outcome of a comparison."""

    A = "a"
    B = "b"
    TIE = "tie"
    BOTH_BAD = "both_bad"


class _Feedback(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    rating_id: Annotated[RequestId, Field(description="Key of the record; a later one with the same key replaces it.")]
    tenant: Name = "default"
    rater_hash: str | None = Field(default=None, max_length=128)
    """Stable pseudonym of the person; never a name or an address."""
    created_at: RecordTime


class Rating(_Feedback):
    """One person's opinion of one image."""

    request_id: RequestId
    image_index: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0
    score: Annotated[int, Field(ge=1, le=5)] | None = None
    thumb: Annotated[int, Field(ge=-1, le=1)] | None = None
    """-1 down, 1 up, 0 taken back."""
    tags: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=16)] = ()
    comment: str | None = Field(default=None, max_length=1000)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.score is None and self.thumb is None and not self.tags and not self.comment:
            raise ValueError("score: give at least one of score, thumb, tags or comment")
        return self


class ComparedImage(BaseModel):
    """One side of a comparison."""

    model_config = ConfigDict(extra="allow", frozen=True)

    request_id: RequestId
    image_index: Annotated[int, Field(ge=0, le=MAX_COUNT)] = 0


class Comparison(_Feedback):
    """Which of two images of the same prompt is better."""

    a: ComparedImage
    b: ComparedImage
    preferred: Preference

    @model_validator(mode="after")
    def _two_images(self) -> Self:
        if self.a == self.b:
            raise ValueError("b: must be another image than a")
        return self
