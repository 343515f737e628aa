"""Foreign HTTP requests as bytes to a real gateway process; a plain request after each is served at once."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from fluxpool_contract.kafka.topics import TopicNames
from kit.brokers.kafka import read_topic
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway
from kit.strangers import StrangeRequest, strangers
from kit.waiting import PATIENCE

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

SECONDS = 20.0 * PATIENCE
PLAIN = b'{"prompt": "a plain kite", "width": 64, "height": 64, "steps": 1}'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    kafka: KafkaCluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[GatewayProcess, TopicNames]]:
    topics = await gateway_topics(kafka.bootstrap_servers, task_partitions=1)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path_factory.mktemp("gateway"), topics)
    with running_gateway(settings) as gateway:
        gateway.wait_ready()
        yield gateway, topics


async def _send(gateway: GatewayProcess, request: bytes, *, then: str) -> bytes:
    """Send bytes, end the connection as specified, and return the whole response."""
    address = urlsplit(gateway.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        # A request that is refused early may find the connection closed while it is still sent.
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
            if then == "half-close":
                writer.write_eof()
        if then == "close":
            return b""
        return await _read_answer(reader, head=request.startswith(b"HEAD"))
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def _read_answer(reader: asyncio.StreamReader, *, head: bool) -> bytes:
    async with asyncio.timeout(SECONDS):
        try:
            start = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line.split(b":")[1]) for line in start.splitlines() if line.lower().startswith(b"content-length")),
                0,
            )
            return start + (b"" if head else await reader.readexactly(length))
        except asyncio.IncompleteReadError as error:
            return error.partial


async def _tasks(kafka: KafkaCluster, topics: TopicNames) -> int:
    return len(await read_topic(kafka.bootstrap_servers, topics.tasks))


def _plain() -> bytes:
    head = f"POST /v1/generations HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(PLAIN)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + PLAIN


@pytest.mark.parametrize("stranger", strangers("requests", StrangeRequest))
async def test_a_request_is_answered_and_blocks_no_other(
    kafka: KafkaCluster, served: tuple[GatewayProcess, TopicNames], stranger: StrangeRequest
) -> None:
    gateway, topics = served
    before = await _tasks(kafka, topics)
    answer = await _send(gateway, stranger.request.content("") or b"", then=stranger.then)
    if stranger.right_statuses:
        assert answer.startswith(b"HTTP/1.1 "), answer[:200]
        assert int(answer.split(b" ", 2)[1]) in stranger.right_statuses, answer[:2000]
        assert [text for text in stranger.says if text.encode() not in answer] == [], answer[:2000]
        assert len(answer) < 64 * 1024
    plain = await _send(gateway, _plain(), then="wait")
    assert b" 202 " in plain.partition(b"\r\n")[0], plain
    assert await _tasks(kafka, topics) == before + 1 + stranger.makes_task


async def test_refusals_are_problem_documents(served: tuple[GatewayProcess, TopicNames]) -> None:
    answer = await _send(
        served[0], b"POST /v1/generations HTTP/1.1\r\nHost: g\r\nContent-Length: 1\r\n\r\n{", then="wait"
    )
    document: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert {"type", "title", "status", "detail"} <= document.keys()
