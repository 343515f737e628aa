"""Means and win rates of what people say, with how sure they are. Pure.

Intervals are of 95 %: of a mean by the normal distribution, of a win rate by Wilson's (E. B. Wilson, 1927), which holds
for few comparisons too.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Self

from fluxpool_contract.messages import Preference

_Z: Final = 1.959964
"""Of 95 %, on both sides."""


class Dimension(StrEnum):
    """What images are told apart by."""

    MODEL = "model"
    STEPS = "steps"
    PRESET = "preset"
    POOL = "pool"


class Setup(NamedTuple):
    """How some images were made; in the order of `Dimension`."""

    model: str | None
    steps: int | None
    preset: str | None
    pool: str | None

    def along(self, dimension: Dimension) -> str | None:
        """Its value, as text."""
        value = getattr(self, dimension.value)
        return None if value is None else str(value)


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of images that were made alike."""

    setup: Setup
    count: int
    total: int
    squares: int


@dataclass(frozen=True, slots=True)
class Compared:
    """Comparisons of images of two kinds with one outcome."""

    a: Setup
    b: Setup
    preferred: Preference
    count: int


@dataclass(frozen=True, slots=True)
class Interval:
    """A share or a mean, and where it lies with 95 %."""

    value: float
    low: float
    high: float

    @classmethod
    def of_mean(cls, *, count: int, total: int, squares: int) -> Self | None:
        """Of scores from 1 to 5; None without any, and unsure in full with one."""
        if not count:
            return None
        mean = total / count
        if count == 1:
            return cls(mean, 1, 5)
        variance = max(0.0, (squares - count * mean * mean) / (count - 1))
        half = _Z * math.sqrt(variance / count)
        return cls(mean, max(1.0, mean - half), min(5.0, mean + half))

    @classmethod
    def of_share(cls, *, wins: float, count: int) -> Self | None:
        """Of so many wins, ties counting half; None without comparisons."""
        if not count:
            return None
        share = wins / count
        scale = 1 + _Z**2 / count
        middle = (share + _Z**2 / (2 * count)) / scale
        half = _Z / scale * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
        return cls(share, max(0.0, middle - half), min(1.0, middle + half))


@dataclass(slots=True)
class Group:
    """The judgements of the images with one value."""

    value: str | None
    scores: int = 0
    total: int = 0
    squares: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0

    @property
    def compared(self) -> int:
        """Comparisons with images of another value."""
        return self.wins + self.losses + self.ties

    @property
    def mean_score(self) -> Interval | None:
        """1 to 5."""
        return Interval.of_mean(count=self.scores, total=self.total, squares=self.squares)

    @property
    def win_rate(self) -> Interval | None:
        """0 to 1."""
        return Interval.of_share(wins=self.wins + self.ties / 2, count=self.compared)


def group_by(dimension: Dimension, scored: Iterable[Scored], compared: Iterable[Compared]) -> list[Group]:
    """The groups, those with the most judgements first. A comparison of two images of one group says nothing here."""
    groups: dict[str | None, Group] = defaultdict(lambda: Group(None))
    for one in scored:
        group = groups[one.setup.along(dimension)]
        group.scores += one.count
        group.total += one.total
        group.squares += one.squares
    for pair in compared:
        a, b = pair.a.along(dimension), pair.b.along(dimension)
        if a == b:
            continue
        match pair.preferred:
            case Preference.A:
                groups[a].wins += pair.count
                groups[b].losses += pair.count
            case Preference.B:
                groups[b].wins += pair.count
                groups[a].losses += pair.count
            case Preference.TIE | Preference.BOTH_BAD:
                groups[a].ties += pair.count
                groups[b].ties += pair.count
    for value, group in groups.items():
        group.value = value
    return sorted(groups.values(), key=lambda group: (-group.scores - group.compared, group.value or ""))
