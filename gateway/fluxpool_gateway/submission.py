"""`POST /v1/generations`: the one hot route, as a plain ASGI application.

A framework's route costs more than everything else a submission does, hence raw ASGI here and nowhere else. 202 is
said only after the broker has acknowledged the record.
"""

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, Protocol

import structlog

from fluxpool_contract import headers as names
from fluxpool_contract.derived import idempotent_request_id, new_request_id, task_digest
from fluxpool_contract.headers import DEFAULT_TENANT, TYPE_REQUESTED, format_time
from fluxpool_contract.problems import FieldProblem
from fluxpool_contract.topics import TopicNames
from fluxpool_gateway.exchange import EXCHANGE_ID_HEADER, base_url, exchange_id
from fluxpool_gateway.generation_request import (
    MAX_BODY_BYTES,
    Priority,
    body_too_large,
    check_idempotency_key,
    parse_request,
    render_task,
)
from fluxpool_gateway.problem import MEDIA_TYPE, Problem, ProblemCode, ProblemError
from fluxpool_gateway.recent_tasks import RecentTasks
from fluxpool_gateway.task_producer import DeliveryError, DeliveryFailure
from fluxpool_transport.partition_choice_watch import PartitionChooser

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
DigestLookup = Callable[[str], Awaitable[str | None]]
PartitionCounts = Callable[[str], int | None]

PATH: Final = "/v1/generations"
EVENT_SOURCE: Final = "/fluxpool/gateway"
RETRY_AFTER_SECONDS: Final = 1
_MAX_TRACE_BYTES: Final = 512
_MAX_DRAINED_BYTES: Final = 1024 * 1024
_UNKNOWN_OUTCOME: Final = (
    "whether it was accepted is unknown; repeat it with the same Idempotency-Key, which cannot make a second task"
)

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _RequestHeaders:
    """The headers that the route reads, raw."""

    content_length: bytes | None = None
    content_type: bytes | None = None
    host: bytes | None = None
    idempotency_key: bytes | None = None
    traceparent: bytes | None = None
    tracestate: bytes | None = None
    x_request_id: bytes | None = None


_READ: Final = {field.replace("_", "-").encode(): field for field in _RequestHeaders.__slots__}


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
        chooser: PartitionChooser,
        partition_counts: PartitionCounts,
        recent: RecentTasks,
        stored_digest: DigestLookup,
        topics: TopicNames,
        public_url: str | None,
    ) -> None:
        """`partition_counts` says how many partitions a topic has, None while that is unknown.

        `stored_digest` finds the digest of the body that the store knows under an id.
        """
        self._producer = producer
        self._chooser = chooser
        self._partition_counts = partition_counts
        self._recent = recent
        self._stored_digest = stored_digest
        self._topics = {Priority.STANDARD: topics.tasks, Priority.VIP: topics.tasks_vip}
        self._public_url = public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = _read_headers(scope["headers"])
        try:
            if scope["method"] != "POST":
                raise ProblemError(_method_not_allowed(scope["method"]))
            request_id = await self._submit(headers, receive)
        except ProblemError as error:
            await _send_problem(send, error.problem, exchange=exchange_id(headers.x_request_id))
            return
        except Exception:  # whatever happens here, the client is owed an answer
            logger.exception("submission_failed")
            await _send_problem(send, _internal(), exchange=exchange_id(headers.x_request_id))
            return
        base = base_url(public_url=self._public_url, scheme=scope["scheme"], host=headers.host)
        exchange = request_id if headers.x_request_id is None else exchange_id(headers.x_request_id)
        await _send_accepted(send, request_id=request_id, base=base, exchange=exchange)

    async def _submit(self, headers: _RequestHeaders, receive: Receive) -> str:
        """Check the request, produce its record, await the acknowledgement; returns the task's id."""
        _check_content_type(headers.content_type)
        body = await _read_body(headers.content_length, receive)
        request = parse_request(body)
        if headers.idempotency_key is None:
            request_id, digest = new_request_id(), None
            value = render_task(request, request_id)
        else:
            request_id = idempotent_request_id(DEFAULT_TENANT, check_idempotency_key(headers.idempotency_key))
            value = render_task(request, request_id)
            digest = task_digest(value)
            await self._check_conflict(request_id, digest)
        topic = self._topics[request.priority]
        partitions = self._partition_counts(topic)
        if not partitions:
            raise ProblemError(_unavailable(f"the topic {topic} is not known yet or no broker answers; try again"))
        accepted_at = datetime.fromtimestamp(time.time(), UTC)
        work = request.relative_work
        partition = self._chooser.choose(topic, partitions=partitions, work=work)
        try:
            offset = await self._producer.send(
                topic=topic,
                partition=partition,
                key=request_id.encode(),
                value=value,
                headers=_record_headers(headers, request_id=request_id, priority=request.priority, moment=accepted_at),
            )
        except DeliveryError as error:
            raise ProblemError(_undelivered(error)) from error
        self._chooser.acknowledged(topic, partition=partition, offset=offset, work=work)
        self._recent.add(request_id, accepted_at=accepted_at, priority=request.priority.value, digest=digest)
        return request_id

    async def _check_conflict(self, request_id: str, digest: str) -> None:
        known = await self._stored_digest(request_id)
        if known is None and (recent := self._recent.get(request_id)) is not None:
            # Other processes' requests are seen in the store only, so that it goes before what was accepted here.
            known = recent.digest
        if known is not None and known != digest:
            problem = FieldProblem("Idempotency-Key", "was used for a request with another body; take a new key")
            raise ProblemError(
                Problem(
                    status=HTTPStatus.UNPROCESSABLE_ENTITY,
                    code=ProblemCode.IDEMPOTENCY_CONFLICT,
                    detail=str(problem),
                    fields=[problem],
                )
            )


