"""A gateway with API keys in this process, and a dispatcher of its webhooks beside it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fluxpool_gateway.settings import WebhookSettings
from fluxpool_gateway.stores import open_task_reader, open_webhooks
from fluxpool_gateway.webhooks.dispatch.collector import Collector
from fluxpool_gateway.webhooks.dispatch.dispatcher import Dispatcher
from fluxpool_gateway.webhooks.dispatch.sending import Sender
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.http.webhook_receiver import LOOPBACK


@asynccontextmanager
async def dispatching_gateway(folder: Path) -> AsyncIterator[Gateway]:
    """The dispatcher lives at the time of the gateway's clock; receivers on this machine are allowed."""
    targets = WebhookSettings(allow_http=True, allowed_networks=tuple(map(str, LOOPBACK)))
    settings = keyed_settings(folder).model_copy(update={"webhooks": targets})
    async with keyed_gateway(settings) as running:
        webhooks, tasks, stopping = open_webhooks(settings, durable=False), open_task_reader(settings), asyncio.Event()
        clock = running.clock
        collector = Collector(webhooks, tasks, base="http://gateway/", now_ms=lambda: clock.now_ms)
        sender = Sender(allowed=LOOPBACK, allow_http=True)
        dispatcher = Dispatcher(webhooks, collector, sender, now_ms=lambda: clock.now_ms)
        dispatching = asyncio.create_task(dispatcher.run(stopping))
        yield running
        stopping.set()
        await dispatching
        webhooks.close()
        tasks.close()
