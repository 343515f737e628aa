"""Delivers what is queued: a bounded number of endpoints at once, each one delivery after the other.

Owns who may wait for whom. An endpoint that hangs occupies a slot for `TIMEOUT_SECONDS`. So there are two kinds of
places: endpoints whose last attempt failed have places of their own, and an attempt that is not over after a second
gives its slot back, and counts among them. Endpoints that answer never wait for one that does not.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog

from fluxpool_gateway.store.batches import Batches
from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.webhooks import deliveries
from fluxpool_gateway.webhooks.database import WebhooksUnavailableError
from fluxpool_gateway.webhooks.deliveries import PURGED_AT_ONCE, Claim, Settlement
from fluxpool_gateway.webhooks.dispatch.collector import Collector
from fluxpool_gateway.webhooks.dispatch.sending import Attempt, Sender
from fluxpool_gateway.webhooks.signing import sign
from fluxpool_gateway.webhooks.store import WebhookStore

POLL_SECONDS: Final = 0.25
"""Between looks for what has ended and for what is due: the least delay of a delivery is about half of it."""
QUICK_SLOTS: Final = 128
SLOW_SLOTS: Final = 512
MOST_UNDER_WAY: Final = 1500
"""Sockets of one process: attempts give their quick slot back before they end."""
SLOW_SECONDS: Final = 1.0
FULL_SECONDS: Final = 0.02
"""Between looks while there is no room."""
DELIVERIES_OF_A_TURN: Final = 20
"""Of one endpoint in a row, before it queues behind others that are due."""
PURGE_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Slots:
    """How many endpoints are delivered to now."""

    quick: int = 0
    slow: int = 0

    def free(self, *, suspects: bool) -> int:
        """For how many more there is room."""
        left = MOST_UNDER_WAY - self.quick - self.slow
        return max(0, min(left, SLOW_SLOTS - self.slow if suspects else QUICK_SLOTS - self.quick))


@dataclass(slots=True)
class _Slot:
    """One of them, held by the deliveries to one endpoint."""

    slots: _Slots
    is_slow: bool
    timer: asyncio.TimerHandle | None = field(default=None)

    def acquire(self) -> None:
        """Occupy it."""
        if self.is_slow:
            self.slots.slow += 1
        else:
            self.slots.quick += 1

    def release(self) -> None:
        """Give it back."""
        self.ended()
        if self.is_slow:
            self.slots.slow -= 1
        else:
            self.slots.quick -= 1

    def began(self) -> None:
        """An attempt begins."""
        self.timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._becomes_slow)

    def ended(self) -> None:
        """The attempt has ended."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _becomes_slow(self) -> None:
        self.release()
        self.is_slow = True
        self.acquire()


class Dispatcher:
    """One run of the dispatcher."""

    def __init__(
        self,
        webhooks: WebhookStore,
        collector: Collector,
        sender: Sender,
        *,
        draw: Callable[[], float] = random.random,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """`draw` gives random numbers from 0 to 1."""
        self._webhooks = webhooks
        self._collector = collector
        self._sender = sender
        self._draw = draw
        self._now_ms = now_ms
        self._slots = _Slots()
        self._settlements: Batches[Settlement, Claim | None] = Batches(
            webhooks.settle, name="webhook-settlements", error=WebhooksUnavailableError
        )
        self._queued = asyncio.Event()

    async def run(self, stopping: asyncio.Event) -> None:
        """Deliver until `stopping`; attempts under way are finished then, which takes 15 s at most."""
        async with asyncio.TaskGroup() as group:
            loops = [
                group.create_task(self._repeat(self._collect, POLL_SECONDS), name="collect"),
                group.create_task(self._repeat(self._purge, PURGE_SECONDS), name="purge"),
            ]
            # Not cancelled: what it has just claimed would wait for the end of its lease.
            await self._deliver(group, stopping)
            for task in loops:
                task.cancel()
        await self._settlements.close(lambda: None)

    async def _repeat(self, work: Callable[[], Awaitable[None]], seconds: float) -> None:
        while True:
            try:
                await work()
            except (WebhooksUnavailableError, StoreUnavailableError) as error:
                logger.warning("webhooks_delayed", reason=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            await asyncio.sleep(seconds)

    async def _collect(self) -> None:
        if await self._collector.collect():
            self._queued.set()

    async def _purge(self) -> None:
        purge = partial(deliveries.purge, now_ms=self._now_ms())
        while await self._webhooks.write(purge) >= PURGED_AT_ONCE:
            pass

    async def _deliver(self, group: asyncio.TaskGroup, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            self._queued.clear()
            found = 0
            for suspects in (False, True):
                limit = self._slots.free(suspects=suspects)
                try:
                    claims = await self._webhooks.claim(suspects=suspects, limit=limit, now_ms=self._now_ms())
                except WebhooksUnavailableError as error:
                    logger.warning("webhooks_delayed", reason=str(error))
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                found += len(claims)
                for claim in claims:
                    slot = _Slot(self._slots, is_slow=suspects)
                    slot.acquire()
                    group.create_task(self._serve(claim, slot, stopping))
            if not found:
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._queued.wait()
            elif not self._slots.free(suspects=False):
                await asyncio.sleep(FULL_SECONDS)

    async def _serve(self, claim: Claim, slot: _Slot, stopping: asyncio.Event) -> None:
        """Deliver to one endpoint while there is something due."""
        following: Claim | None = claim
        try:
            for number in range(1, DELIVERIES_OF_A_TURN + 1):
                if following is None:
                    return
                current = following
                slot.began()
                attempt = await self._attempt(current)
                slot.ended()
                settlement = Settlement(
                    claim=current,
                    attempt=attempt,
                    now_ms=self._now_ms(),
                    draw=self._draw(),
                    # A place of the quick is for endpoints that answer: one that failed claims another kind.
                    keeps_lease=number < DELIVERIES_OF_A_TURN and attempt.succeeded and not stopping.is_set(),
                )
                following = await self._settlements.add(settlement)
        except WebhooksUnavailableError as error:
            # Its lease ends, and it is delivered again.
            logger.warning("delivery_not_saved", endpoint_id=claim.endpoint.endpoint_id, reason=str(error))
        finally:
            slot.release()

    async def _attempt(self, claim: Claim) -> Attempt:
        now_ms = self._now_ms()
        body = claim.body.encode()
        timestamp_seconds = now_ms // 1000
        signature = sign(
            [self._webhooks.box.open(secret) for secret in claim.endpoint.valid_secrets(now_ms)],
            message_id=claim.event_id,
            timestamp_seconds=timestamp_seconds,
            body=body,
        )
        headers = {
            "webhook-id": claim.event_id,
            "webhook-timestamp": str(timestamp_seconds),
            "webhook-signature": signature,
        }
        attempt = await self._sender.send(claim.url, headers, body)
        if not attempt.succeeded:
            logger.info(
                "webhook_attempt_failed",
                tenant=claim.endpoint.tenant,
                endpoint_id=claim.endpoint.endpoint_id,
                delivery_id=claim.delivery_id,
                attempt=claim.attempts + 1,
                error=attempt.error,
                status=attempt.status,
            )
        return attempt
