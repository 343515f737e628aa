"""What a key may ask for in a submission, by the value of its fields. Pure."""

from collections.abc import Collection
from dataclasses import dataclass

from fluxpool_contract.messages import Quality
from fluxpool_contract.problems import FieldProblem, summarize
from fluxpool_gateway.http.generation_request import GenerationRequest, Priority
from fluxpool_gateway.http.problem import ProblemCode, ProblemError


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Allowed values; None where all are."""

    priorities: frozenset[Priority] = frozenset({Priority.STANDARD})
    qualities: frozenset[Quality] | None = None
    loras: frozenset[str] | None = None

    def check(self, request: GenerationRequest) -> None:
        """Raises `ProblemError` (403), which names each field."""
        problems = []
        if request.priority not in self.priorities:
            problems.append(_not_allowed("priority", request.priority, self.priorities))
        # The default is the pool's, which need not be an allowed one.
        if self.qualities is not None and request.quality not in self.qualities:
            problems.append(_not_allowed("quality", request.quality or "the pool's default", self.qualities))
        if self.loras is not None:
            problems += [
                _not_allowed("loras", lora.name, self.loras) for lora in request.loras if lora.name not in self.loras
            ]
        if problems:
            raise ProblemError(ProblemCode.NOT_ENTITLED, summarize(problems), fields=problems)


EVERYTHING = Rights(priorities=frozenset(Priority))
"""Of the first key, and of every caller of a gateway without authentication."""


def _not_allowed(field: str, value: str, allowed: Collection[str]) -> FieldProblem:
    names = " or ".join(sorted(allowed)) or "none"
    return FieldProblem(field, f"the key or token does not allow {value}; use {names}, or one that does")
