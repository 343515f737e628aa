"""Why an input is refused, in words that a user can act on: the field, the problem, the remedy.

Owns the one translation from pydantic's errors; the gateway's 422 answers and the worker's dead letters both use it.
Everything here is bounded, because the input decides how much there is to say: at most `MAX_PROBLEMS` problems and a
line that counts the others, names of at most `MAX_FIELD_BYTES`, reasons of at most `MAX_REASON_BYTES`, and
`MAX_ERROR_MESSAGE_BYTES` for all of them in one text (`summarize`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

from pydantic import ValidationError

from fluxpool_contract.bounds import MAX_ERROR_MESSAGE_BYTES, cut_text
from fluxpool_contract.json_body import why_not_json

MAX_PROBLEMS: Final = 20
"""A body of 64 KiB can have 11,000; more than twenty at once help no user."""
MAX_FIELD_BYTES: Final = 512
"""The longest legal name is a metadata key: 64 characters of at most four bytes."""
MAX_REASON_BYTES: Final = 512


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
    TENANT_UNPROVEN = "tenant-unproven"
    REFUSED_BY_TOPIC = "refused-by-topic"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    CANCELED = "canceled"


_NAMED = re.compile(r"([a-z][a-z0-9_]*): (.+)", re.DOTALL)
# RFC 3986 section 3.5: what may stand in a fragment as it is. The slash is absent because it separates the parts.
_SAFE_IN_FRAGMENT: Final = "!$&'()*+,;=:@?"
_PYDANTIC_KEY_MARK: Final = "[key]"
_WORDS: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a known field; check its spelling",
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "must be a JSON object"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("string_type", "string_unicode"), "must be text"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number, not NaN or infinity",
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_long": "must be at most {max_length:,} characters long",
    "string_too_short": "must be at least {min_length} characters long",
    "too_long": "must have at most {max_length} entries",
    "too_short": "must have at least {min_length} entries",
    **dict.fromkeys(("enum", "literal_error"), "must be {expected}"),
    "string_pattern_mismatch": "must match the pattern {pattern}",
}
"""The reason by the type of pydantic's error."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field that was refused and why."""

    field: str
    """Dotted path, `metadata.owner`; empty when the whole body is at fault."""
    message: str
    path: tuple[str, ...] = ()
    """The parts of `field`, which may hold dots themselves; empty: `field` is one part."""

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    @property
    def pointer(self) -> str:
        """The place as a JSON pointer in URI fragment form (RFC 6901 section 6): `#/metadata/team~1a.b`."""
        parts = self.path or ((self.field,) if self.field else ())
        return "#" + "".join("/" + _pointer_part(part) for part in parts)


class InvalidTaskError(Exception):
    """A message that can never become an image; a retry fails in the same way."""

    def __init__(self, code: ErrorCode, problems: Sequence[FieldProblem], *, request_id: str | None) -> None:
        self.code = code
        self.problems = cap(problems)
        self.request_id = request_id
        """The id as far as it could be read from the message; null otherwise."""
        super().__init__(summarize(self.problems))


def cap(problems: Sequence[FieldProblem]) -> tuple[FieldProblem, ...]:
    """The first `MAX_PROBLEMS` problems, and one that says how many more there are; once capped it stays as it is."""
    return _capped(problems, count=len(problems))


def summarize(problems: Iterable[FieldProblem]) -> str:
    """All problems in one text of at most `MAX_ERROR_MESSAGE_BYTES`."""
    return cut_text("; ".join(map(str, problems)), MAX_ERROR_MESSAGE_BYTES)


def explain(error: ValidationError, *, body: bytes = b"") -> tuple[FieldProblem, ...]:
    """The refused fields of a pydantic error in plain words, at most `MAX_PROBLEMS` and a count of the others.

    A `body` that is not JSON is named by its encoding or compression where that can be recognised.
    """
    return explain_items(error.errors(include_url=False, include_input=False), body=body)


def explain_items(items: Sequence[Mapping[str, Any]], *, body: bytes = b"") -> tuple[FieldProblem, ...]:
    """The same for the items of `ValidationError.errors()`, which frameworks pass on in exceptions of their own."""
    _release_frames(items)
    refused_parts = {item["loc"][:length] for item in items for length in range(len(item["loc"]))}
    # A collection whose items were refused counts as too short as well; the items say what is wrong.
    told = [item for item in items if not (item["type"] == "too_short" and item["loc"] in refused_parts)]
    problems = [_problem(item["loc"], _plain(item, body)) for item in told[: MAX_PROBLEMS + 1]]
    return _capped(problems, count=len(told))


def _release_frames(items: Iterable[Mapping[str, Any]]) -> None:
    """Drop the tracebacks of the `ValueError`s that validators raised.

    Their frames lead to every caller's. Where one of these keeps what comes of the error, that is a cycle through
    `ValidationError`, which does not show the garbage collector what it holds: it would never be freed, nor would the
    record (known as dapper91/pydantic-xml#222).
    """
    for item in items:
        raised = item.get("ctx", {}).get("error")
        while isinstance(raised, BaseException):
            raised.__traceback__ = None
            raised = raised.__cause__ or raised.__context__


def _capped(problems: Sequence[FieldProblem], *, count: int) -> tuple[FieldProblem, ...]:
    # One more takes no more room than its count would; so what is capped can be capped again.
    if count <= MAX_PROBLEMS + 1:
        return tuple(problems)
    return (*problems[:MAX_PROBLEMS], FieldProblem("", f"and {count - MAX_PROBLEMS:,} more"))


def _problem(location: tuple[int | str, ...], message: str) -> FieldProblem:
    """A validator of a whole model names the field at the head of its message: `seed: leaves no room`."""
    if location and location[-1] == _PYDANTIC_KEY_MARK:
        location, message = location[:-1], f"is not a possible name: {message}"
    named = _NAMED.fullmatch(message)
    if named is not None:
        location, message = (*location, named[1]), named[2]
    path = tuple(cut_text(str(part), MAX_FIELD_BYTES) for part in location)
    field = cut_text(".".join(path), MAX_FIELD_BYTES)
    return FieldProblem(field=field, message=cut_text(message, MAX_REASON_BYTES), path=path)


def _pointer_part(part: str) -> str:
    return quote(part.replace("~", "~0").replace("/", "~1"), safe=_SAFE_IN_FRAGMENT, errors="replace")


def _plain(item: Mapping[str, Any], body: bytes) -> str:
    """A reason in words that need no knowledge of Python or pydantic."""
    kind, limits = item["type"], item.get("ctx", {})
    message: str = item["msg"]
    if kind == "json_invalid":
        return _not_json(message.removeprefix("Invalid JSON: "), body)
    if kind == "string_too_short" and limits["min_length"] == 1:
        return "must not be empty"
    if kind.startswith(("datetime_", "timezone_")):
        return "must be a time such as 2026-04-05T10:00:00Z"
    if kind in _WORDS:
        return _WORDS[kind].format(**limits)
    return message.removeprefix("Value error, ").replace("Input should", "must")


def _not_json(reason: str, body: bytes) -> str:
    seen = why_not_json(body)
    if seen is not None:
        return f"the body is not valid JSON: it {seen}"
    return f"the body is not valid JSON ({reason.replace('recursion limit exceeded', 'nested too deeply')})"
