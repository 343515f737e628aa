"""`python -m fluxpool_gateway.dispatcher`: delivers webhooks until SIGTERM.

Configured as the server is. With SQLite one delivers, and any other waits for its lock and takes over; with PostgreSQL
any number share the work. Continues in `webhooks.dispatch.dispatcher`.
"""

import asyncio
import os
import resource
import signal
import sys
from functools import partial
from typing import Final

import structlog

from fluxpool_contract.settings import SettingsError
from fluxpool_gateway.process_lock import acquire_lock
from fluxpool_gateway.settings import EXIT_CONFIGURATION, GatewaySettings
from fluxpool_gateway.store.database import DatabaseUnusableError
from fluxpool_gateway.stores import open_task_reader, open_webhooks
from fluxpool_gateway.webhooks import deliveries
from fluxpool_gateway.webhooks.database import WebhooksUnavailableError
from fluxpool_gateway.webhooks.dispatch.collector import Collector
from fluxpool_gateway.webhooks.dispatch.dispatcher import MOST_UNDER_WAY, RETRY_SECONDS, Dispatcher
from fluxpool_gateway.webhooks.dispatch.sending import Sender
from fluxpool_gateway.webhooks.secret_box import SecretKeysError, open_secret_box
from fluxpool_gateway.webhooks.start import prepare_webhooks
from fluxpool_gateway.webhooks.store import WebhookStore
from fluxpool_transport.process import configure_logging, run_program

LOCK_SUFFIX: Final = ".dispatcher-lock"
_OTHER_FILES: Final = 256

# By name, because the program itself is `__main__`.
logger = structlog.stdlib.get_logger("fluxpool_gateway.dispatcher")


def main() -> int:
    """Deliver until SIGTERM; returns the exit status, 2 when the settings or the database are wrong."""
    try:
        settings = GatewaySettings.from_environment(os.environ)
        configure_logging(service="gateway-dispatcher")
        prepare_webhooks(settings.webhook_store(), open_secret_box(settings.webhooks.key_file))
    except (SettingsError, SecretKeysError, DatabaseUnusableError) as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    _allow_files(MOST_UNDER_WAY + _OTHER_FILES)
    asyncio.run(_dispatch(settings))
    logger.info("dispatcher_stopped")
    return 0


async def _dispatch(settings: GatewaySettings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    lock = None if settings.database_url is not None else await _lock(settings, stopping)
    webhooks, tasks = open_webhooks(settings, durable=False), open_task_reader(settings)
    try:
        if lock is not None:
            await _release_leases(webhooks, stopping)
        collector = Collector(webhooks, tasks, base=settings.public_url or "/")
        sender = Sender(allowed=settings.webhooks.networks(), allow_http=settings.webhooks.allow_http)
        logger.info("dispatcher_started")
        await Dispatcher(webhooks, collector, sender).run(stopping)
    finally:
        tasks.close()
        webhooks.close()
        if lock is not None:
            os.close(lock)


async def _lock(settings: GatewaySettings, stopping: asyncio.Event) -> int:
    """Hold the lock of the file, or wait for it until `stopping`; the caller closes the file, which releases it."""
    file = settings.webhook_store_file()
    lock = os.open(file.with_name(file.name + LOCK_SUFFIX), os.O_CREAT | os.O_RDWR, 0o600)
    on_standby = partial(logger.info, "dispatcher_standby", file=str(file))
    for seconds in acquire_lock(lock, on_standby=on_standby):
        if stopping.is_set():
            break
        await asyncio.sleep(seconds)
    return lock


async def _release_leases(webhooks: WebhookStore, stopping: asyncio.Event) -> None:
    """With the lock held no other process delivers: leases are those of a dispatcher that was killed."""
    while not stopping.is_set():
        try:
            await webhooks.write(deliveries.release_all)
        except WebhooksUnavailableError as error:
            logger.warning("webhooks_delayed", reason=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return


def _allow_files(wanted: int) -> None:
    """Open files for every attempt that may be under way, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


if __name__ == "__main__":
    run_program(main)
