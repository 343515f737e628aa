"""A gateway's answers, validated before use. Pure.

Owns the parsing of task views and problem documents. Answers are not trusted: an id becomes part of a path only
after it was validated, and an answer of another shape is refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fluxpool_contract.messages import OutputFormat, check_request_id

_SUCCESS: Final = frozenset({"success", "succeeded"})
_FAILURE: Final = frozenset({"failed", "expired", "canceled"})
_EXTENSION: Final = re.compile(r"[a-z0-9]{1,8}")
_MAX_IMAGES: Final = 100


class NotAGatewayError(ValueError):
    """The answer is not a gateway's; the message says why."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One task as the gateway shows it; `document` is the whole answer."""

    document: Mapping[str, Any]

    @classmethod
    def parse(cls, body: bytes, *, expected_id: str | None = None) -> "Generation":
        """The task in the body of an answer; raises `NotAGatewayError`."""
        document = parse_object(body)
        request_id = document.get("request_id")
        try:
            check_request_id(request_id if isinstance(request_id, str) else "")
        except ValueError:
            raise NotAGatewayError("its answer has no valid request_id") from None
        if expected_id is not None and request_id != expected_id:
            raise NotAGatewayError(f"it answers about {request_id} when asked about {expected_id}")
        return cls(document)

    @property
    def request_id(self) -> str:
        """Identity of the task."""
        return str(self.document["request_id"])

    @property
    def status(self) -> str:
        """The task's status as the gateway names it."""
        return str(self.document.get("status") or "queued")

    @property
    def succeeded(self) -> bool:
        """Whether the images are there."""
        return self.status in _SUCCESS

    @property
    def finished(self) -> bool:
        """Whether the status is final."""
        return self.succeeded or self.status in _FAILURE

    @property
    def steps_done(self) -> tuple[int, int] | None:
        """Denoising steps done and in all; null while that is not known."""
        progress = _mapping(self.document.get("progress"))
        step, total = progress.get("step"), progress.get("total_steps")
        return (step, total) if isinstance(step, int) and isinstance(total, int) and step >= 0 and total > 0 else None

    @property
    def image_extensions(self) -> list[str]:
        """File name extension of each image, in order; `img` for a format that this release does not know."""
        return [_extension(image) for image in _items(self.document.get("images"))[:_MAX_IMAGES]]

    @property
    def image_marks(self) -> list[str]:
        """What each image file says of its origin, in order; empty texts for a gateway that does not tell."""
        images = _items(self.document.get("images"))[:_MAX_IMAGES]
        return [", ".join(map(str, _items(_mapping(image).get("marks")))) for image in images]

    @property
    def warnings(self) -> list[str]:
        """What the sender should know."""
        return [str(warning) for warning in _items(self.document.get("warnings"))]

    @property
    def failure(self) -> str:
        """Why there are no images."""
        error = _mapping(self.document.get("error"))
        what = ": ".join(str(error[key]) for key in ("field", "message") if error.get(key))
        code = f" ({error['code']})" if error.get("code") else ""
        return f"{self.request_id} {self.status}{': ' + what if what else ''}{code}"


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; raises `NotAGatewayError`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise NotAGatewayError("its answer is not JSON") from None
    if not isinstance(document, dict):
        raise NotAGatewayError("its answer is not a JSON object")
    return document


def refusal_reason(body: bytes, *, status: int) -> str:
    """What an answer without success says: each refused field with its remedy, one a line."""
    try:
        problem = parse_object(body)
    except NotAGatewayError:
        problem = {}
    detail = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    fields = [
        f"{str(item.get('pointer', '')).removeprefix('#').lstrip('/').replace('/', '.')}: {item.get('detail')}"
        for item in _items(problem.get("errors"))
        if isinstance(item, dict)
    ]
    return "\n".join(" ".join(line.removeprefix(": ").split("\n")) for line in fields) or " ".join(detail.split("\n"))


def _extension(image: Any) -> str:
    name = _mapping(image).get("format")
    if name in set(OutputFormat):
        return OutputFormat(str(name)).extension
    return name if isinstance(name, str) and _EXTENSION.fullmatch(name) else "img"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
