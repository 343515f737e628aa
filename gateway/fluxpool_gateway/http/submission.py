"""`POST /v1/generations`: the one hot route, as a plain ASGI application.

A framework's route costs more than everything else a submission does, hence raw ASGI here and nowhere else. 202 is
said only after the broker has acknowledged the record.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final, Protocol

import structlog

from fluxpool_contract import header_names
from fluxpool_contract.bounds import cut_text
from fluxpool_contract.header_names import TYPE_REQUESTED
from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import DEFAULT_TENANT, format_time, idempotent_request_id, new_request_id, task_digest
from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.http.generation_request import (
    GenerationRequest,
    Priority,
    check_idempotency_key,
    parse_request,
    render_task,
)
from fluxpool_gateway.http.problem import MEDIA_TYPE, Problem, ProblemCode, ProblemError
from fluxpool_gateway.http.request_context import CORRELATION_ID_HEADER, base_url, correlation_id_of
from fluxpool_gateway.tasks.idempotency import UnwrittenError
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from fluxpool_gateway.tasks.recent_tasks import RecentTasks
from fluxpool_transport.partitioner import LoadAwarePartitioner

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Once = Callable[[str, str, Callable[[], Awaitable[None]]], Awaitable[None]]
PartitionCounts = Callable[[str], int | None]

PATH: Final = "/v1/generations"
EVENT_SOURCE: Final = "/fluxpool/gateway"
RETRY_AFTER_SECONDS: Final = 1
_MAX_TRACE_BYTES: Final = 512
_MAX_SHOWN_BYTES: Final = 100
_UNKNOWN_OUTCOME: Final = (
    "whether it was accepted is unknown; repeat it with the same Idempotency-Key, which cannot make a second task"
)

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _RequestHeaders:
    """The headers that the route reads, raw."""

    content_encoding: bytes | None = None
    content_type: bytes | None = None
    host: bytes | None = None
    idempotency_key: bytes | None = None
    traceparent: bytes | None = None
    tracestate: bytes | None = None
    x_request_id: bytes | None = None


_READ: Final = {field.replace("_", "-").encode(): field for field in _RequestHeaders.__slots__}
_GIVEN_ONCE: Final = frozenset({"content_encoding", "content_type", "idempotency_key"})
"""With two values a proxy may have acted on the other one."""


class _ClientGoneError(Exception):
    """The client closed the connection before its request was complete; it reads no answer."""


class RecordSink(Protocol):
    """Where records go; `TaskProducer` in service."""

    def send(
        self, *, topic: str, partition: int, key: bytes, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> Awaitable[int]:
        """Begin to write a record; its offset comes with the acknowledgement. Either raises `DeliveryError`."""


class Submission:
    """The route; one instance serves one process."""

    def __init__(
        self,
        *,
        producer: RecordSink,
        partitioner: LoadAwarePartitioner,
        partition_counts: PartitionCounts,
        recent: RecentTasks,
        once: Once,
        topics: TopicNames,
        public_url: str | None,
    ) -> None:
        """`partition_counts` says how many partitions a topic has, None while that is unknown.

        `once` writes the record of a request with a key, as `Idempotency.once` does.
        """
        self._producer = producer
        self._partitioner = partitioner
        self._partition_counts = partition_counts
        self._recent = recent
        self._once = once
        self._topics = {Priority.STANDARD: topics.tasks, Priority.VIP: topics.tasks_vip}
        self._public_url = public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = _RequestHeaders()
        try:
            _read_headers(scope["headers"], into=headers)
            if scope["method"] != "POST":
                raise ProblemError(_method_not_allowed(scope["method"]))
            request_id = await self._submit(headers, receive)
        except _ClientGoneError:
            return
        except ProblemError as error:
            await _send_problem(send, error.problem, correlation_id=correlation_id_of(headers.x_request_id))
            return
        except Exception:  # any failure must be answered, or the client waits for ever
            logger.exception("submission_failed")
            await _send_problem(send, _internal(), correlation_id=correlation_id_of(headers.x_request_id))
            return
        base = base_url(public_url=self._public_url, scheme=scope["scheme"], host=headers.host)
        correlation_id = request_id if headers.x_request_id is None else correlation_id_of(headers.x_request_id)
        await _send_accepted(send, request_id=request_id, base=base, correlation_id=correlation_id)

    async def _submit(self, headers: _RequestHeaders, receive: Receive) -> str:
        """Check the request, produce its record, await the acknowledgement; returns the task's id."""
        _check_content_type(headers.content_type)
        _check_content_encoding(headers.content_encoding)
        body = await _read_body(receive)
        request = parse_request(body)
        if headers.idempotency_key is None:
            request_id = new_request_id()
            value = render_task(request, request_id)
            try:
                await self._produce(headers, request, request_id=request_id, value=value)
            except UnwrittenError as error:
                raise error.answer from error
            return request_id
        request_id = idempotent_request_id(DEFAULT_TENANT, check_idempotency_key(headers.idempotency_key))
        value = render_task(request, request_id)
        produce = partial(self._produce, headers, request, request_id=request_id, value=value)
        await self._once(request_id, task_digest(value), produce)
        return request_id

    async def _produce(
        self, headers: _RequestHeaders, request: GenerationRequest, *, request_id: str, value: bytes
    ) -> None:
        """Write the record.

        Raises `UnwrittenError` when it certainly is not in Kafka, `ProblemError` when that is unknown.
        """
        topic = self._topics[request.priority]
        partitions = self._partition_counts(topic)
        if not partitions:
            problem = _unavailable(f"the topic {topic} is not known yet or no broker answers; try again")
            raise UnwrittenError(ProblemError(problem))
        accepted_at = datetime.fromtimestamp(time.time(), UTC)
        work = request.relative_work
        partition = self._partitioner.choose(topic, partitions=partitions, work=work)
        try:
            offset = await self._producer.send(
                topic=topic,
                partition=partition,
                key=request_id.encode(),
                value=value,
                headers=_record_headers(headers, request_id=request_id, priority=request.priority, moment=accepted_at),
            )
        except DeliveryError as error:
            if error.failure is DeliveryFailure.QUEUE_FULL:
                answer = ProblemError(_unavailable(f"{error}; nothing was accepted, try again"))
                raise UnwrittenError(answer) from error
            reason = f"the request was not confirmed ({error}): {_UNKNOWN_OUTCOME}"
            raise ProblemError(_unavailable(reason)) from error
        self._partitioner.acknowledged(topic, partition=partition, offset=offset, work=work)
        self._recent.add(request_id, accepted_at=accepted_at, priority=request.priority.value)


