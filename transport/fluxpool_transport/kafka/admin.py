"""librdkafka's admin client for asyncio: opening it, awaiting its futures, and its errors in words.

Owns the border to a library that calls back from its own threads. Knows nothing of the requests.
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
    """An `AdminClient` for one cluster, and the last error of its connections.

    It has no `close`: librdkafka's threads end with the last reference, in under a millisecond. So the client must not
    refer to this object: in a cycle it would live until the collector runs, at worst when the interpreter ends.
    """

    def __init__(self, connection: KafkaConnection, options: Mapping[str, Any]) -> None:
        self._connection = connection
        self._last_error = _LastError()
        # The log level keeps librdkafka from printing every failed connection attempt; it arrives here instead.
        self.client = AdminClient({**options, "log_level": 0, "error_cb": self._last_error.note})

    @classmethod
    async def open(cls, connection: KafkaConnection, *, client_id: str) -> Self:
        """A client; it connects to brokers with the first request.

        Raises `KafkaCredentialsError` for unusable files, `KafkaUnavailableError` when there is no OAUTHBEARER token.
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

    async def results(self, futures: "Mapping[K, Future[Any]]") -> dict[K, Any]:
        """The result of each future, or the `KafkaException` in its place; all are awaited at once.

        Raises `KafkaUnavailableError` when no broker answered any of them.
        """
        await _all_done(futures.values())
        answers = [future.exception() or future.result() for future in futures.values()]
        # Errors and token refreshes stay in a queue of librdkafka's until `poll`.
        self.client.poll(0)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, KafkaException):
                raise answer
        if answers and all(map(is_unreachable, answers)):
            raise self.unavailable(answers[0])
        return dict(zip(futures, answers, strict=True))

    def unavailable(self, reason: object) -> KafkaUnavailableError:
        """The error to raise when no broker answers, with the last error of a connection."""
        servers = ",".join(self._connection.bootstrap_servers)
        text = explain(reason) if isinstance(reason, KafkaException) else str(reason)
        last_error = f"; last connection error: {self._last_error.text}" if self._last_error.text else ""
        return KafkaUnavailableError(
            f"Kafka at {servers} did not answer: {text}{last_error}. "
            "Check kafka.bootstrap_servers, the network and the credentials"
        )


class _LastError:
    """The last error of a client's connections, in words; holds no client."""

    def __init__(self) -> None:
        self.text: str | None = None

    def note(self, error: Any) -> None:
        if error.name() != _ALL_BROKERS_DOWN:
            self.text = error.str()


async def _all_done(futures: "Collection[Future[Any]]") -> None:
    """Wait for thousands of futures with one call into the event loop, where `wrap_future` makes one for each."""
    if not futures:
        return
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    # `next` is atomic under the GIL: exactly one of librdkafka's threads, which call `note` side by side, gets 0.
    others_left = itertools.count(len(futures) - 1, -1)

    def note(_future: "Future[Any]") -> None:
        if next(others_left) == 0:
            with contextlib.suppress(RuntimeError):  # cancelled, and the loop is closed since
                loop.call_soon_threadsafe(done.set)

    for future in futures:
        future.add_done_callback(note)
    await done.wait()


def explain(exception: KafkaException) -> str:
    """An exception of librdkafka in words, with the name of its code."""
    error = exception.args[0]
    return f"{error.str()} ({error.name()})"


def is_unreachable(answer: object) -> bool:
    """Whether an answer is an exception because no broker was reached, rather than a refusal."""
    return isinstance(answer, KafkaException) and answer.args[0].code() in _UNREACHABLE


def has_code(answer: object, *codes: int) -> bool:
    """Whether an answer is an exception with one of these codes of `KafkaError`."""
    return isinstance(answer, KafkaException) and answer.args[0].code() in codes
