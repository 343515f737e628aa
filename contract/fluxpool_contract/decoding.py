"""From a record's bytes to a task, or to the reason why not. Never raises anything but `InvalidTaskError`."""

import json
from dataclasses import dataclass

from pydantic import ValidationError

from fluxpool_contract.derived import task_digest
from fluxpool_contract.headers import Envelope, RawHeaders, parse_envelope
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError, explain
from fluxpool_contract.task import MAX_TASK_BYTES, REQUEST_ID, GenerationTask


@dataclass(frozen=True, slots=True)
class DecodedTask:
    """A valid task with its envelope and the identity of its body."""

    task: GenerationTask
    envelope: Envelope
    digest: str


def decode_task(value: bytes | None, headers: RawHeaders) -> DecodedTask:
    """The task in a record.

    Raises `InvalidTaskError` with the code, every field at fault and the `request_id` as far as it can be read.
    """
    if not value:
        raise InvalidTaskError(
            ErrorCode.UNDECODABLE, [FieldProblem("", "the record has no value; send a JSON task")], request_id=None
        )
    if len(value) > MAX_TASK_BYTES:
        problem = FieldProblem("", f"the task is {len(value)} bytes long; at most {MAX_TASK_BYTES} are allowed")
        raise InvalidTaskError(ErrorCode.TOO_LARGE, [problem], request_id=peek_request_id(value))
    try:
        task = GenerationTask.model_validate_json(value)
    except ValidationError as error:
        problems = explain(error)
        undecodable = any(item["type"] in {"json_invalid", "model_type"} for item in error.errors(include_url=False))
        code = ErrorCode.UNDECODABLE if undecodable else ErrorCode.INVALID_FIELD
        raise InvalidTaskError(code, problems, request_id=peek_request_id(value)) from None
    try:
        digest = task_digest(value)
    except ValueError as error:  # an unknown field with an integer of thousands of digits, for example
        problem = FieldProblem("", f"the body cannot be read as JSON: {error}")
        raise InvalidTaskError(ErrorCode.UNDECODABLE, [problem], request_id=task.request_id) from None
    return DecodedTask(task=task, envelope=parse_envelope(headers, request_id=task.request_id), digest=digest)


def peek_request_id(value: bytes) -> str | None:
    """The `request_id` of a body that is otherwise refused, if it holds a usable one."""
    try:
        body = json.loads(value)
    except (ValueError, RecursionError):
        return None
    candidate = body.get("request_id") if isinstance(body, dict) else None
    return candidate if isinstance(candidate, str) and REQUEST_ID.fullmatch(candidate) else None
