"""The hot route's part of the OpenAPI document, which FastAPI cannot know because it does not serve that route."""

from typing import Any, Final

from fluxpool_gateway.http.generation_request import GenerationRequest
from fluxpool_gateway.http.problem import MEDIA_TYPE
from fluxpool_gateway.http.submission import PATH

_REFERENCE: Final = "#/components/schemas/{model}"
_PROBLEMS: Final = {
    "400": "The body is not JSON, or holds a field that is not known.",
    "408": "The request did not arrive in time; nothing was accepted.",
    "409": "Another request with the same Idempotency-Key is in progress; repeat it after Retry-After.",
    "413": "The body is too large.",
    "414": "The address is too long.",
    "415": "The body is not application/json, or is encoded.",
    "422": "A value is not allowed, or the Idempotency-Key was used for another request; `errors` names each field.",
    "431": "The headers are too large.",
    "503": "The broker did not confirm in time: the outcome is unknown. Repeat it with the same Idempotency-Key.",
}
PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "title": "Problem",
    "description": "RFC 9457 problem document; `error` is the same for clients of the OpenAI API.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "correlation_id", "error"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string"},
        "correlation_id": {"type": "string", "description": "The `x-request-id` of this answer."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {"pointer": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        },
    },
}
_ACCEPTED_SCHEMA: Final[dict[str, Any]] = {
    "title": "AcceptedGeneration",
    "type": "object",
    "required": ["request_id", "status", "status_url"],
    "properties": {
        "request_id": {"type": "string"},
        "status": {"type": "string", "const": "queued"},
        "status_url": {"type": "string"},
    },
}


def problem_response(description: str) -> dict[str, Any]:
    """The OpenAPI response of a problem document."""
    schema = {"$ref": _REFERENCE.format(model="Problem")}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": schema}}}


def add_submission(document: dict[str, Any]) -> dict[str, Any]:
    """The document with `POST /v1/generations` and the schemas that all routes share."""
    request = GenerationRequest.model_json_schema(ref_template=_REFERENCE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= request.pop("$defs", {})
    schemas |= {
        "GenerationRequest": request,
        "AcceptedGeneration": _ACCEPTED_SCHEMA,
        "Problem": PROBLEM_SCHEMA,
    }
    document.setdefault("paths", {})[PATH] = {"post": _operation()}
    return document


def _operation() -> dict[str, Any]:
    text = {"schema": {"type": "string"}}
    return {
        "operationId": "submit_generation",
        "summary": "Submit a request for images",
        "description": "Answers once the request is durably queued.",
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "1 to 255 printable ASCII characters; repeats with the same key are one task.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
            },
            {"name": "traceparent", "in": "header", "required": False, "description": "W3C trace context.", **text},
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="GenerationRequest")}}},
        },
        "responses": {
            "202": {
                "description": "Queued.",
                "headers": {
                    "Location": {"description": "Where the task's state is read.", **text},
                    "Retry-After": {"description": "Seconds until asking is worth while.", **text},
                },
                "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="AcceptedGeneration")}}},
            },
            **{status: problem_response(description) for status, description in _PROBLEMS.items()},
        },
    }