def _read_headers(raw: Iterable[tuple[bytes, bytes]]) -> _RequestHeaders:
    found = _RequestHeaders()
    for name, value in raw:
        field = _READ.get(name)
        if field is not None:
            setattr(found, field, value)
    return found


def _check_content_type(raw: bytes | None) -> None:
    if raw is None or raw == b"application/json":
        return
    if raw.partition(b";")[0].strip().lower() != b"application/json":
        raise ProblemError(
            Problem(
                status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                code=ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                detail=f"Content-Type {raw.decode('latin-1')} is not understood; send application/json",
                fields=[FieldProblem("Content-Type", "must be application/json")],
                headers=[("accept", "application/json")],
            )
        )


async def _read_body(content_length: bytes | None, receive: Receive) -> bytes:
    """The whole body; raises `ProblemError` (413) when it is too large.

    Reads on for a while then: a connection that is closed on a client that still sends loses the answer as well.
    """
    message = await receive()
    body: bytes = message.get("body", b"")
    size_bytes = len(body)
    while message.get("more_body", False) and size_bytes <= _MAX_DRAINED_BYTES:
        message = await receive()
        chunk: bytes = message.get("body", b"")
        size_bytes += len(chunk)
        if size_bytes <= MAX_BODY_BYTES:
            body += chunk
    if size_bytes > MAX_BODY_BYTES or (content_length is not None and int(content_length) > MAX_BODY_BYTES):
        raise ProblemError(body_too_large())
    return body


# The constant part of the headers is encoded once; only ids and the moment differ between records.
_CONSTANT_HEADERS: Final = [
    (names.CE_SPECVERSION, b"1.0"),
    (names.CE_TYPE, TYPE_REQUESTED.encode()),
    (names.CE_SOURCE, EVENT_SOURCE.encode()),
    (names.CONTENT_TYPE, b"application/json"),
    (names.TENANT, DEFAULT_TENANT.encode()),
]
_PRIORITY_HEADER: Final = {priority: (names.PRIORITY, priority.value.encode()) for priority in Priority}


def _record_headers(
    received: _RequestHeaders, *, request_id: str, priority: Priority, moment: datetime
) -> list[tuple[str, bytes]]:
    """The same headers as `cloud_event_headers` and `render_envelope` give, without their work for each record."""
    time_text = format_time(moment).encode()
    encoded_id = request_id.encode()
    rendered = [
        *_CONSTANT_HEADERS,
        (names.CE_ID, encoded_id),
        (names.CE_SUBJECT, encoded_id),
        (names.CE_TIME, time_text),
        (names.FIRST_SEEN, time_text),
        _PRIORITY_HEADER[priority],
    ]
    if received.traceparent is not None and _is_plain(received.traceparent):
        rendered.append((names.TRACEPARENT, received.traceparent))
        if received.tracestate is not None and _is_plain(received.tracestate):
            rendered.append((names.TRACESTATE, received.tracestate))
    return rendered


def _is_plain(value: bytes) -> bool:
    return len(value) <= _MAX_TRACE_BYTES and value.isascii()


async def _send_accepted(send: Send, *, request_id: str, base: str, exchange: str) -> None:
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
                (EXCHANGE_ID_HEADER, exchange.encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


async def _send_problem(send: Send, problem: Problem, *, exchange: str) -> None:
    body = problem.render(exchange_id=exchange, instance=PATH)
    extra = [(name.encode(), value.encode("latin-1", "replace")) for name, value in problem.headers]
    await send(
        {
            "type": "http.response.start",
            "status": problem.status.value,
            "headers": [
                (b"content-type", MEDIA_TYPE.encode()),
                (b"content-length", b"%d" % len(body)),
                (EXCHANGE_ID_HEADER, exchange.encode()),
                *extra,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _undelivered(error: DeliveryError) -> Problem:
    if error.failure is DeliveryFailure.QUEUE_FULL:
        return _unavailable(f"{error}; nothing was accepted, try again")
    return _unavailable(f"the request was not confirmed ({error}): {_UNKNOWN_OUTCOME}")


def _unavailable(detail: str) -> Problem:
    return Problem(
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code=ProblemCode.QUEUE_UNAVAILABLE,
        detail=detail,
        headers=[("retry-after", str(RETRY_AFTER_SECONDS))],
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
