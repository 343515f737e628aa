"""The wait for the end of a task, and what each end is answered with. The wait itself is `tasks.waiting`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Final, assert_never

from fastapi import Request

from fluxpool_contract.messages import GenerationResult
from fluxpool_contract.problems import ErrorClass, FieldProblem
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.http.request_context import HALF_CLOSED, PING_SECONDS, RawPairs, disconnected, find_header
from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.task_routes import has_ended
from fluxpool_gateway.identity.caller import Caller
from fluxpool_gateway.store.task_state import TaskState, TaskStatus
from fluxpool_gateway.tasks.lookup import RecentTask
from fluxpool_gateway.tasks.view import read_result

MAX_WAIT_SECONDS: Final = 600.0
"""The read timeout of the OpenAI SDKs, unless they are told another."""
MARGIN_SECONDS: Final = 5.0
"""The answer is sent so long before the client gives up, who would repeat the request."""
_STORE_PAUSE_SECONDS: Final = 1.0
_READ_TIMEOUT_HEADERS: Final = (b"x-stainless-read-timeout", b"x-stainless-timeout")
"""Of the OpenAI SDKs for Python and for other languages; in seconds."""


class WaitEnd(StrEnum):
    """Why a wait is over."""

    TASK_ENDED = "task_ended"
    CLIENT_GONE = "client_gone"
    SERVER_STOPPING = "server_stopping"


Within = Callable[[float], Awaitable[WaitEnd | None]]


def read_timeout_seconds(headers: RawPairs) -> float | None:
    """How long the client waits for a byte, where it says so."""
    for name in _READ_TIMEOUT_HEADERS:
        raw = find_header(headers, name)
        try:
            seconds = float(raw or b"")
        except ValueError:
            continue
        if 0 < seconds < float("inf"):
            return seconds
    return None


def wait_seconds(read_timeout: float | None) -> float:
    """The longest wait for a client that gets nothing meanwhile."""
    if read_timeout is None:
        return MAX_WAIT_SECONDS
    return min(MAX_WAIT_SECONDS, read_timeout - min(MARGIN_SECONDS, read_timeout / 2))


def ping_seconds(read_timeout: float | None) -> float:
    """Between two signs of life for a client that reads events."""
    return PING_SECONDS if read_timeout is None else min(PING_SECONDS, read_timeout / 3)


@asynccontextmanager
async def waiting_for_end(
    request_id: str, request: Request, services: Services, caller: Caller
) -> AsyncIterator[Within]:
    """A function that waits for so many seconds at most, and says why the wait is over; None while it is not."""
    waits: dict[asyncio.Future[object], WaitEnd] = {
        asyncio.ensure_future(_task_ended(request_id, services, caller)): WaitEnd.TASK_ENDED,
        asyncio.ensure_future(disconnected(request.receive)): WaitEnd.CLIENT_GONE,
        asyncio.ensure_future(services.stopping.wait()): WaitEnd.SERVER_STOPPING,
    }
    half_closed = request.scope.get("state", {}).get(HALF_CLOSED)
    if half_closed is not None:
        # Mostly a client that is gone: none of the OpenAI clients closes only its sending side.
        waits[asyncio.ensure_future(half_closed.wait())] = WaitEnd.CLIENT_GONE

    async def within(seconds: float) -> WaitEnd | None:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return next((end for wait, end in waits.items() if wait in done), None)

    try:
        yield within
    finally:
        for wait in waits:
            wait.cancel()
        # An error of the wait for the task repeats when it is read, which answers with it.
        await asyncio.gather(*waits, return_exceptions=True)


async def _task_ended(request_id: str, services: Services, caller: Caller) -> None:
    while True:
        try:
            found = await services.lookup.find(request_id, caller)
        except ProblemError as problem:
            if problem.code is not ProblemCode.STORE_UNAVAILABLE:
                raise
            # It is accepted: to fail now would make clients submit it again.
            await asyncio.sleep(_STORE_PAUSE_SECONDS)
        else:
            if has_ended(found):
                return
            await services.waits.later_than(found.key, found.version if isinstance(found, TaskState) else -1)


def read_success(found: TaskState | RecentTask, request_id: str) -> GenerationResult:
    """The result of a task that succeeded; raises `ProblemError` for every other state."""
    if not has_ended(found):
        raise ProblemError(
            ProblemCode.WAIT_TIMEOUT,
            f"task {request_id} is {TaskStatus.QUEUED if isinstance(found, RecentTask) else found.status}, and goes "
            "on; read its state at the address in Location, or send a longer timeout",
        )
    result = read_result(found)
    error = None if result is None else result.error
    reason = "its result names no reason" if error is None else error.message
    match found.status:
        case TaskStatus.SUCCEEDED:
            if result is not None and result.images:
                return result
            raise ProblemError(ProblemCode.TASK_FAILED, f"the result of task {request_id} has no images")
        case TaskStatus.FAILED:
            is_refused = error is not None and error.error_class in _REFUSALS
            code = ProblemCode.TASK_REJECTED if is_refused else ProblemCode.TASK_FAILED
            fields = []
            if error is not None and error.field:
                fields = [FieldProblem(error.field, reason.removeprefix(f"{error.field}: "))]
            raise ProblemError(code, f"task {request_id} failed: {reason}", fields=fields)
        case TaskStatus.EXPIRED:
            raise ProblemError(ProblemCode.TASK_EXPIRED, f"task {request_id} expired: {reason}")
        case TaskStatus.CANCELED:
            raise ProblemError(ProblemCode.TASK_CANCELED, f"task {request_id} ended: {reason}")
        case TaskStatus.QUEUED | TaskStatus.RUNNING | TaskStatus.DELETED:
            raise AssertionError(found.status)
        case _:
            assert_never(found.status)


_REFUSALS: Final = frozenset({ErrorClass.INVALID, ErrorClass.REJECTED})
"""A repeat of the same request ends in the same way."""
