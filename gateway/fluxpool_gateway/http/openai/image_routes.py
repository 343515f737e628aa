"""`POST /v1/images/generations`: submits a task, waits for its end and answers with the images.

Owns what a client that waits may expect: how long, what becomes of the task when it goes away, and what it may repeat.
"""

import asyncio
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final

import structlog
from fastapi import APIRouter, Header, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from fluxpool_gateway.http.openai.ending import (
    MAX_WAIT_SECONDS,
    WaitEnd,
    ping_seconds,
    read_success,
    read_timeout_seconds,
    wait_seconds,
    waiting_for_end,
)
from fluxpool_gateway.http.openai.image_request import ImageRequest, ResponseFormat, in_openai_words, to_native
from fluxpool_gateway.http.openai.image_response import FinishedImages, ImagesResponse, PartialImages
from fluxpool_gateway.http.problem import ProblemCode, ProblemError, problems
from fluxpool_gateway.http.request_context import EVENT_STREAM_HEADERS, Receive, Scope, Send, status_url_of
from fluxpool_gateway.http.routes import NO_STORE, Services, WithServices
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.http.task_routes import base_of
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.images.routes import stored_image
from fluxpool_gateway.live.previews import PreviewWatch, previews_until
from fluxpool_gateway.store.task_state import TaskKey
from fluxpool_gateway.tasks.canceling import CancelWish
from fluxpool_gateway.tasks.producer import DeliveryError

PATH: Final = "/v1/images/generations"
_SHOULD_RETRY: Final = "x-should-retry"
"""The OpenAI SDKs repeat every 408, 409, 429 and 5xx, unless this header says otherwise."""
_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    400: "A value is not allowed, or a worker refused the task; `error.param` names the field.",
    409: "The task was canceled; or another request with this Idempotency-Key is in progress.",
    410: "A file is no longer stored.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The Idempotency-Key was used for another request.",
    429: "A limit of the tenant is reached, or the task would wait too long; `error.message` names the limit.",
    500: "The task failed.",
    503: "The queue, the task store or the image store does not answer.",
    504: "The task did not end in time, and goes on: `Location` has the address of its state. Or it expired.",
}

logger = structlog.stdlib.get_logger(__name__)

router = APIRouter()


@router.post(
    PATH,
    response_model=ImagesResponse,
    responses={
        200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "The images."},
        **problems(_PROBLEMS),
    },
    summary="Generate images as with the OpenAI API",
    **requires(KeyScope.SUBMIT, KeyScope.READ),
)
async def create_images(
    wanted: ImageRequest,
    request: Request,
    services: WithServices,
    caller: WithCaller,
    idempotency_key: Annotated[
        str, Header(alias="Idempotency-Key", description="Repeats with the same key wait for the same task.")
    ] = "",
) -> Response:
    """Answers when the task has ended. Without an `Idempotency-Key` a client that disconnects cancels it."""
    submission: Submission = request.app.submission
    native = to_native(wanted, qualities=submission.qualities)
    try:
        request_id, more = await submission.submit(native.request, caller, request.scope["headers"])
    except ProblemError as problem:
        raise in_openai_words(problem, wanted) from problem
    task = _WaitedTask(
        request_id=request_id,
        wanted=wanted,
        warnings=native.warnings,
        size=f"{native.request.width}x{native.request.height}",
        request=request,
        services=services,
        caller=caller,
        is_repeatable=bool(idempotency_key),
    )
    response = _EventStream(task) if wanted.stream else await task.answer()
    for name, value in more:
        response.headers[name] = value
    return response


