"""Decodes a record to a task; raises nothing but `InvalidTaskError`, with every field at fault."""

import json
from dataclasses import dataclass

from pydantic import ValidationError

from fluxpool_contract.json_body import without_bom
from fluxpool_contract.messages.derived import task_digest, task_digest_as_written
from fluxpool_contract.messages.headers import Envelope, RawHeaders, parse_envelope
from fluxpool_contract.messages.task import MAX_TASK_BYTES, REQUEST_ID, GenerationTask
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError, explain


@dataclass(frozen=True, slots=True)
class DecodedTask:
    """A valid task with its envelope and the identity of its body."""

    task: GenerationTask
    envelope: Envelope
    digest: str
    """Of the body as it is written (`task_digest_as_written`); claims of every release hold it."""
    value_digest: str
    """Of what the body says (`task_digest`)."""


def decode_task(value: bytes | None, headers: RawHeaders) -> DecodedTask:
    """The task in a record.

    Raises `InvalidTaskError` with the code, every field at fault and the `request_id` as far as it can be read.
    """
    task, body = parse_task(value), value or b""
    try:
        digest, value_digest = task_digest_as_written(body), task_digest(body)
    except ValueError as error:  # NaN or an integer of thousands of digits in an unknown field, for example
        problem = FieldProblem("", f"the body cannot be read as JSON: {error}")
        raise InvalidTaskError(ErrorCode.UNDECODABLE, [problem], request_id=task.request_id) from None
    envelope = parse_envelope(headers, request_id=task.request_id)
    return DecodedTask(task=task, envelope=envelope, digest=digest, value_digest=value_digest)


def parse_task(value: bytes | None) -> GenerationTask:
    """The task in a record's value alone; raises `InvalidTaskError` as `decode_task` does.

    Accepts NaN and numbers out of range in fields that this release does not know; `decode_task` refuses them.
    """
    if not value:
        raise InvalidTaskError(
            ErrorCode.UNDECODABLE, [FieldProblem("", "the record has no value; send a JSON task")], request_id=None
        )
    if len(value) > MAX_TASK_BYTES:
        problem = FieldProblem("", f"the task is {len(value)} bytes long; at most {MAX_TASK_BYTES} are allowed")
        raise InvalidTaskError(ErrorCode.TOO_LARGE, [problem], request_id=peek_request_id(value))
    try:
        return GenerationTask.model_validate_json(without_bom(value))
    except ValidationError as error:
        problems = explain(error, body=value)
        undecodable = any(item["type"] in {"json_invalid", "model_type"} for item in error.errors(include_url=False))
        code = ErrorCode.UNDECODABLE if undecodable else ErrorCode.INVALID_FIELD
        raise InvalidTaskError(code, problems, request_id=peek_request_id(value)) from None


def work_of_task(value: bytes) -> float:
    """The `relative_work` of the task in a record's value; 0 for an invalid one, which takes no device."""
    try:
        return parse_task(value).relative_work
    except InvalidTaskError:
        return 0.0


def peek_request_id(value: bytes) -> str | None:
    """The `request_id` of a body that is otherwise refused, if it holds a usable one."""
    try:
        body = json.loads(without_bom(value))
    except (ValueError, RecursionError):
        return None
    candidate = body.get("request_id") if isinstance(body, dict) else None
    return candidate if isinstance(candidate, str) and REQUEST_ID.fullmatch(candidate) else None
