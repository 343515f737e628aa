"""The gateway's submission route with every record acknowledged at once: its cost without Kafka.

Run by `accept.py` under uvicorn.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_gateway.http.request_context import PATH, Receive, Scope, Send
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.identity.gate import OpenGate
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.settings import WebhookSettings
from fluxpool_gateway.store.task_state import TaskKey
from fluxpool_gateway.tasks.lookup import RecentTasks
from fluxpool_gateway.webhooks.requested.admission import RequestedWebhooks
from fluxpool_gateway.webhooks.store import WebhookStore
from fluxpool_transport.partitioner.load_aware import LoadAwarePartitioner


class _NoKafka:
    """Acknowledges and forgets."""

    def send(
        self,
        *,
        topic: str,  # noqa: ARG002 - signature of the real one
        partition: int,  # noqa: ARG002
        key: bytes,  # noqa: ARG002
        value: bytes | None,  # noqa: ARG002
        headers: Sequence[tuple[str, bytes]],  # noqa: ARG002
    ) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.set_result(0)
        return future


async def _write(_key: TaskKey, _digest: str, write: Callable[[], Awaitable[None]]) -> None:
    await write()


_submission = Submission(
    admit=OpenGate().admit,
    producer=_NoKafka(),
    # Never run: the partitions are chosen round robin.
    partitioner=LoadAwarePartitioner(KafkaConnection(bootstrap_servers=("localhost:9092",)), {}),
    partition_counts=lambda _topic: 6,
    recent=RecentTasks(time.monotonic),
    metrics=GatewayMetrics(),
    once=_write,
    topics=TopicNames(),
    public_url=None,
    # Never used: no request of the benchmark names a webhook.
    webhooks=RequestedWebhooks(store=WebhookStore(Path("unused.db")), targets=WebhookSettings(), now_ms=lambda: 0),
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve the submission route, and any other with an empty response."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["path"] == PATH:
        await _submission(scope, receive, send)
    else:
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
        await send(start)
        await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})
