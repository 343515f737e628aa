"""A network that fails on demand: a TCP proxy for one server, whose link can be slow, cut or silent.

Knows no protocol. Runs in the event loop that started it, which must not be blocked meanwhile.
"""

import asyncio
import contextlib
import socket
import struct
from enum import StrEnum
from types import TracebackType
from typing import Final, Self, assert_never

from fluxpool_cli.local.loopback import HOST
from kit.ports import own_port

_CHUNK_BYTES: Final = 64 * 1024
# on, 0 s: closing sends RST and discards unsent bytes.
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class LineMode(StrEnum):
    """What happens to bytes and connections."""

    PASS = "pass"
    """Everything passes."""
    DELAY = "delay"
    """Every chunk is delayed, so a request with its response takes twice that long."""
    DROP = "drop"
    """Connections are reset, new ones as soon as they are accepted: a proxy or firewall without its server."""
    BLACK_HOLE = "black-hole"
    """No byte is forwarded and no connection ends; connecting still works. Bytes arrive when the link is restored, as
    with TCP retransmissions."""
    REFUSE = "refuse"
    """Connections are reset and new ones refused: a dead server."""


class Direction(StrEnum):
    """One direction of the link."""

    TO_SERVER = "to-server"
    TO_CLIENT = "to-client"


BOTH_WAYS: Final = frozenset(Direction)


class TcpProxy:
    """The link to one server; `async with` opens and closes it. Its address stays the same in every mode."""

    def __init__(self, server_port: int, *, port: int | None = None) -> None:
        """Both are loopback ports; without `port` the proxy chooses a free one."""
        self.port: Final = port or own_port()
        self._server_port = server_port
        self._listener: asyncio.Server | None = None
        self._mode = LineMode.PASS
        self._delay_seconds = 0.0
        self._open = {direction: asyncio.Event() for direction in Direction}
        self._connections: dict[asyncio.Task[None], set[asyncio.StreamWriter]] = {}
        self.accepted = 0
        """Number of connections accepted so far."""
        self.held_bytes = dict.fromkeys(Direction, 0)
        """Bytes held in a black hole, by direction: a test can wait for a request to have been sent."""

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    async def pass_all(self) -> None:
        """Mend the line."""
        await self._change(LineMode.PASS)

    async def delay(self, seconds: float) -> None:
        """Delay every chunk by that long, in each direction."""
        await self._change(LineMode.DELAY, delay_seconds=seconds)

    async def drop(self) -> None:
        """Reset every connection, now and as soon as a new one is accepted."""
        await self._change(LineMode.DROP)

    async def black_hole(self, *directions: Direction) -> None:
        """Forward nothing in these directions or both; without the way back a server's responses are lost."""
        await self._change(LineMode.BLACK_HOLE, directions=frozenset(directions) or BOTH_WAYS)

    async def refuse(self) -> None:
        """Reset every connection and refuse new ones."""
        await self._change(LineMode.REFUSE)

    def reset_connections(self) -> None:
        """Reset every open connection once; new ones work as before."""
        for writers in self._connections.values():
            for writer in writers:
                _reset(writer)

    async def _change(
        self, mode: LineMode, *, directions: frozenset[Direction] = BOTH_WAYS, delay_seconds: float = 0.0
    ) -> None:
        self._mode, self._delay_seconds = mode, delay_seconds
        for direction, is_open in self._open.items():
            if mode is LineMode.BLACK_HOLE and direction in directions:
                is_open.clear()
            else:
                is_open.set()
        match mode:
            case LineMode.DROP:
                self.reset_connections()
                await self._listen()
            case LineMode.REFUSE:
                self._stop_listening()
                self.reset_connections()
            case LineMode.PASS | LineMode.DELAY | LineMode.BLACK_HOLE:
                await self._listen()
            case _:
                assert_never(mode)

    async def __aenter__(self) -> Self:
        """Open the line."""
        await self.pass_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Refuse and end everything."""
        await self.refuse()
        ending = list(self._connections)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._accept, HOST, self.port)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            # Do not wait: since Python 3.12 that would include the open connections.
            self._listener.close()
            self._listener = None

    def _accept(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        # A separate task: asyncio's prints a traceback when it is cancelled, which is how every link is closed.
        self.accepted += 1
        writers = {client_writer}
        task = asyncio.get_running_loop().create_task(self._serve(client_reader, client_writer, writers))
        self._connections[task] = writers
        task.add_done_callback(self._connections.pop)

    async def _serve(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        writers: set[asyncio.StreamWriter],
    ) -> None:
        """Forward one connection until it ends; `writers` are reset with the link."""
        try:
            await self._open[Direction.TO_SERVER].wait()
            if self._mode is LineMode.DROP:
                raise ConnectionResetError
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
            writers.add(server_writer)
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._pump(client_reader, server_writer, Direction.TO_SERVER))
                both_ways.create_task(self._pump(server_reader, client_writer, Direction.TO_CLIENT))
            for writer in writers:
                writer.close()
        except* OSError:
            pass  # either end closed, which the other is about to notice
        finally:
            for writer in writers:
                if not writer.is_closing():
                    _reset(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
        """Forward one direction until its sender ends it."""
        is_open = self._open[direction]
        while chunk := await self._read(reader, is_open):
            if self._mode is LineMode.DELAY:
                await asyncio.sleep(self._delay_seconds)
            if not is_open.is_set():
                self.held_bytes[direction] += len(chunk)
                await is_open.wait()
                self.held_bytes[direction] -= len(chunk)
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _read(self, reader: asyncio.StreamReader, is_open: asyncio.Event) -> bytes:
        """The next bytes; a silent link forwards no end and no reset either."""
        try:
            chunk = await reader.read(_CHUNK_BYTES)
        except OSError:
            await is_open.wait()
            raise
        if not chunk:
            await is_open.wait()
        return chunk


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
