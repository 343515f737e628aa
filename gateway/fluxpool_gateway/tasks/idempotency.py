"""Exactly one record for one idempotency key: which request writes it, which waits for it, which is refused.

The order of the checks makes it exact. The task store knows what Kafka has; what it does not know yet is in the
reservations (`store.reservations`) that all server processes of a gateway share. A reservation is made before the
record is written and outlives its process. So one body wins, an equal one gets the winner's outcome, another one is
refused at once. Between gateways with databases of their own the task store alone decides, once it has the record.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, assert_never

import structlog

from fluxpool_contract.messages import task_digest
from fluxpool_contract.problems import FieldProblem
from fluxpool_gateway.http.problem import RETRY_AFTER_SECONDS, ProblemCode, ProblemError, unavailable
from fluxpool_gateway.projection.barrier import BarrierNotReachedError
from fluxpool_gateway.store.batches import Batches
from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.reservations import (
    Outcome,
    Purge,
    RecordState,
    ReservationOperation,
    Reserve,
    Settle,
    Verdict,
)
from fluxpool_gateway.store.shared_file import Shared, SharedFileError
from fluxpool_gateway.store.task_state import TaskKey, TaskState, TaskStatus
from fluxpool_gateway.store.task_store import Heartbeat

GRACE_SECONDS: Final = 5.0
"""Time to settle beyond the produce deadline; past it the process of the reservation counts as dead."""
FRESH_SECONDS: Final = 60.0
"""How long after its acknowledgement a task may be missing from the store without counting as lost."""
KEPT_SECONDS: Final = 600.0
"""Reservations of accepted requests are kept so long at least, and until the store has been caught up after them."""
PURGE_INTERVAL_SECONDS: Final = 1.0
HEARTBEAT_CACHED_SECONDS: Final = 1.0
_WAIT_INTERVAL_SECONDS: Final = 0.02
_VERSION_7: Final = re.compile(r"[0-9a-f]{12}7[0-9a-f]{19}")

logger = structlog.stdlib.get_logger(__name__)

NEW_KEY: Final = "use a new key"


class TaskStore(Protocol):
    """The reads of the task store that idempotency needs; `TaskStoreReader` in production."""

    async def find(self, request_id: str, *, tenant: str) -> TaskState | None:
        """The tenant's task with this id as far as it is projected."""

    async def heartbeat(self) -> Heartbeat | None:
        """What the projector last said of itself."""


class UnwrittenError(Exception):
    """Raised by a writer when there certainly is no record; `answer` is the answer to the client."""

    def __init__(self, answer: ProblemError) -> None:
        self.answer = answer
        super().__init__(str(answer))


class Reservations:
    """The reservations for one event loop; close it at the end."""

    def __init__(self, file: Shared) -> None:
        """`file` comes from `reservation_file`, or stands for the tables of PostgreSQL."""
        self._file = file
        self._batches: Batches[ReservationOperation, Outcome] = Batches(
            self._apply, name="reservations", error=SharedFileError
        )

    def apply(self, operation: ReservationOperation) -> asyncio.Future[Outcome]:
        """Apply an operation; the future raises `SharedFileError`."""
        return self._batches.add(operation)

    async def close(self) -> None:
        """Apply what is waiting and close the file."""
        await self._batches.close(self._file.close)

    def _apply(self, operations: Sequence[ReservationOperation]) -> Sequence[Outcome]:
        return self._file.apply(operations, now_ms=_now_ms())


