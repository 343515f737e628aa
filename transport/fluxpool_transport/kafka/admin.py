"""librdkafka's admin client under asyncio: opened, asked under a deadline, and its complaints put into words.

Owns the border to a library without asyncio of its own. Knows nothing of what is asked.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.clients import librdkafka_options

K = TypeVar("K")

# librdkafka's own error codes begin with an underscore, in its documentation too.
_UNREACHABLE = frozenset(
    getattr(KafkaError, name)
    for name in (
        "_TIMED_OUT",
        "_TIMED_OUT_QUEUE",
        "_TRANSPORT",
        "_ALL_BROKERS_DOWN",
        "_AUTHENTICATION",
        "_RESOLVE",
        "_SSL",
        "_DESTROY",
    )
)
_ALL_BROKERS_DOWN = "_ALL_BROKERS_DOWN"


class KafkaUnavailableError(Exception):
    """The cluster did not answer in time."""


class KafkaAdmin:
    """An `AdminClient` for one cluster, and the last thing that went wrong with its connections.

    Nothing needs to be closed: librdkafka's threads end with the last reference, in under a millisecond.
    """

    def __init__(self, connection: KafkaConnection, options: Mapping[str, Any]) -> None:
        self._connection = connection
        self._last_complaint: str | None = None
        # The log level keeps librdkafka from printing every failed connection attempt; it arrives here instead.
        self.client = AdminClient({**options, "log_level": 0, "error_cb": self._note})

    @classmethod
    async def open(cls, connection: KafkaConnection, *, client_id: str) -> Self:
        """A client; brokers are connected to when it is first asked something.

        Raises `KafkaCredentialsError` for unusable files, `KafkaUnavailableError` when no OAUTHBEARER token can be had.
        """
        options = librdkafka_options(connection, client_id=client_id)
        # With OAUTHBEARER the constructor blocks until there is a token, up to 10 s.
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kafka-admin-open")
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, cls, connection, options)
        except KafkaException as error:
            servers = ",".join(connection.bootstrap_servers)
            raise KafkaUnavailableError(
                f"no client for Kafka at {servers} can be made ({error.args[0].str()})"
            ) from error
        finally:
            executor.shutdown(wait=False)

    async def settle(self, futures: "Mapping[K, Future[Any]]") -> dict[K, Any]:
        """Every answer, or the `KafkaException` in its place; all are awaited at once.

        Raises `KafkaUnavailableError` when there are questions and no broker answered any of them.
        """
        await _all_done(futures.values())
        answers = [future.exception() or future.result() for future in futures.values()]
        # Complaints and token refreshes wait in a queue of librdkafka's until somebody polls.
        self.client.poll(0)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, KafkaException):
                raise answer
        if answers and all(map(is_unreachable, answers)):
            raise self.unavailable(answers[0])
        return dict(zip(futures, answers, strict=True))

    def unavailable(self, reason: object) -> KafkaUnavailableError:
        """The error to raise when nothing can be had, with the last complaint of a connection."""
        servers = ",".join(self._connection.bootstrap_servers)
        text = explain(reason) if isinstance(reason, KafkaException) else str(reason)
        complaint = f"; last complaint: {self._last_complaint}" if self._last_complaint else ""
        return KafkaUnavailableError(
            f"Kafka at {servers} did not answer: {text}{complaint}. "
            "Check kafka.bootstrap_servers, the network and the credentials"
        )

    def _note(self, error: Any) -> None:
        if error.name() != _ALL_BROKERS_DOWN:
            self._last_complaint = error.str()


async def _all_done(futures: "Collection[Future[Any]]") -> None:
    """Wait for thousands of futures with one call into the event loop, where `wrap_future` makes one for each."""
    if not futures:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    # Its `next` is one step of the interpreter, whichever of librdkafka's threads takes it.
    others_left = itertools.count(len(futures) - 1, -1)

    def note(_future: "Future[Any]") -> None:
        if next(others_left) == 0:
            with contextlib.suppress(RuntimeError):  # nobody waits any more, and the loop is closed
                loop.call_soon_threadsafe(done.set)

    for future in futures:
        future.add_done_callback(note)
    await done.wait()


def explain(exception: KafkaException) -> str:
    """An exception of librdkafka in words, with the name of its code."""
    error = exception.args[0]
    return f"{error.str()} ({error.name()})"


def is_unreachable(answer: object) -> bool:
    """Whether an answer is an exception that says that no broker was reached, rather than that one refused."""
    return isinstance(answer, KafkaException) and answer.args[0].code() in _UNREACHABLE


def has_code(answer: object, *codes: int) -> bool:
    """Whether an answer is an exception with one of these codes of `KafkaError`."""
    return isinstance(answer, KafkaException) and answer.args[0].code() in codes
