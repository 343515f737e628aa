"""`POST /v1/generations`, the hot route, and `PUT` of an id: a plain ASGI application.

A framework's route costs more than everything else a submission does, hence raw ASGI here. 202 is sent only after the
broker has acknowledged the record. Owns the order: headers, body, idempotency (`tasks.idempotency`), partition, record
(`tasks.producer`). The task continues in the projector, and with a worker.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import structlog

from fluxpool_contract.header_names import TRACEPARENT, TRACESTATE
from fluxpool_contract.kafka import TopicNames
from fluxpool_contract.messages import Quality, idempotent_request_id, new_request_id, task_digest
from fluxpool_contract.problems import FieldProblem, summarize
from fluxpool_contract.tenants import NO_TENANT, TenantTrust
from fluxpool_gateway.http.generation_request import (
    MAX_BODY_BYTES,
    GenerationRequest,
    body_too_large,
    check_idempotency_key,
    check_image_folder,
    check_quality,
    parse_request,
    render_headers,
    render_task,
)
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, invalid_header, unavailable
from fluxpool_gateway.http.request_context import (
    PATH,
    ClientGoneError,
    RawPairs,
    Receive,
    RequestHeaders,
    Scope,
    Send,
    base_url,
    check_content_encoding,
    check_content_type,
    correlation_id_of,
    read_body,
    read_headers,
    send_accepted,
    send_problem,
)
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller, KeyLimit
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.presets.choosing import Presets
from fluxpool_gateway.store.task_state import TaskKey, TaskState
from fluxpool_gateway.tasks.idempotency import UnwrittenError
from fluxpool_gateway.tasks.limits import TaskAdmission, TaskQuotas, TaskWebhooks
from fluxpool_gateway.tasks.lookup import RecentTasks
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure, RecordSink
from fluxpool_transport.partitioner import LoadAwarePartitioner

Once = Callable[[TaskKey, str, Callable[[], Awaitable[None]]], Awaitable[None]]
PartitionCounts = Callable[[str], int | None]

_CHOSEN_ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Canonical, so that one id has one spelling."""
BATCH_KEY: Final = "idempotency_key"
"""Field of a request in a batch, in place of the header."""
_NOT_IN_A_REQUEST: Final = ("request_id", "parent_id")
"""Fields that a task has and a request has not."""
_UNKNOWN_OUTCOME: Final = (
    "whether it was accepted is unknown; repeat it with the same Idempotency-Key, which cannot make a second task"
)

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The route; one instance serves one process."""

    admit: Callable[[bytes | None], Awaitable[Caller]]
    """Says who calls by the `Authorization` header, as `Gate.admit` does."""
    producer: RecordSink
    partitioner: LoadAwarePartitioner
    partition_counts: PartitionCounts
    """How many partitions a topic has, None while that is unknown."""
    recent: RecentTasks
    metrics: GatewayMetrics
    once: Once
    """Writes the record of a request with a key, as `Idempotency.once` does."""
    topics: TopicNames
    qualities: Collection[Quality] = ()
    admission: TaskAdmission | None = None
    """Refuses requests that would wait too long for themselves; None: they are accepted."""
    presets: Presets = field(default_factory=Presets)
    models_of: Callable[[str], Sequence[frozenset[str]]] = lambda _topic: ()
    """The names of the model of each pool that serves a topic; empty while none is known."""
    quotas: TaskQuotas | None = None
    """The limits of tenants and keys; None where there are none."""
    trust: TenantTrust = field(default_factory=TenantTrust)
    """Proves to the projector and to workers whose a task is."""
    public_url: str | None
    webhooks: TaskWebhooks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> HTTPStatus | None:
        """Answer one request; a path that goes on holds the id. Returns the status, None when no client reads it."""
        headers = RequestHeaders()
        chosen_id = scope["path"][len(PATH) + 1 :]
        status = HTTPStatus.ACCEPTED
        try:
            read_headers(scope["headers"], into=headers)
            caller = await self.admit(headers.authorization)
            caller.require(KeyScope.SUBMIT)
            # Only its own record uses up a limit, not one that an equal request has written.
            more: list[tuple[str, str]] = []
            if chosen_id:
                request_id = chosen_id
                if not await self._put(chosen_id, headers, receive, caller, more):
                    status = HTTPStatus.OK
            else:
                request_id = await self._submit(headers, receive, caller, more)
        except ClientGoneError:
            return None
        except ProblemError as error:
            problem = error
        except Exception:  # any failure must be answered, or the client waits for ever
            logger.exception("submission_failed")
            problem = _failed()
        else:
            base = base_url(public_url=self.public_url, scheme=scope["scheme"], host=headers.host)
            correlation_id = request_id if headers.x_request_id is None else correlation_id_of(headers.x_request_id)
            await send_accepted(
                scope, send, request_id=request_id, base=base, correlation_id=correlation_id, more=more, status=status
            )
            return status
        if chosen_id:
            problem = _about_the_id(problem)
        self.metrics.count_refusal(problem.code)
        correlation_id = correlation_id_of(headers.x_request_id)
        await send_problem(send, problem, correlation_id=correlation_id, instance=scope["path"])
        return problem.status

    async def submit(
        self, request: GenerationRequest, caller: Caller, raw_headers: RawPairs
    ) -> tuple[str, Sequence[tuple[str, str]]]:
        """Write the task of a request that another route has read; returns its id and headers of the response.

        Raises `ProblemError` as a submission does.
        """
        headers = RequestHeaders()
        read_headers(raw_headers, into=headers)
        more: list[tuple[str, str]] = []
        self._check(request, caller)
        return await self._write(headers, request, caller, key=headers.idempotency_key, more=more), more

    async def retry(
        self, ended: TaskState, body: str, caller: Caller, raw_headers: RawPairs
    ) -> tuple[str, Sequence[tuple[str, str]]]:
        """Write a new task with the inputs of one that has ended; returns its id and headers of the response.

        The id follows from the end of the task, so that a repeat is the same task. Raises `ProblemError` as a
        submission does.
        """
        headers = RequestHeaders()
        read_headers(raw_headers, into=headers)
        fields = json.loads(body)
        for name in _NOT_IN_A_REQUEST:
            fields.pop(name, None)
        # The parameters of its preset are in the task: the new one has the same, whatever the preset is by now.
        kept = {name: fields.pop(name) for name in ("preset", "preset_choice") if name in fields}
        request = self._parse(json.dumps(fields | {"priority": ended.priority}).encode(), caller)
        tenant = caller.tenant if ended.tenant == NO_TENANT else ended.tenant
        # No Idempotency-Key has blanks.
        request_id = idempotent_request_id(tenant, f"retry of {ended.request_id} after {ended.version}")
        value = render_task(request, request_id, parent_id=ended.request_id, more=kept)
        more: list[tuple[str, str]] = []
        await self._produce_once(
            headers, request, tenant=tenant, limit=caller.limit, request_id=request_id, value=value, more=more
        )
        return request_id, more

    async def _submit(
        self, headers: RequestHeaders, receive: Receive, caller: Caller, more: list[tuple[str, str]]
    ) -> str:
        """Check the request, produce its record, await the acknowledgement; returns the task's id.

        Adds headers of the response to `more`.
        """
        request = await self._read(headers, receive, caller)
        return await self._write(headers, request, caller, key=headers.idempotency_key, more=more)

    async def submit_each(
        self, requests: Sequence[dict[str, Any]], caller: Caller, raw_headers: RawPairs
    ) -> tuple[Sequence[str | ProblemError], Sequence[Sequence[tuple[str, str]]]]:
        """Submit each request of a batch as if it came alone, all at once, so that Kafka gets them in one batch.

        Returns the id of each task or why there is none, and the headers of each response. Raises `ProblemError` (400).
        """
        headers = RequestHeaders()
        read_headers(raw_headers, into=headers)
        if headers.idempotency_key is not None:
            raise invalid_header("Idempotency-Key", f"is not understood here; give each request its own {BATCH_KEY}")
        mores: list[list[tuple[str, str]]] = [[] for _ in requests]
        answers = await asyncio.gather(
            *(self._submit_one(headers, fields, caller, more) for fields, more in zip(requests, mores, strict=True)),
            return_exceptions=True,
        )
        outcomes: list[str | ProblemError] = []
        for answer in answers:
            if isinstance(answer, (str, ProblemError)):
                outcomes.append(answer)
            elif isinstance(answer, Exception):
                # The others are not to be asked for again because of it.
                logger.error("submission_failed", exc_info=answer)
                outcomes.append(_failed())
            else:
                raise answer
        return outcomes, mores

    async def _submit_one(
        self, headers: RequestHeaders, fields: dict[str, Any], caller: Caller, more: list[tuple[str, str]]
    ) -> str:
        key = fields.get(BATCH_KEY)
        if key is not None and not isinstance(key, str):
            problem = FieldProblem(BATCH_KEY, "must be a text")
            raise ProblemError(
                ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=HTTPStatus.UNPROCESSABLE_ENTITY
            )
        body = json.dumps({name: value for name, value in fields.items() if name != BATCH_KEY}, ensure_ascii=False)
        encoded = body.encode(errors="surrogatepass")
        if len(encoded) > MAX_BODY_BYTES:
            raise body_too_large()
        request = self._parse(encoded, caller)
        # What is no ASCII is no key either, however it is encoded.
        raw_key = None if key is None else key.encode(errors="replace")
        return await self._write(headers, request, caller, key=raw_key, more=more)

    async def _write(
        self,
        headers: RequestHeaders,
        request: GenerationRequest,
        caller: Caller,
        *,
        key: bytes | None,
        more: list[tuple[str, str]],
    ) -> str:
        """Produce the record of a request, once where it has a key; returns the task's id and adds to `more`."""
        tenant = caller.tenant
        if key is None:
            request_id = new_request_id()
            request, value = self._render(request, request_id, caller)
            try:
                await self._admit_and_produce(
                    headers, request, tenant=tenant, limit=caller.limit, request_id=request_id, value=value, more=more
                )
            except UnwrittenError as error:
                raise error.answer from error
            return request_id
        request_id = idempotent_request_id(tenant, check_idempotency_key(key))
        request, value = self._render(request, request_id, caller)
        await self._produce_once(
            headers, request, tenant=tenant, limit=caller.limit, request_id=request_id, value=value, more=more
        )
        return request_id

    async def _put(
        self,
        request_id: str,
        headers: RequestHeaders,
        receive: Receive,
        caller: Caller,
        more: list[tuple[str, str]],
    ) -> bool:
        """Submit under an id that the caller chose; whether it was free, and not that of an equal request."""
        if not _CHOSEN_ID.fullmatch(request_id):
            problem = FieldProblem(
                "request_id", "must be a UUID in lower case, as 01890a5d-ac96-774b-bcce-b302099a8057"
            )
            raise ProblemError(
                ProblemCode.INVALID_REQUEST, str(problem), fields=[problem], status=HTTPStatus.UNPROCESSABLE_ENTITY
            )
        request, value = self._render(await self._read(headers, receive, caller), request_id, caller)
        return await self._produce_once(
            headers, request, tenant=caller.tenant, limit=caller.limit, request_id=request_id, value=value, more=more
        )

    async def _read(self, headers: RequestHeaders, receive: Receive, caller: Caller) -> GenerationRequest:
        """The request in the body; raises `ProblemError` when it is none that this caller may make."""
        check_content_type(headers.content_type)
        check_content_encoding(headers.content_encoding)
        return self._parse(await read_body(receive), caller)

    def _parse(self, body: bytes, caller: Caller) -> GenerationRequest:
        """The request, which this gateway and the caller's rights allow."""
        request = parse_request(body)
        self._check(request, caller)
        return request

    def _check(self, request: GenerationRequest, caller: Caller) -> None:
        if request.webhook is not None:
            self.webhooks.check(request.webhook)
        # With a preset once its parameters are known, by `_render`.
        if request.preset is None:
            self._allow(request, caller)

    def _allow(self, request: GenerationRequest, caller: Caller) -> None:
        check_quality(request, self.qualities)
        check_image_folder(request, caller.tenant)
        caller.rights.check(request)
        if caller.rights.models is not None:
            caller.rights.check_model(request, self.models_of(request.priority.topic(self.topics)))

    def _render(self, request: GenerationRequest, request_id: str, caller: Caller) -> tuple[GenerationRequest, bytes]:
        """The request with the parameters of its preset, if it has one, and the value of its record."""
        if request.preset is None:
            return request, render_task(request, request_id)
        check = partial(self._allow, caller=caller)
        request, choice = self.presets.apply(request, request_id, tenant=caller.tenant, check=check)
        return request, render_task(request, request_id, more={"preset_choice": choice.model_dump(exclude_none=True)})

    async def _produce_once(
        self,
        headers: RequestHeaders,
        request: GenerationRequest,
        *,
        tenant: str,
        limit: KeyLimit | None,
        request_id: str,
        value: bytes,
        more: list[tuple[str, str]],
    ) -> bool:
        """Write the record unless an equal request has written it; whether it did. Raises as `Idempotency.once`."""
        is_new = False

        async def produce() -> None:
            nonlocal is_new
            await self._admit_and_produce(
                headers, request, tenant=tenant, limit=limit, request_id=request_id, value=value, more=more
            )
            is_new = True

        await self.once(TaskKey(request_id, tenant), task_digest(value), produce)
        return is_new

    async def _admit_and_produce(
        self,
        headers: RequestHeaders,
        request: GenerationRequest,
        *,
        tenant: str,
        limit: KeyLimit | None,
        request_id: str,
        value: bytes,
        more: list[tuple[str, str]],
    ) -> None:
        """Write the record within the limits of request, tenant and key; raises as `_produce` does."""
        try:
            # First: a request that would wait too long uses up no limit of the tenant.
            if request.limits_wait and self.admission is not None:
                more += self.admission.admit(request, request.priority.topic(self.topics))
            if request.webhook is not None:
                await self.webhooks.prepare(request.webhook, tenant=tenant)
            if self.quotas is not None:
                more += await self.quotas.admit(tenant, [request_id], limit=limit)
        except ProblemError as error:
            raise UnwrittenError(error) from error
        try:
            await self._produce(headers, request, tenant=tenant, request_id=request_id, value=value)
        except UnwrittenError:
            if self.quotas is not None:
                self.quotas.release(tenant, [request_id])
            raise

    async def _produce(
        self, headers: RequestHeaders, request: GenerationRequest, *, tenant: str, request_id: str, value: bytes
    ) -> None:
        """Write the record.

        Raises `UnwrittenError` when it certainly is not in Kafka, `ProblemError` when that is unknown.
        """
        topic = request.priority.topic(self.topics)
        partitions = self.partition_counts(topic)
        if not partitions:
            raise UnwrittenError(_unavailable(f"the topic {topic} is not known yet or no broker answers; try again"))
        accepted_at = datetime.fromtimestamp(time.time(), UTC)
        work = request.relative_work
        trace = ((TRACEPARENT, headers.traceparent), (TRACESTATE, headers.tracestate))
        partition = self.partitioner.choose(topic, partitions=partitions, work=work)
        begun_seconds = time.perf_counter()
        try:
            offset = await self.producer.send(
                topic=topic,
                partition=partition,
                key=request_id.encode(),
                value=value,
                headers=render_headers(
                    request_id,
                    request.priority,
                    tenant=tenant,
                    tenant_proof=self.trust.prove(tenant=tenant, request_id=request_id),
                    accepted_at=accepted_at,
                    deadline_s=request.deadline_s,
                    trace=trace,
                ),
            )
        except DeliveryError as error:
            if error.failure is DeliveryFailure.QUEUE_FULL:
                raise UnwrittenError(_unavailable(f"{error}; nothing was accepted, try again")) from error
            reason = f"the request was not confirmed ({error}): {_UNKNOWN_OUTCOME}"
            raise _unavailable(reason) from error
        self.metrics.count_accepted(request.priority, produce_seconds=time.perf_counter() - begun_seconds)
        self.partitioner.acknowledged(topic, partition=partition, offset=offset, work=work)
        self.recent.add(
            TaskKey(request_id, tenant),
            accepted_at=accepted_at,
            priority=request.priority.value,
            group_id=request.group_id,
            place=(topic, partition, offset),
        )


def _about_the_id(problem: ProblemError) -> ProblemError:
    """The refusal of a request whose id does what a key does elsewhere."""
    fields = problem.fields
    status = problem.status
    detail = problem.detail.replace("Idempotency-Key", "id")
    if problem.code in {ProblemCode.IDEMPOTENCY_CONFLICT, ProblemCode.IDEMPOTENCY_IN_PROGRESS, ProblemCode.GONE}:
        fields = [FieldProblem("request_id", field.message.replace("key", "id")) for field in fields]
        detail = summarize(fields)
        status = status if problem.code is ProblemCode.GONE else HTTPStatus.CONFLICT
    return ProblemError(problem.code, detail, fields=fields, headers=problem.headers, status=status, wait=problem.wait)


def _failed() -> ProblemError:
    return ProblemError(ProblemCode.INTERNAL, f"the gateway failed on this request; {_UNKNOWN_OUTCOME}")


def _unavailable(detail: str) -> ProblemError:
    return unavailable(ProblemCode.QUEUE_UNAVAILABLE, detail)