@dataclass(slots=True, eq=False, kw_only=True)
class Idempotency:
    """Deduplicates requests with a key; one instance serves one process."""

    reservations: Reservations
    store: TaskStore
    barrier: Callable[[], Awaitable[None]]
    """Returns once the store has what Kafka has now."""
    deadline_seconds: float
    """The longest wait for Kafka."""
    _running: dict[tuple[TaskKey, str], asyncio.Future[None]] = field(default_factory=dict, init=False)
    """Equal requests of this process wait for one of them; between others the reservations decide."""
    _heartbeat: Heartbeat | None = field(default=None, init=False)
    _heartbeat_expires_at: float = field(default=0.0, init=False)

    async def once(self, key: TaskKey, digest: str, write: Callable[[], Awaitable[None]]) -> None:
        """Return when the record with this key and digest is in Kafka, written by `write` or by another request.

        `write` raises `UnwrittenError` when there is no record, anything else when that is unknown.
        Raises `ProblemError`: 409 while another body is being written, 422 when one was, 503 when it cannot be known.
        """
        # No await between the lookup and the entry, so that of two equal requests one finds the other.
        running = self._running.get((key, digest))
        if running is not None:
            # The client of the first request may go away; its record is written all the same.
            await asyncio.shield(running)
            return
        running = self._running[key, digest] = asyncio.get_running_loop().create_future()
        try:
            await self._once(key, digest, write)
        except BaseException as error:
            unknown = _unavailable("the outcome is unknown")
            running.set_exception(error if isinstance(error, ProblemError) else unknown)
            # Nothing may await it: mark the exception as retrieved, or asyncio logs it as lost.
            running.exception()
            raise
        else:
            running.set_result(None)
        finally:
            del self._running[key, digest]

    async def purge(self) -> None:
        """Remove reservations that the store has made redundant, every second, until cancelled."""
        while True:
            await asyncio.sleep(PURGE_INTERVAL_SECONDS)
            try:
                heartbeat = await self.store.heartbeat()
                if heartbeat is not None and heartbeat.caught_up_at_ms is not None:
                    in_store_ms = heartbeat.caught_up_at_ms - FRESH_SECONDS * 1000
                    before_ms = min(_now_ms() - KEPT_SECONDS * 1000, in_store_ms)
                    await self.reservations.apply(Purge(accepted_before_ms=int(before_ms)))
            except (StoreUnavailableError, SharedFileError) as error:
                logger.warning("reservations_not_purged", reason=str(error))

    async def _once(self, key: TaskKey, digest: str, write: Callable[[], Awaitable[None]]) -> None:
        state = await self._find(key)
        if _is_stored(state, digest):
            return
        # After the store, because a reservation outlives the projection of its record by `KEPT_SECONDS`: what neither
        # has was never accepted.
        verdict = await self._reserve(key, digest)
        if verdict is Verdict.ACCEPTED:
            return
        unwritten = None if verdict is Verdict.GRANTED else RecordState.UNKNOWN
        settled: RecordState | None = unwritten
        try:
            if verdict is Verdict.GRANTED:
                state = await self._find_certainly(key, state)
            if _is_stored(state, digest):
                settled = RecordState.ACCEPTED
            elif state is not None and verdict is Verdict.GRANTED:
                raise _conflict("was used for a request that is no longer stored")
            else:
                # Until the broker answers: a cancellation in mid-write leaves a record that may exist.
                settled = RecordState.UNKNOWN
                await write()
                settled = RecordState.ACCEPTED
        except UnwrittenError as error:
            settled = unwritten
            raise error.answer from error
        finally:
            # Not awaited: the answer need not wait for it. If it is lost, `patience_ms` ends the reservation.
            self.reservations.apply(Settle(key=key, digest=digest, standing=settled))

    async def _reserve(self, key: TaskKey, digest: str) -> Verdict:
        """Whether the record is to be written by this request, or was accepted. Waits for an equal request."""
        loop = asyncio.get_running_loop()
        patience_seconds = self.deadline_seconds + GRACE_SECONDS
        gives_up_at = loop.time() + patience_seconds
        again = False
        while True:
            wanted = Reserve(key=key, digest=digest, patience_ms=int(patience_seconds * 1000), again=again)
            try:
                held = await self.reservations.apply(wanted)
            except SharedFileError as error:
                logger.warning("reservations_unusable", reason=str(error))
                raise _unavailable("the key cannot be reserved; nothing was accepted") from error
            match held.verdict:
                case Verdict.GRANTED | Verdict.GRANTED_AGAIN:
                    return held.verdict
                case Verdict.OTHER_IN_PROGRESS:
                    raise _in_progress()
                case Verdict.OTHER:
                    raise _conflict("was used for a request with another body")
                case Verdict.ACCEPTED:
                    if not await self._is_lost(key, accepted_at_ms=held.settled_at_ms):
                        return Verdict.ACCEPTED
                    again = True
                case Verdict.SAME_IN_PROGRESS:
                    if loop.time() > gives_up_at:
                        raise _unavailable("an equal request is not answered yet; its outcome is unknown")
                    await asyncio.sleep(_WAIT_INTERVAL_SECONDS)
                case _:
                    assert_never(held.verdict)

    async def _find(self, key: TaskKey) -> TaskState | None:
        try:
            return await self.store.find(key.request_id, tenant=key.tenant)
        except StoreUnavailableError as error:
            raise _unreadable(error) from error

    async def _find_certainly(self, key: TaskKey, state: TaskState | None) -> TaskState | None:
        """The task in a store that has whatever the reservations lack; `state` is what it had a moment ago."""
        try:
            if not _is_lately_made(key.request_id) and await self._is_complete():
                return state
            await self.barrier()
        except StoreUnavailableError as error:
            raise _unreadable(error) from error
        except BarrierNotReachedError as error:
            reason = f"whether this key was used is not known yet ({error}); nothing was accepted"
            raise _unavailable(reason) from error
        return await self._find(key)

    async def _is_complete(self) -> bool:
        """Whether the store was caught up with Kafka since it was made: then reservations have all that it lacks."""
        now = asyncio.get_running_loop().time()
        if now >= self._heartbeat_expires_at:
            self._heartbeat = await self.store.heartbeat()
            self._heartbeat_expires_at = now + HEARTBEAT_CACHED_SECONDS
        return self._heartbeat is not None and self._heartbeat.caught_up_at_ms is not None

    async def _is_lost(self, key: TaskKey, *, accepted_at_ms: int) -> bool:
        """Whether an accepted record certainly is in Kafka no longer, as when its topic was deleted and recreated."""
        if _now_ms() - accepted_at_ms < FRESH_SECONDS * 1000:
            return False
        try:
            await self.barrier()
        except BarrierNotReachedError:
            return False
        return await self._find(key) is None


