"""The engine's end of the socket pair: frames in, frames out, and the end of the process when the agent is gone.

It owns the two directions of the socket; what the messages mean is `process`'s business.
"""

import os
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Final, NoReturn

import structlog

from fluxpool_worker.engine.protocol import (
    FRAME_HEADER,
    FromEngine,
    ToEngine,
    encode_frame,
    head_bytes,
    head_for_engine,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

EXIT_AGENT_GONE: Final = 3
"""Exit status when the socket or the parent vanished."""


def exit_now(status: int) -> NoReturn:
    """End the process at once: no waiting for threads, for a hung kernel, or for torch's own teardown."""
    os._exit(status)


class SendQueue:
    """Sends messages in the order they were put, from a thread of its own.

    So the device never waits for an agent that is slow to read: a finished image is larger than a socket's buffer.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Start sending over `sock`."""
        self._socket = sock
        self._frames: queue.Queue[list[bytes]] = queue.Queue()
        threading.Thread(target=self._send_all, name="send_queue", daemon=True).start()

    def put(self, message: FromEngine) -> None:
        """Send the message after all that were put before it; returns at once."""
        self._frames.put(encode_frame(message))

    def flush(self, *, timeout_seconds: float) -> bool:
        """Wait until everything put so far has been sent; False when the agent did not read it in time."""
        with self._frames.all_tasks_done:
            return self._frames.all_tasks_done.wait_for(lambda: not self._frames.unfinished_tasks, timeout_seconds)

    def _send_all(self) -> None:
        while True:
            frame = self._frames.get()
            try:
                for piece in frame:
                    self._socket.sendall(piece)
            except OSError as error:
                log.warning("agent_gone", reason=str(error))
                exit_now(EXIT_AGENT_GONE)
            self._frames.task_done()


def received(sock: socket.socket) -> Iterator[ToEngine | FromEngine]:
    """The messages that arrive, until the other end is closed or lost; raises `ProtocolError`."""
    with sock.makefile("rb") as stream:
        while True:
            try:
                header = stream.read(FRAME_HEADER.size)
                if len(header) < FRAME_HEADER.size:
                    return
                length = head_bytes(header)
                encoded = stream.read(length)
                if len(encoded) < length:
                    return
                head = head_for_engine(encoded)
                payloads = [stream.read(size) for size in head.payload_bytes]
            except ConnectionError:
                return
            if tuple(map(len, payloads)) != head.payload_bytes:
                return
            yield head.complete(payloads)
