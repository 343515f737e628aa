"""Whether a task is what somebody looks for, by its request and its result as they are stored. Pure.

Not by columns or an index of words: those would cost the projection of every task, and a search looks at the newest
tasks of one tenant, of which `store.task_list` reads a bounded number.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from fluxpool_contract.messages import MAX_SIDE_PIXELS

MAX_SEARCH_CHARACTERS: Final = 200
_USUAL_SIDE_PIXELS: Final = 1024
_SIZE: Final = re.compile(r"\s*([0-9]{1,5})\s*[x\u00d7*,]\s*([0-9]{1,5})\s*", re.ASCII | re.IGNORECASE)


class ImageSize(NamedTuple):
    """In pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_size(text: str) -> ImageSize:
    """A size as people write it; raises `ValueError`."""
    found = _SIZE.fullmatch(text)
    if found is None or not all(0 < int(side) <= MAX_SIDE_PIXELS for side in found.groups()):
        raise ValueError("must be a width and a height in pixels, such as 1024x768")
    return ImageSize(int(found[1]), int(found[2]))


def words_of(text: str) -> tuple[str, ...]:
    """What a prompt has to contain, without regard to case."""
    return tuple(text.casefold().split())


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentFilter:
    """What is looked for; every field that is given has to fit."""

    words: tuple[str, ...] = ()
    """Parts of the prompt, as `words_of` makes them."""
    seed: int | None = None
    """Asked for, or of any image."""
    size: ImageSize | None = None
    """Of the images, or asked for while there is none."""
    model: str = ""
    """A part of its name, without regard to case."""
    preset: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every task fits."""
        return self == ANYTHING

    def passes(self, body: str | None, result: str | None) -> bool:
        """Whether a task fits, by its request and its result in JSON; any producer may have written them."""
        # Before anything is parsed: most tasks have another seed.
        if self.seed is not None and str(self.seed) not in (body or "") and str(self.seed) not in (result or ""):
            return False
        task, ended = _read(body), _read(result)
        return (
            self._has_words(task)
            and (self.preset is None or _object(task.get("preset_choice")).get("name") == self.preset)
            and (self.seed is None or self.seed in {task.get("seed"), ended.get("seed"), *_each(ended, "seed")})
            and (self.size is None or self.size in _sizes(task, ended))
            and (not self.model or self.model.casefold() in str(ended.get("model") or "").casefold())
        )

    def _has_words(self, task: dict[str, Any]) -> bool:
        if not self.words:
            return True
        prompt = task.get("prompt")
        text = prompt.casefold() if isinstance(prompt, str) else ""
        return all(word in text for word in self.words)


ANYTHING: Final = ContentFilter()


def _read(text: str | None) -> dict[str, Any]:
    try:
        return _object(json.loads(text or "{}"))
    except (ValueError, RecursionError):
        return {}


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _each(ended: dict[str, Any], name: str) -> list[Any]:
    """A number of each image."""
    images = ended.get("images")
    found = [_object(image).get(name) for image in images] if isinstance(images, list) else []
    return [value for value in found if isinstance(value, int)]


def _sizes(task: dict[str, Any], ended: dict[str, Any]) -> list[tuple[Any, Any]]:
    sizes: list[tuple[Any, Any]] = list(zip(_each(ended, "width"), _each(ended, "height"), strict=False))
    return sizes or [(task.get("width", _USUAL_SIDE_PIXELS), task.get("height", _USUAL_SIDE_PIXELS))]
