"""The parent process: owns the listening socket, starts the servers and the one projector, and keeps them running.

Knows nothing of HTTP, Kafka or SQL. A child that ends is started again with growing pauses; one that says its settings
are wrong ends the gateway.
"""

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from fluxpool_gateway.process.child import EXIT_CONFIGURATION, SHUTDOWN_MARGIN_SECONDS, Role, child_command
from fluxpool_gateway.settings import GatewaySettings

BACKLOG_CONNECTIONS: Final = 2048
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 15.0
STEADY_SECONDS: Final = 30.0
"""A child that ran so long is healthy: the next pause is the first one again."""
PROJECTOR_GRACE_SECONDS: Final = 5.0

logger = structlog.stdlib.get_logger(__name__)


class ListenError(Exception):
    """The address cannot be listened on; the message names the setting."""


class _ConfigurationRefusedError(Exception):
    """A child ended because its settings are wrong; it has said why."""


@dataclass(slots=True, eq=False)
class _Child:
    role: Role
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    process: asyncio.subprocess.Process | None = None


def listen(settings: GatewaySettings) -> socket.socket:
    """The listening socket.

    Raises `ListenError` when the address is taken or is not this machine's.
    """
    host, port = settings.listen_host, settings.listen_port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        raise ListenError(
            f"listen_host, listen_port: {host}:{port} cannot be listened on ({error.strerror}); "
            "stop what uses it, or choose another address (port 0 takes any free one)"
        ) from error
    return listening


def address_of(listening: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Supervisor:
    """One gateway."""

    def __init__(self, settings: GatewaySettings, listening: socket.socket) -> None:
        """`listening` comes from `listen`."""
        self._settings = settings
        self._listening = listening
        self._projector = _Child(Role.PROJECTOR)
        self._servers = [_Child(Role.SERVER) for _ in range(settings.processes)]
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        status = 0
        try:
            async with asyncio.TaskGroup() as group:
                keeping = [group.create_task(self._keep(child)) for child in (self._projector, *self._servers)]
                announcing = group.create_task(self._announce())
                await self._stopping.wait()
                announcing.cancel()
                await self._stop_all()
                for task in keeping:
                    task.cancel()
        except* _ConfigurationRefusedError:
            status = EXIT_CONFIGURATION
            await self._stop_all()
        finally:
            if self._settings.address_file is not None:
                self._settings.address_file.unlink(missing_ok=True)
        logger.info("gateway_stopped", status=status)
        return status

    async def _announce(self) -> None:
        """Say that the gateway serves, once every server does and there is a store to read."""
        for child in (self._projector, *self._servers):
            await child.ready.wait()
        url = address_of(self._listening)
        if self._settings.address_file is not None:
            _write_whole(self._settings.address_file, url + "\n")
        logger.info("gateway_listening", url=url, processes=len(self._servers))

    async def _keep(self, child: _Child) -> None:
        """Run a child again and again until the gateway stops."""
        pause_seconds = FIRST_PAUSE_SECONDS
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started_at = loop.time()
            status = await self._run_once(child)
            if self._stopping.is_set():
                return
            if status == EXIT_CONFIGURATION:
                raise _ConfigurationRefusedError
            if loop.time() - started_at >= STEADY_SECONDS:
                pause_seconds = FIRST_PAUSE_SECONDS
            logger.error("child_ended", role=child.role.value, status=status, restart_in_seconds=pause_seconds)
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    async def _run_once(self, child: _Child) -> int:
        """Start a child, note when it is ready, and wait for its end; returns its exit status."""
        read_end, write_end = os.pipe()
        listen_fd = self._listening.fileno()
        try:
            # From the main thread: the kernel ends children with the thread that started them.
            child.process = await asyncio.create_subprocess_exec(
                *child_command(child.role, ready_fd=write_end, listen_fd=listen_fd),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(write_end, listen_fd),
            )
        finally:
            os.close(write_end)
        logger.info("child_started", role=child.role.value, pid=child.process.pid)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb", buffering=0)
        )
        try:
            if await reader.read(1):
                child.ready.set()
            return await child.process.wait()
        finally:
            transport.close()

    async def _stop_all(self) -> None:
        """Servers first, so that what they still accept is projected."""
        self._stopping.set()
        server_grace_seconds = self._settings.produce_deadline_seconds * 2 + 2 * SHUTDOWN_MARGIN_SECONDS
        await asyncio.gather(*(_end(server.process, server_grace_seconds) for server in self._servers))
        await _end(self._projector.process, PROJECTOR_GRACE_SECONDS)


async def _end(process: asyncio.subprocess.Process | None, grace_seconds: float) -> None:
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(grace_seconds):
            await process.wait()
    except TimeoutError:
        logger.warning("child_killed", pid=process.pid, grace_seconds=grace_seconds)
        process.kill()
        await process.wait()


def _write_whole(file: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(file)


def serve(settings: GatewaySettings) -> int:
    """Run a gateway in this process and its children; returns the exit status."""
    try:
        listening = listen(settings)
    except ListenError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return 1
    with listening:
        return asyncio.run(Supervisor(settings, listening).run())
