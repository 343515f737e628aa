"""A load of constant rate over keep-alive connections; latencies count from the time at which a request was due.

A client that waits for a response before it sends the next request (wrk) hides the time requests would have waited;
this one does not. Knows nothing of Kafka.
"""

import asyncio
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

TICK_SECONDS: Final = 0.001
ANSWER_DEADLINE_SECONDS: Final = 10.0
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(slots=True)
class OpenLoopResult:
    """Responses and their latencies in seconds."""

    sent: int = 0
    accepted: int = 0
    refused: int = 0
    unanswered: int = 0
    latencies_seconds: list[float] = field(default_factory=list)

    def quantile_milliseconds(self, share: float) -> float:
        """The latency that this share of the responses did not exceed; infinite when a response is missing."""
        ordered = sorted([*self.latencies_seconds, *([float("inf")] * self.unanswered)])
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one open request."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._received = b""
        self._due: float | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._load.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the base class's signature
        self._load.lost_connection(self, answered=self._due is None)

    def send(self, due: float) -> None:
        """Send the request that was due at this loop time."""
        assert self._transport is not None
        self._due = due
        self._transport.write(self._load.make_request())

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Collect one answer."""
        received = self._received = self._received + data if self._received else data
        head_end = received.find(b"\r\n\r\n")
        if head_end < 0:
            return
        length = _LENGTH.search(received, 0, head_end + 2)
        if length is None or len(received) < head_end + 4 + int(length[1]):
            return
        due, self._due, self._received = self._due, None, b""
        assert due is not None
        self._load.answered(self, due=due, status=received[9:12])


class _Load:
    def __init__(self, make_request: Callable[[], bytes], expected: bytes) -> None:
        self.make_request = make_request
        self.expected = expected
        self.idle: deque[_Connection] = deque()
        self.overdue: deque[float] = deque()
        self.result = OpenLoopResult()
        self.under_way = 0
        self._now = asyncio.get_running_loop().time

    def send(self, due: float) -> None:
        self.result.sent += 1
        self.under_way += 1
        if self.idle:
            self.idle.popleft().send(due)
        else:
            self.overdue.append(due)

    def answered(self, connection: _Connection, *, due: float, status: bytes) -> None:
        self.result.latencies_seconds.append(self._now() - due)
        self.under_way -= 1
        if status == self.expected:
            self.result.accepted += 1
        else:
            self.result.refused += 1
        if self.overdue:
            connection.send(self.overdue.popleft())
        else:
            self.idle.append(connection)

    def lost_connection(self, connection: _Connection, *, answered: bool) -> None:
        if answered:
            if connection in self.idle:
                self.idle.remove(connection)
        else:
            self.under_way -= 1
            self.result.unanswered += 1


def request_bytes(method: str, path: str, *, host: str, authorization: str, body: bytes = b"") -> bytes:
    """A request with a body of JSON, if any."""
    content = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return (
        f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: {authorization}\r\n{content}\r\n".encode() + body
    )


async def run_open_loop(
    make_request: Callable[[], bytes],
    *,
    host: str,
    port: int,
    expected: bytes,
    rate_per_second: float,
    seconds: float,
    connections: int,
) -> OpenLoopResult:
    """Send requests at a constant rate and wait for all responses, at most 10 s after the last request.

    `expected` is the status of those that count as accepted.
    """
    loop = asyncio.get_running_loop()
    load = _Load(make_request, expected)
    opened = [await loop.create_connection(lambda: _Connection(load), host, port) for _ in range(connections)]
    start = loop.time()
    total = round(rate_per_second * seconds)
    while load.result.sent < total:
        due_count = min(total, int((loop.time() - start) * rate_per_second) + 1)
        while load.result.sent < due_count:
            load.send(start + load.result.sent / rate_per_second)
        await asyncio.sleep(TICK_SECONDS)
    deadline = loop.time() + ANSWER_DEADLINE_SECONDS
    while load.under_way and loop.time() < deadline:  # noqa: ASYNC110 - one check for thousands of responses
        await asyncio.sleep(10 * TICK_SECONDS)
    load.result.unanswered += load.under_way
    load.under_way = 0
    for _, connection in opened:
        connection.close()
    return load.result