def _is_lately_made(request_id: str) -> bool:
    """Whether a gateway may have made the id for a request without a key, which reserves nothing, not long ago.

    Such ids are of UUID version 7 (`new_request_id`), whose first 48 bits are the milliseconds since 1970.
    """
    digits = request_id.replace("-", "")
    if not _VERSION_7.fullmatch(digits):
        return False
    return abs(_now_ms() - int(digits[:12], 16)) < KEPT_SECONDS * 1000


def _is_stored(state: TaskState | None, digest: str) -> bool:
    """Whether this is the task with this body; raises `ProblemError` when it has another one.

    With a result alone its record is still to come, or long gone: then a reservation knows the digest.
    """
    if state is not None and state.status is TaskStatus.DELETED:
        raise _conflict("was used for a task that was deleted", ProblemCode.GONE)
    if state is None or state.body is None:
        return False
    if task_digest(state.body.encode()) != digest:
        raise _conflict("was used for a request with another body")
    return True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _conflict(reason: str, code: ProblemCode = ProblemCode.IDEMPOTENCY_CONFLICT, **more: Any) -> ProblemError:
    problem = FieldProblem("Idempotency-Key", f"{reason}; {NEW_KEY}")
    return ProblemError(code, str(problem), fields=[problem], **more)


def _unreadable(error: StoreUnavailableError) -> ProblemError:
    logger.warning("task_store_unreadable", reason=str(error))
    return _unavailable("the task store cannot be read; nothing was accepted")


def _in_progress() -> ProblemError:
    reason = "a request with another body and this key is in progress"
    retry = [("retry-after", str(RETRY_AFTER_SECONDS))]
    return _conflict(reason, ProblemCode.IDEMPOTENCY_IN_PROGRESS, headers=retry)


def _unavailable(reason: str) -> ProblemError:
    return unavailable(ProblemCode.STORE_UNAVAILABLE, f"{reason}; repeat the request with the same Idempotency-Key")