def _read_headers(raw: Iterable[tuple[bytes, bytes]], *, into: _RequestHeaders) -> None:
    """Raises `ProblemError` (400) when a header that decides something is given twice."""
    twice = None
    for name, value in raw:
        field = _READ.get(name)
        if field is not None:
            if field in _GIVEN_ONCE and getattr(into, field) is not None:
                twice = name.decode().title()
            setattr(into, field, value)
    if twice is not None:
        raise ProblemError(_bad_header(FieldProblem(twice, "is given more than once")))


def _check_content_type(raw: bytes | None) -> None:
    if raw is None or raw == b"application/json":
        return
    if raw.partition(b";")[0].strip().lower() != b"application/json":
        raise ProblemError(
            Problem(
                status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                code=ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                detail=f"Content-Type {_shown(raw)} is not understood; send application/json",
                fields=[FieldProblem("Content-Type", "must be application/json")],
                headers=[("accept", "application/json")],
            )
        )


def _check_content_encoding(raw: bytes | None) -> None:
    """A compressed body would have to be unpacked before its size is known, and a request is small."""
    if raw is None or raw.strip().lower() in {b"", b"identity"}:
        return
    raise ProblemError(
        Problem(
            status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            code=ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            detail=f"Content-Encoding {_shown(raw)} is not understood; send the JSON as it is, without this header",
            fields=[FieldProblem("Content-Encoding", "must be absent: bodies are not unpacked")],
            headers=[("accept-encoding", "identity")],
        )
    )


