"""What a key may ask for in a submission, by the value of its fields. Pure."""

from collections.abc import Collection, Sequence
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
    presets: frozenset[str] | None = None
    models: frozenset[str] | None = None
    """By family or checkpoint, as pools name them."""

    def check(self, request: GenerationRequest) -> None:
        """Raises `ProblemError` (403), which names each field.

        The request has the parameters of its preset, and the name of that even where it asked for `auto`.
        """
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
        # Without one it has parameters of its own, which need not be an allowed preset's.
        if self.presets is not None and request.preset not in self.presets:
            problems.append(_not_allowed("preset", request.preset or "a task without preset", self.presets))
        if problems:
            raise ProblemError(ProblemCode.NOT_ENTITLED, summarize(problems), fields=problems)

    def check_model(self, request: GenerationRequest, served_by: Sequence[frozenset[str]]) -> None:
        """Raises `ProblemError` (403) unless the model of each pool behind the request is allowed, by any of its names.

        A pool of which nothing is known may have any model.
        """
        if self.models is None or (served_by and all(not self.models.isdisjoint(names) for names in served_by)):
            return
        others = [min(names) for names in served_by if names and self.models.isdisjoint(names)]
        if others:
            problem = _not_allowed("model", f"{others[0]} (the model of tasks of this priority)", self.models)
        else:
            message = (
                f"the model of tasks of priority {request.priority} is not known here, and the key or token is bound "
                f"to {' or '.join(sorted(self.models)) or 'none'}; let the operator write the states of pools "
                "(topics.pools), or use a key that is not bound to models"
            )
            problem = FieldProblem("model", message)
        raise ProblemError(ProblemCode.NOT_ENTITLED, summarize([problem]), fields=[problem])


EVERYTHING = Rights(priorities=frozenset(Priority))
"""Of the first key, and of every caller of a gateway without authentication."""


def _not_allowed(field: str, value: str, allowed: Collection[str]) -> FieldProblem:
    names = " or ".join(sorted(allowed)) or "none"
    return FieldProblem(field, f"the key or token does not allow {value}; use {names}, or one that does")
