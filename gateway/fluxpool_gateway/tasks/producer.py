"""Producer with the broker's acknowledgement, for tens of thousands of requests a second on one event loop.

librdkafka batches and sends in its own threads. A timer of the event loop takes its delivery reports, all that there
are at once: a thread that waits for them takes Python's interpreter lock from the loop for each one. Knows nothing of
HTTP or of what the records mean; called by `http.submission`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Any, Final, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from fluxpool_contract.kafka import MAX_MESSAGE_BYTES

LINGER_MILLISECONDS: Final = 5
MAX_QUEUED_RECORDS: Final = 50_000
"""Seconds of the highest rate; beyond it a refusal is worth more to a client than a longer wait."""
MAX_QUEUED_KILOBYTES: Final = 256 * 1024
_POLL_SECONDS: Final = 0.001
"""Between two looks for delivery reports while any is awaited: little beside the linger."""
_IDLE_POLL_SECONDS: Final = 0.05
"""While none is: for errors of the client as a whole."""
_LOG_INTERVAL_SECONDS: Final = 10.0
# After these the sequence numbers of an idempotent producer are out of step, and every later record of the partition
# fails until the producer is replaced.
_BREAKS_SEQUENCE: Final = frozenset(
    {
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.UNKNOWN_PRODUCER_ID,
        KafkaError.INVALID_PRODUCER_ID_MAPPING,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError._FATAL,  # noqa: SLF001 - librdkafka's local error codes carry the underscore in their public names
        KafkaError._INCONSISTENT,  # noqa: SLF001
    }
)

logger = structlog.stdlib.get_logger(__name__)


class DeliveryFailure(StrEnum):
    """Why a record was not acknowledged."""

    QUEUE_FULL = "queue_full"
    """Nothing was sent."""
    TIMED_OUT = "timed_out"
    """No acknowledgement in time; the record may still appear in the topic."""
    REFUSED = "refused"
    """The broker or the client library refused the record."""


class DeliveryError(Exception):
    """A record was not acknowledged."""

    def __init__(self, failure: DeliveryFailure, reason: str) -> None:
        self.failure = failure
        super().__init__(reason)


class RecordSink(Protocol):
    """Where records go; `TaskProducer` in service."""

    def send(
        self, *, topic: str, partition: int, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> Awaitable[int]:
        """Begin to write a record; its offset comes with the acknowledgement. Either raises `DeliveryError`."""


class TaskProducer:
    """An idempotent `acks=all` producer for one event loop."""

    def __init__(
        self, options: Mapping[str, Any], *, deadline_seconds: float, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        """`options` reach the cluster. Connects nothing; `start` does, inside the event loop.

        `on_failure` is called there when delivery reports can no longer be taken.
        """
        self._deadline_seconds = deadline_seconds
        self._on_failure = on_failure
        self._configuration = {
            **options,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": LINGER_MILLISECONDS,
            "message.timeout.ms": max(round(deadline_seconds * 1000), 2 * LINGER_MILLISECONDS),
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "queue.buffering.max.messages": MAX_QUEUED_RECORDS,
            "queue.buffering.max.kbytes": MAX_QUEUED_KILOBYTES,
            # A broker that comes back is found at once; the default lets the pause grow to 10 s.
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,
        }
        self._generation = 0
        """Counts producers. What an earlier one still reports says nothing about the present one."""
        self._replaced: list[Producer] = []
        """Earlier producers that have still to report."""
        self._waiting: deque[tuple[float, asyncio.Future[int]]] = deque()
        self._broken = False
        self._failed = False
        self._logged_at: dict[int, float] = {}
        self._next_poll: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to connect and to deliver; call it once, inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._begin()
        self._poll()

    async def stop(self) -> None:
        """Wait for what is under way, at most the produce deadline, and close. What is left counts as timed out."""
        unsettled = [future for _, future in self._waiting if not future.done()]
        if unsettled:
            await asyncio.wait(unsettled, timeout=self._deadline_seconds)
        # Only now: what was waited for is reported by polling.
        if self._next_poll is not None:
            self._next_poll.cancel()
        # Without this the library waits on exit for records whose requests are answered already.
        self._producer.purge()
        self._fail_older_than(float("inf"))

    def send(
        self, *, topic: str, partition: int, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[int]:
        """Queue a record; the future is its offset, once the broker has it on all in-sync replicas.

        The future raises `DeliveryError`; `send` itself raises it when the queue is full.
        """
        if self._broken:
            self._replace()
        future: asyncio.Future[int] = self._loop.create_future()
        on_delivery = partial(self._on_delivery, future, self._generation)
        try:
            self._producer.produce(topic, value, key, partition=partition, on_delivery=on_delivery, headers=headers)
        except BufferError:
            raise DeliveryError(
                DeliveryFailure.QUEUE_FULL, f"{MAX_QUEUED_RECORDS} records wait for the broker already"
            ) from None
        except KafkaException as error:
            raise DeliveryError(DeliveryFailure.REFUSED, str(error.args[0])) from error
        if not self._waiting:
            self._poll_after(_POLL_SECONDS)
        # In the order of their deadlines, because all have the same length: the oldest alone is looked at.
        self._waiting.append((self._loop.time() + self._deadline_seconds, future))
        return future

    def _begin(self) -> None:
        self._producer = Producer({**self._configuration, "error_cb": partial(self._on_error, self._generation)})

    def _replace(self) -> None:
        """Start another producer; the old one is polled until its reports are in."""
        logger.warning("producer_replaced")
        self._replaced.append(self._producer)
        self._generation += 1
        self._broken = False
        self._begin()

    def _poll_after(self, seconds: float) -> None:
        if self._next_poll is not None:
            self._next_poll.cancel()
        self._next_poll = self._loop.call_later(seconds, self._poll)

    def _poll(self) -> None:
        """Take the delivery reports, and fail what is past its deadline; librdkafka itself looks once a second only."""
        if not self._failed:
            try:
                self._producer.poll(0)
                if self._replaced:
                    self._poll_replaced()
            except Exception:
                # From here on every request would end as one whose outcome is unknown.
                logger.exception("delivery_reports_failed")
                self._failed = True
                self._on_failure()
        self._fail_older_than(self._loop.time())
        self._next_poll = self._loop.call_later(_POLL_SECONDS if self._waiting else _IDLE_POLL_SECONDS, self._poll)

    def _poll_replaced(self) -> None:
        for producer in self._replaced:
            producer.poll(0)
        for producer in [one for one in self._replaced if not len(one)]:
            self._replaced.remove(producer)
            # In another thread, because it waits for those of the library.
            self._loop.run_in_executor(None, producer.close)

    def _on_delivery(
        self, future: asyncio.Future[int], generation: int, error: KafkaError | None, message: Message
    ) -> None:
        if error is not None and generation == self._generation and error.code() in _BREAKS_SEQUENCE:
            self._broken = True
        # It may be done already: it fails at its deadline, and a cancelled request cancels it.
        if future.done():
            return
        if error is None:
            future.set_result(message.offset())
        else:
            future.set_exception(_failure(error))

    def _fail_older_than(self, moment: float) -> None:
        waiting = self._waiting
        while waiting and (waiting[0][1].done() or waiting[0][0] <= moment):
            _, future = waiting.popleft()
            if not future.done():
                reason = f"no acknowledgement within {self._deadline_seconds:g} s"
                future.set_exception(DeliveryError(DeliveryFailure.TIMED_OUT, reason))

    def _on_error(self, generation: int, error: KafkaError) -> None:
        """Take note of an error of the client as a whole."""
        if error.fatal() and generation == self._generation:
            self._broken = True
        now = self._loop.time()
        code = error.code()
        # With a broker down these come by the hundred.
        if now - self._logged_at.get(code, -_LOG_INTERVAL_SECONDS) >= _LOG_INTERVAL_SECONDS:
            self._logged_at[code] = now
            logger.warning("kafka_client_error", error_name=error.name(), reason=error.str())


def _failure(error: KafkaError) -> DeliveryError:
    timed_out = error.code() in {KafkaError._MSG_TIMED_OUT, KafkaError.REQUEST_TIMED_OUT}  # noqa: SLF001
    return DeliveryError(DeliveryFailure.TIMED_OUT if timed_out else DeliveryFailure.REFUSED, error.str())