@dataclass(frozen=True, slots=True, kw_only=True)
class _WaitedTask:
    """A submitted task and the client that waits for it."""

    request_id: str
    wanted: ImageRequest
    warnings: tuple[str, ...]
    size: str
    """Of the images, WIDTHxHEIGHT in pixels."""
    request: Request
    services: Services
    caller: Caller
    is_repeatable: bool
    """The request has a key: a repeat of it is this same task."""

    async def answer(self) -> Response:
        """The images in one response; raises `ProblemError` with the task's id."""
        timeout = read_timeout_seconds(self.request.scope["headers"])
        try:
            async with waiting_for_end(self.request_id, self.request, self.services, self.caller) as within:
                end = await within(wait_seconds(timeout))
            await self._check(end)
            images = await self.images()
        except ProblemError as problem:
            raise self.about_task(problem) from problem
        parts = []
        for part in images.body():
            parts.append(part)
            # Encoding an image takes milliseconds; others are answered in between.
            await asyncio.sleep(0)
        return Response(b"".join(parts), media_type="application/json", headers=NO_STORE)

    async def stream(self, send: Send) -> None:
        """Send the body of the response: pings and previews, then an event for each image, or one with a problem."""
        try:
            key = TaskKey(self.request_id, self.caller.tenant)
            watching = self.services.previews.watch(key) if self.wanted.partial_images else nullcontext()
            with watching as watch:
                await self._send_until_end(send, watch)
            for event in (await self.images()).events():
                await _send_part(send, event)
        except ProblemError as problem:
            await _send_part(send, self._as_event(self.about_task(problem)))

    async def _send_until_end(self, send: Send, watch: PreviewWatch | None) -> None:
        """Raises `ProblemError`, too, when the client is gone."""
        partial = PartialImages(wanted=self.wanted, size=self.size)
        async with waiting_for_end(self.request_id, self.request, self.services, self.caller) as within:
            loop = asyncio.get_running_loop()
            until = loop.time() + MAX_WAIT_SECONDS
            pause = ping_seconds(read_timeout_seconds(self.request.scope["headers"]))
            end = None
            while end is None and loop.time() < until:
                await _send_part(send, KEEPALIVE_COMMENT)
                waiting = asyncio.ensure_future(within(min(pause, until - loop.time())))
                async with aclosing(previews_until(waiting, watch)) as previews:
                    async for preview in previews:
                        if (event := partial.event(preview, now=datetime.now(UTC))) is not None:
                            await _send_part(send, event)
                end = waiting.result()
        await self._check(end)

    async def images(self) -> FinishedImages:
        """What the task came to; raises `ProblemError`."""
        found = await self.services.lookup.find(self.request_id, self.caller)
        result = read_success(found, self.request_id)
        files = []
        # Events have no images without their files.
        if self.wanted.stream or self.wanted.response_format is ResponseFormat.B64_JSON:
            for image in result.images:
                file = await stored_image(self.services.objects, image.object, self.caller, request_id=self.request_id)
                if file is None:
                    detail = f"image {image.index} of task {self.request_id} is not stored, or no longer"
                    raise ProblemError(ProblemCode.GONE, detail)
                files.append(file)
        return FinishedImages(
            wanted=self.wanted,
            warnings=self.warnings,
            request_id=self.request_id,
            status_url=self._status_url,
            result=result,
            files=tuple(files),
            now=datetime.now(UTC),
        )

    def about_task(self, problem: ProblemError) -> ProblemError:
        """The problem with the task's id and address, and whether the client may repeat its request.

        A repeat without a key would be a second task, and one that has ended ends the same with its key.
        """
        may_repeat = self.is_repeatable and problem.status is HTTPStatus.SERVICE_UNAVAILABLE
        return ProblemError(
            problem.code,
            problem.detail,
            fields=problem.fields,
            headers=[
                *problem.headers,
                ("location", self._status_url),
                (_SHOULD_RETRY, "true" if may_repeat else "false"),
            ],
            status=problem.status,
            request_id=self.request_id,
        )

    @property
    def _status_url(self) -> str:
        return status_url_of(self.request_id, base=base_of(self.request, self.services))

    async def _check(self, end: WaitEnd | None) -> None:
        """Raises `ProblemError` when the client is gone, or another process answers it."""
        if end is WaitEnd.CLIENT_GONE and not self.is_repeatable:
            # No client can fetch the images: it does not know the task's id.
            await self._cancel()
            raise ProblemError(ProblemCode.TASK_CANCELED, "the client closed the connection before the task ended")
        if end is WaitEnd.SERVER_STOPPING and self.is_repeatable:
            detail = f"the gateway is stopping while task {self.request_id} goes on; repeat the request with its key"
            raise ProblemError(ProblemCode.WAIT_TIMEOUT, detail, status=HTTPStatus.SERVICE_UNAVAILABLE)

    async def _cancel(self) -> None:
        wish = CancelWish(requested_by=self.caller.name, reason="the client closed the connection that waited for it")
        try:
            found = await self.services.lookup.find(self.request_id, self.caller)
            await self.services.canceling.cancel([(self.request_id, found)], wish)
        except (ProblemError, DeliveryError) as error:
            logger.warning("abandoned_task_not_canceled", request_id=self.request_id, reason=str(error))

    def _as_event(self, problem: ProblemError) -> bytes:
        self.services.metrics.count_refusal(problem.code)
        document = problem.render(correlation_id=self.request.scope["fluxpool.correlation_id"], instance=PATH)
        return format_sse_event(event="error", data_str=document.decode())


class _EventStream(Response):
    """Server-sent events of a task. Not Starlette's, which cancels the sender when the client is gone."""

    def __init__(self, task: _WaitedTask) -> None:
        super().__init__(status_code=HTTPStatus.OK)
        self._task = task
        self.raw_headers = list(EVENT_STREAM_HEADERS)

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:  # type: ignore[override]
        """Send the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._task.stream(send)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_part(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})
