"""The kit's client of the Kubernetes API against a TLS server of its own."""

import asyncio
import gc
import ssl
import warnings
from contextlib import suppress
from pathlib import Path

from kit.cluster.control_plane_credentials import Credentials
from kit.cluster.kubernetes_api import KubernetesApi

MOST_STEPS = 60
"""Of the event loop; a request over a new connection takes fewer."""


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
    writer.close()


async def test_a_request_that_is_canceled_at_any_step_leaves_no_open_connection(tmp_path: Path) -> None:
    credentials = Credentials(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(credentials.serving_certificate_file, credentials.serving_key_file)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    host, port = server.sockets[0].getsockname()
    finished = 0
    async with server:
        for steps in range(1, MOST_STEPS):
            async with KubernetesApi(credentials.admin_login(f"https://{host}:{port}")) as api:
                request = asyncio.create_task(api.get("/api"))
                for _ in range(steps):
                    await asyncio.sleep(0)
                finished += request.done()
                request.cancel()
                with suppress(asyncio.CancelledError):
                    assert await request == {}
        with warnings.catch_warnings(record=True) as unclosed:
            warnings.simplefilter("always")
            gc.collect()
    assert [str(warning.message) for warning in unclosed] == []
    assert 0 < finished < MOST_STEPS - 1
