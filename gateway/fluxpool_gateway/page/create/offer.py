"""What the form offers of what the gateway has: that which the caller's key may ask for. Pure.

The API decides all the same; this keeps the form from requests that it refuses.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fluxpool_contract.messages import Quality
from fluxpool_gateway.http.generation_request import GenerationRequest, Priority
from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.identity.rights import Rights

AUTO: Final = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Values of fields; a field with none is not shown."""

    presets: Sequence[str] = ()
    """With `auto`."""
    needs_preset: bool = False
    """Whether a task without one is refused."""
    priorities: Sequence[Priority] = ()
    qualities: Sequence[Quality] = ()
    """Empty where a task need not name one."""
    left_out: Mapping[Priority, str] | None = None
    """Priorities of the key whose pools have a model that it may not use, and why; None where that is none."""
    refusal: str = ""
    """Why nothing may be sent, and what helps; empty where something may."""

    @property
    def shows_priority(self) -> bool:
        """Whether there is a choice, or one that is not the usual."""
        return list(self.priorities) not in ([], [Priority.STANDARD])


def offer_to(
    rights: Rights,
    *,
    presets: Collection[str],
    qualities: Collection[Quality],
    models_of: Callable[[Priority], Sequence[frozenset[str]]],
) -> Offer:
    """What a key with these rights is offered.

    `qualities` are those of the gateway, empty where that is unknown; `models_of` has the names of the model of each
    pool behind a priority.
    """
    named = sorted(name for name in presets if rights.presets is None or name in rights.presets)
    left_out = {
        priority: why
        for priority in sorted(rights.priorities)
        if (why := _why_no_model(rights, priority, models_of(priority)))
    }
    priorities = [priority for priority in sorted(rights.priorities) if priority not in left_out]
    allowed = [
        quality
        for quality in Quality
        if rights.qualities is not None and quality in rights.qualities and (not qualities or quality in qualities)
    ]
    refusals = []
    if rights.presets is not None and not named:
        refusals.append(
            f"its tasks have to name a preset ({_either(rights.presets)}), and this gateway has none of these"
        )
    if not priorities:
        refusals.append("; ".join(left_out.values()))
    if rights.qualities is not None and not allowed:
        refusals.append(
            f"its tasks have to name a quality ({_either(rights.qualities)}), and this gateway allows none of these"
        )
    return Offer(
        presets=[AUTO, *named] if named else [],
        needs_preset=rights.presets is not None,
        priorities=priorities,
        qualities=allowed,
        left_out=left_out or None,
        refusal="; ".join(refusals),
    )


def _why_no_model(rights: Rights, priority: Priority, served_by: Sequence[frozenset[str]]) -> str:
    """Empty where the models of the priority's pools are allowed."""
    try:
        rights.check_model(GenerationRequest(prompt="any", priority=priority), served_by)
    except ProblemError as problem:
        return problem.fields[0].message
    return ""


def _either(names: Collection[str]) -> str:
    return " or ".join(sorted(names))
