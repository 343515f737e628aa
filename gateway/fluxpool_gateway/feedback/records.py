"""A record of the feedback topic as a change of the store. Pure."""

import json
from dataclasses import dataclass

from pydantic import ValidationError

from fluxpool_contract.messages import Comparison, Rating
from fluxpool_contract.problems import explain

PROOF_PREFIX = "feedback:"
"""What the proof of a record's tenant is made of, before its key. No task has such an id, so it proves no task."""


class InvalidFeedbackError(Exception):
    """The record says nothing that can be kept; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackSeen:
    """What a person thinks now of one image or of two; with `judgement` None it is taken back."""

    rating_id: str
    tenant: str
    judgement: Rating | Comparison | None
    at_ms: int
    """When the broker got the record."""


def read_feedback(value: bytes | None, *, key: str, tenant: str, at_ms: int) -> FeedbackSeen:
    """The change; raises `InvalidFeedbackError`."""
    if value is None:
        return FeedbackSeen(rating_id=key, tenant=tenant, judgement=None, at_ms=at_ms)
    try:
        fields = json.loads(value)
        is_comparison = isinstance(fields, dict) and "preferred" in fields
        judgement = (Comparison if is_comparison else Rating).model_validate_json(value)
    except ValidationError as error:
        raise InvalidFeedbackError("; ".join(map(str, explain(error, body=value)))) from error
    except (ValueError, RecursionError) as error:
        raise InvalidFeedbackError("is not JSON") from error
    if _has_nul(fields):
        # PostgreSQL has no such text.
        raise InvalidFeedbackError("must not contain the NUL character")
    if judgement.rating_id != key:
        # The topic is compacted by the key: it would lose another record in this one's place.
        raise InvalidFeedbackError(f"rating_id: is {judgement.rating_id!r}, but the key is {key!r}; both must be equal")
    return FeedbackSeen(
        rating_id=key,
        tenant=tenant,
        judgement=judgement.in_order if isinstance(judgement, Comparison) else judgement,
        at_ms=at_ms,
    )


def _has_nul(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_nul, (*value, *value.values())))
    if isinstance(value, list):
        return any(map(_has_nul, value))
    return isinstance(value, str) and "\x00" in value