def _shown(value: bytes) -> str:
    return cut_text(value.decode("latin-1"), _MAX_SHOWN_BYTES)


async def _read_body(receive: Receive) -> bytes:
    """The whole body, whose size the server bounds.

    Raises `_ClientGoneError` when the connection ends first: what came of an incomplete request is no request, even
    where it happens to be valid (RFC 9112 section 8).
    """
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGoneError
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


# The constant part of the headers is encoded once; only ids and the moment differ between records.
_CONSTANT_HEADERS: Final = [
    (header_names.CE_SPECVERSION, b"1.0"),
    (header_names.CE_TYPE, TYPE_REQUESTED.encode()),
    (header_names.CE_SOURCE, EVENT_SOURCE.encode()),
    (header_names.CONTENT_TYPE, b"application/json"),
    (header_names.TENANT, DEFAULT_TENANT.encode()),
]
_PRIORITY_HEADER: Final = {priority: (header_names.PRIORITY, priority.value.encode()) for priority in Priority}


def _record_headers(
    received: _RequestHeaders, *, request_id: str, priority: Priority, moment: datetime
) -> list[tuple[str, bytes]]:
    """The same headers as `cloud_event_headers` and `render_envelope` give, without their work for each record."""
    time_text = format_time(moment).encode()
    encoded_id = request_id.encode()
    rendered = [
        *_CONSTANT_HEADERS,
        (header_names.CE_ID, encoded_id),
        (header_names.CE_SUBJECT, encoded_id),
        (header_names.CE_TIME, time_text),
        (header_names.FIRST_SEEN, time_text),
        _PRIORITY_HEADER[priority],
    ]
    if received.traceparent is not None and _is_plain(received.traceparent):
        rendered.append((header_names.TRACEPARENT, received.traceparent))
        if received.tracestate is not None and _is_plain(received.tracestate):
            rendered.append((header_names.TRACESTATE, received.tracestate))
    return rendered


def _is_plain(value: bytes) -> bool:
    return len(value) <= _MAX_TRACE_BYTES and value.isascii()


async def _send_accepted(send: Send, *, request_id: str, base: str, correlation_id: str) -> None:
    status_url = f"{base}v1/generations/{request_id}".encode()
    body = b'{"request_id":"%s","status":"queued","status_url":"%s"}' % (request_id.encode(), status_url)
    await send(
        {
            "type": "http.response.start",
            "status": 202,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"location", status_url),
                (b"retry-after", b"%d" % RETRY_AFTER_SECONDS),
                (CORRELATION_ID_HEADER, correlation_id.encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def _send_problem(send: Send, problem: Problem, *, correlation_id: str) -> None:
    body = problem.render(correlation_id=correlation_id, instance=PATH)
    extra = [(name.encode(), value.encode("latin-1", "replace")) for name, value in problem.headers]
    await send(
        {
            "type": "http.response.start",
            "status": problem.status.value,
            "headers": [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", b"%d" % len(body)),
                (CORRELATION_ID_HEADER, correlation_id.encode()),
                *extra,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _unavailable(detail: str) -> Problem:
    return Problem(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code=ProblemCode.QUEUE_UNAVAILABLE,
        detail=detail,
        headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
    )


def _bad_header(problem: FieldProblem) -> Problem:
    return Problem(
        status=HTTPStatus.BAD_REQUEST, code=ProblemCode.INVALID_REQUEST, detail=str(problem), fields=[problem]
    )


def _method_not_allowed(method: str) -> Problem:
    return Problem(
        status=HTTPStatus.METHOD_NOT_ALLOWED,
        code=ProblemCode.METHOD_NOT_ALLOWED,
        detail=f"{method} is not allowed at {PATH}; POST a request, or GET {PATH}/{{request_id}}",
        headers=[("allow", "POST")],
    )


def _internal() -> Problem:
    return Problem(
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        code=ProblemCode.INTERNAL,
        detail=f"the gateway failed on this request; {_UNKNOWN_OUTCOME}",
    )
