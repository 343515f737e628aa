"""Thompson sampling over presets: the share of each is how likely it is the one that people like best. Pure.

A judgement is a reward from 0 to 1. What is known of a preset is a Beta distribution over its mean reward, from an even
one at the start (Thompson, 1933; for rewards between 0 and 1 Agrawal and Goyal, 2012). The probability that a preset is
the best is estimated by draws from these. Every preset keeps a share whatever is known, so that it is judged on.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

DRAWS: Final = 1000
"""The shares are right to 0.02 then, and take some milliseconds in a thread."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The judgements of a preset: their rewards in quarters, and how many they are."""

    quarters: int = 0
    count: int = 0

    @property
    def mean(self) -> float:
        """The mean reward, 0 to 1; a half when nothing is known."""
        return self.quarters / 4 / self.count if self.count else 0.5


@dataclass(frozen=True, slots=True)
class Shares:
    """How the traffic of a tenant is divided, and why."""

    shares: Mapping[str, float]
    """Of each preset; their sum is 1."""
    evidence: Mapping[str, Evidence]

    def only(self, names: Mapping[str, object]) -> "Shares":
        """Among some of the presets."""
        total = sum(share for name, share in self.shares.items() if name in names)
        return Shares({name: self.shares[name] / total for name in self.shares if name in names}, self.evidence)

    def pick(self, text: str) -> str:
        """The preset for a text, always the same one; of many texts each preset gets its share."""
        point = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        name = ""
        for name, share in self.shares.items():  # noqa: B007 - the last one takes what rounding leaves
            point -= share
            if point < 0:
                break
        return name

    def reason(self, name: str) -> str:
        """Why a preset was picked, in a sentence."""
        share, known = self.shares[name], self.evidence.get(name, Evidence())
        if not any(one.count for one in self.evidence.values()):
            return f"auto: nothing is judged yet, so each of {len(self.shares)} presets has the same share"
        judged = f"mean reward {known.mean:.2f} of {known.count} judgements" if known.count else "not judged yet"
        favourite = max(self.shares, key=lambda one: self.shares[one])
        if name == favourite:
            return f"auto: it is likely to be preferred ({judged}), and has a share of {share:.2f}"
        return f"auto: every preset goes on being judged ({judged}), this one with a share of {share:.2f}"


def divide(evidence: Mapping[str, Evidence], *, exploration: float, seed: int = 0) -> Shares:
    """The shares of presets; each has at least `exploration`. The same for the same evidence and seed."""
    names = sorted(evidence)
    drawn = random.Random(f"{seed}/{[(name, evidence[name]) for name in names]}")  # noqa: S311 - no secret
    best: Counter[str] = Counter()
    for _ in range(DRAWS):
        rewards = {
            name: drawn.betavariate(1 + one.quarters / 4, 1 + one.count - one.quarters / 4)
            for name, one in ((name, evidence[name]) for name in names)
        }
        best[max(names, key=rewards.__getitem__)] += 1
    free = 1 - exploration * len(names)
    return Shares({name: exploration + free * best[name] / DRAWS for name in names}, dict(evidence))


def divide_evenly(names: Mapping[str, object]) -> Shares:
    """The shares while nothing is known."""
    return Shares({name: 1 / len(names) for name in sorted(names)}, {})
