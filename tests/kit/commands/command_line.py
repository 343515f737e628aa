"""The command line in the process of a test, and an application that it can reach: on a socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import ASGIApp

from fluxpool_cli.main import run
from kit.waiting import wait_until

Command = Callable[..., Awaitable[tuple[int, str, str]]]
"""From arguments, and a `key` other than the usual one, to the exit code, the output and the complaints."""


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    """The address of a running application, for a block."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started, deadline_seconds=30, what="the server")
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    with suppress(SystemExit):
        await serving


def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, key: str) -> Command:
    """Runs `fluxpool` with `FLUXPOOL_API_KEY`, which a call may change for itself; None leaves it out."""
    usual = key

    # The profiles of the user who runs the tests are no part of them.
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")

    async def command(*arguments: str, key: str | None = usual) -> tuple[int, str, str]:
        if key is None:
            monkeypatch.delenv("FLUXPOOL_API_KEY", raising=False)
        else:
            monkeypatch.setenv("FLUXPOOL_API_KEY", key)
        code = await asyncio.to_thread(run, arguments)
        written = capsys.readouterr()
        return code, written.out, written.err

    return command
