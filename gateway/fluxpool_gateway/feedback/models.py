"""The bodies of requests for feedback, and of the responses."""

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.messages import (
    MAX_COMMENT_CHARACTERS,
    MAX_FEEDBACK_TAGS,
    MAX_IMAGES,
    MAX_SECONDS,
    AspectScores,
    Preference,
    Rating,
)
from fluxpool_gateway.feedback.figures import Group, Interval
from fluxpool_gateway.http.routes import RequestModel

Rater = Annotated[str, Field(min_length=1, max_length=128)]
_NO_NUL: Final = r"^[^\x00]*$"
"""PostgreSQL has no such text."""
_Score = Annotated[int, Field(strict=True, ge=1, le=5)]
_Index = Annotated[int, Field(strict=True, ge=0, lt=MAX_IMAGES)]


class ScoresOfAspects(RequestModel):
    """Single aspects, each 1 to 5."""

    aesthetic: _Score | None = None
    alignment: _Score | None = None
    """How well the image shows what the prompt says."""
    fidelity: _Score | None = None
    """How real it looks."""


class RatingRequest(RequestModel):
    """What a person says of one image."""

    index: _Index = 0
    """Number of the image."""
    score: _Score | None = None
    """1 to 5."""
    thumb: Literal[-1, 1] | None = None
    """-1 down, 1 up."""
    aspects: ScoresOfAspects | None = None
    artifacts: Annotated[int, Field(strict=True, ge=0, le=5)] | None = None
    """Visible defects: 0 none, 5 the image is spoiled."""
    tags: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64, pattern=_NO_NUL)], ...],
        Field(max_length=MAX_FEEDBACK_TAGS),
    ] = ()
    comment: Annotated[str, Field(min_length=1, max_length=MAX_COMMENT_CHARACTERS, pattern=_NO_NUL)] | None = None
    rater: Rater | None = None
    """Who says so, for the gateway to make a pseudonym of; the holder of the key or token when absent."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_dump(
            include={"score", "thumb", "aspects", "artifacts", "tags", "comment"}, exclude_defaults=True
        ):
            raise ValueError("score: give at least one of score, thumb, aspects, artifacts, tags or comment")
        return self


class RatedBy(BaseModel):
    """Which rating of a task."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    index: Annotated[int, Field(ge=0, lt=MAX_IMAGES)] = 0
    """Number of the image."""
    rater: Rater | None = None
    """As given with the rating."""


class ImageName(RequestModel):
    """An image of a task."""

    request_id: Annotated[str, Field(max_length=128)]
    index: _Index = 0


class PreferredAspects(RequestModel):
    """Single aspects, each a, b, tie or both_bad."""

    aesthetic: Preference | None = None
    alignment: Preference | None = None
    fidelity: Preference | None = None


class ComparisonRequest(RequestModel):
    """Which of two images a person prefers."""

    a: ImageName
    b: ImageName
    """Another image of the same prompt."""
    preferred: Preference
    """a, b, tie or both_bad."""
    aspects: PreferredAspects | None = None
    seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | None = None
    """How long the person took."""
    shown_first: Literal["a", "b"] | None = None
    """Which image was shown first, or on the left."""
    rater: Rater | None = None
    """Who says so, for the gateway to make a pseudonym of; the holder of the key or token when absent."""


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class RatingView(_View):
    """A rating as it counts."""

    rating_id: str
    request_id: str
    index: int
    score: int | None
    thumb: int | None
    aspects: dict[str, int]
    artifacts: int | None
    tags: tuple[str, ...]
    comment: str | None
    created_at: datetime

    @classmethod
    def of(cls, judgement: Rating) -> Self:
        """The view of a record."""
        aspects = {} if judgement.aspects is None else judgement.aspects.model_dump(exclude_none=True, include=_ASPECTS)
        same = {
            name: getattr(judgement, name)
            for name in ("rating_id", "request_id", "score", "thumb", "artifacts", "tags")
        }
        return cls(
            **same,
            index=judgement.image_index,
            aspects=aspects,
            comment=judgement.comment,
            created_at=judgement.created_at,
        )


_ASPECTS: Final = set(AspectScores.model_fields)


class ComparisonView(_View):
    """A comparison as it counts; the image with the smaller id is `a`, whichever was named first."""

    rating_id: str
    a: ImageName
    b: ImageName
    preferred: Preference
    created_at: datetime


class PairImageView(_View):
    """An image to be judged."""

    request_id: str
    index: int
    url: str


class PairView(_View):
    """Two images of one prompt, in the order in which they are to be shown."""

    prompt: str
    a: PairImageView
    b: PairImageView
    shown_first: Literal["a"] = "a"


class IntervalView(_View):
    """A mean or a share."""

    value: float
    low: float
    """It lies above this, and below `high`, with 95 %."""
    high: float

    @classmethod
    def of(cls, interval: Interval | None) -> Self | None:
        """Rounded."""
        if interval is None:
            return None
        return cls(value=round(interval.value, 4), low=round(interval.low, 4), high=round(interval.high, 4))


class GroupView(_View):
    """The judgements of the images with one value."""

    value: str | None
    """Null for images of which it is not known, or that have none."""
    scores: int
    """Ratings with a score."""
    mean_score: IntervalView | None
    """1 to 5."""
    comparisons: int
    """With images of another value."""
    wins: int
    losses: int
    ties: int
    """Also where both were bad."""
    win_rate: IntervalView | None
    """A tie counts half."""

    @classmethod
    def of(cls, group: Group) -> Self:
        """The view of a group."""
        return cls(
            value=group.value,
            scores=group.scores,
            mean_score=IntervalView.of(group.mean_score),
            comparisons=group.compared,
            wins=group.wins,
            losses=group.losses,
            ties=group.ties,
            win_rate=IntervalView.of(group.win_rate),
        )


class SummaryView(_View):
    """Means and win rates."""

    scores: int
    comparisons: int
    model: tuple[GroupView, ...]
    steps: tuple[GroupView, ...]
    preset: tuple[GroupView, ...]
    pool: tuple[GroupView, ...]
