"""Comparisons and ratings as the rows of public data sets, which trainers read. Pure.

- Pick-a-Pic (yuvalkirstain/pickapic_v2): pairs. `label_0 == 1` says that image 0 won, as the DPO trainers of
  diffusers read it.
- HPD (Human Preference Dataset v2): pairs, the preferred one marked by 1 in `human_preference`.
- ImageRewardDB: single images with scores, and their rank among those that the person rated for the prompt.

A pair without a winner has no place in the first two but as a tie of Pick-a-Pic, whose labels then are 0.5.
"""

import base64
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from fluxpool_contract.messages import ComparedImage, Comparison, Preference, Rating, prompt_key

_TIE: Final = "tie"
"""`best_image_uid` of one, as the data set has it."""


class Layout(StrEnum):
    """The data set whose columns an export has."""

    PICKAPIC = "pickapic"
    HPD = "hpd"
    IMAGEREWARD = "imagereward"


class Kind(StrEnum):
    """What a column has."""

    TEXT = "text"
    TEXTS = "texts"
    NUMBER = "number"
    WHOLE = "whole"
    WHOLES = "wholes"
    FLAG = "flag"
    TIME = "time"
    FILE = "file"


COLUMNS: Final[dict[Layout, dict[str, Kind]]] = {
    Layout.PICKAPIC: {
        "jpg_0": Kind.FILE,
        "jpg_1": Kind.FILE,
        "label_0": Kind.NUMBER,
        "label_1": Kind.NUMBER,
        "caption": Kind.TEXT,
        "are_different": Kind.FLAG,
        "has_label": Kind.FLAG,
        "best_image_uid": Kind.TEXT,
        "image_0_uid": Kind.TEXT,
        "image_1_uid": Kind.TEXT,
        "model_0": Kind.TEXT,
        "model_1": Kind.TEXT,
        "ranking_id": Kind.TEXT,
        "user_id": Kind.TEXT,
        "created_at": Kind.TIME,
    },
    Layout.HPD: {
        "prompt": Kind.TEXT,
        "file_path": Kind.TEXTS,
        "human_preference": Kind.WHOLES,
        "user_hash": Kind.TEXT,
    },
    Layout.IMAGEREWARD: {
        "prompt_id": Kind.TEXT,
        "prompt": Kind.TEXT,
        "image_path": Kind.TEXT,
        "rank": Kind.WHOLE,
        "overall_rating": Kind.WHOLE,
        "image_text_alignment_rating": Kind.WHOLE,
        "fidelity_rating": Kind.WHOLE,
    },
}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a pair; None for one that is not stored any more, or not asked for."""

    a: bytes | None = None
    b: bytes | None = None


def pickapic_row(judgement: Comparison, files: Files) -> Row:
    """A comparison; `a` is image 0."""
    label_0 = {Preference.A: 1.0, Preference.B: 0.0}.get(judgement.preferred, 0.5)
    best = {Preference.A: _uid(judgement.a), Preference.B: _uid(judgement.b)}.get(judgement.preferred, _TIE)
    return {
        "jpg_0": files.a,
        "jpg_1": files.b,
        "label_0": label_0,
        "label_1": 1 - label_0,
        "caption": _prompt(judgement),
        "are_different": files.a is None or files.a != files.b,
        "has_label": True,
        "best_image_uid": best,
        "image_0_uid": _uid(judgement.a),
        "image_1_uid": _uid(judgement.b),
        "model_0": _model(judgement.a),
        "model_1": _model(judgement.b),
        "ranking_id": judgement.rating_id,
        "user_id": judgement.rater_hash or "",
        "created_at": judgement.created_at,
    }


def hpd_row(judgement: Comparison) -> Row:
    """A comparison that one image won."""
    won = judgement.preferred is Preference.A
    return {
        "prompt": _prompt(judgement),
        "file_path": [_path(judgement.a), _path(judgement.b)],
        "human_preference": [int(won), int(not won)],
        "user_hash": judgement.rater_hash or "",
    }


def imagereward_row(judgement: Rating, *, rank: int) -> Row:
    """A rating with a score; rank 1 is the best of its prompt, for the person."""
    origin, aspects = judgement.origin, judgement.aspects
    prompt = "" if origin is None or origin.prompt is None else origin.prompt
    path = None if origin is None else origin.object
    return {
        "prompt_id": prompt_key(prompt),
        "prompt": prompt,
        "image_path": path or f"{judgement.request_id}/{judgement.image_index}",
        "rank": rank,
        "overall_rating": judgement.score,
        "image_text_alignment_rating": None if aspects is None else aspects.alignment,
        "fidelity_rating": None if aspects is None else aspects.fidelity,
    }


def has_winner(judgement: Comparison) -> bool:
    """Whether one image was preferred."""
    return judgement.preferred in {Preference.A, Preference.B}


def to_json(row: Row) -> Row:
    """The row with values that JSON has: files in base64, times in RFC 3339."""
    return {name: _json(value) for name, value in row.items()}


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if isinstance(value, datetime) else value


def _uid(image: ComparedImage) -> str:
    return f"{image.request_id}/{image.image_index}"


def _path(image: ComparedImage) -> str:
    """The file's key in the object store; else the image's name."""
    return (image.origin.object if image.origin else None) or _uid(image)


def _model(image: ComparedImage) -> str:
    return (image.origin.model if image.origin else None) or ""


def _prompt(judgement: Comparison) -> str:
    origins = (image.origin for image in (judgement.a, judgement.b))
    return next((origin.prompt for origin in origins if origin is not None and origin.prompt is not None), "")
