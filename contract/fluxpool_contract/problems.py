"""Why an input was refused, in words a person can act on: the field, what is wrong, what would be right.

Owns the one translation from pydantic's errors; the gateway's 422 answers and the worker's dead letters both use it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError


class ErrorClass(StrEnum):
    """What a failure means for the task, and so what may be done about it."""

    INVALID = "invalid"
    REJECTED = "rejected"
    TRANSIENT = "transient"
    INFRA = "infra"
    WORKER_FATAL = "worker-fatal"
    EXPIRED = "expired"
    CANCELED = "canceled"


class ErrorCode(StrEnum):
    """The stable name of a failure; results, dead letters and metrics carry it."""

    UNDECODABLE = "undecodable"
    INVALID_FIELD = "invalid-field"
    INVALID_HEADER = "invalid-header"
    TOO_LARGE = "too-large"
    ID_CONFLICT = "id-conflict"
    REJECTED = "rejected"
    GENERATION_FAILED = "generation-failed"
    NOT_FINITE = "not-finite"
    OUT_OF_MEMORY = "out-of-memory"
    ENGINE_DIED = "engine-died"
    CRASH_LOOP = "crash-loop"
    CORRUPT_OBJECT = "corrupt-object"
    REFUSED_BY_TOPIC = "refused-by-topic"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    CANCELED = "canceled"


_NAMED = re.compile(r"([a-z][a-z0-9_]*): (.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field that was refused and why."""

    field: str
    """Dotted path, `metadata.owner`; empty when the whole body is at fault."""
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message


class InvalidTaskError(Exception):
    """A message that can never become an image, whoever retries it."""

    def __init__(self, code: ErrorCode, problems: Sequence[FieldProblem], *, request_id: str | None) -> None:
        self.code = code
        self.problems = tuple(problems)
        self.request_id = request_id
        """The id as far as it could be read from the message; null otherwise."""
        super().__init__("; ".join(map(str, self.problems)))


def explain(error: ValidationError) -> tuple[FieldProblem, ...]:
    """The refused fields of a pydantic error, without pydantic's own vocabulary where a plainer word exists."""
    items = error.errors(include_url=False, include_context=False, include_input=False)
    refused_parts = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    return tuple(
        _problem([str(part) for part in item["loc"]], _plain(item["type"], item["msg"]))
        for item in items
        # A collection whose items were refused counts as too short as well; the items say what is wrong.
        if not (item["type"] == "too_short" and item["loc"] in refused_parts)
    )


def _problem(path: list[str], message: str) -> FieldProblem:
    """A validator of a whole model names the field at the head of its message: `seed: leaves no room`."""
    named = _NAMED.fullmatch(message)
    if named is not None:
        path, message = [*path, named[1]], named[2]
    return FieldProblem(field=".".join(path), message=message)


def _plain(kind: str, message: str) -> str:
    match kind:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a known field; check its spelling"
        case "json_invalid":
            return f"the body is not valid JSON ({message.removeprefix('Invalid JSON: ')})"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a JSON object"
        case _:
            text = message.removeprefix("Value error, ")
            return text.replace("Input should", "should")
