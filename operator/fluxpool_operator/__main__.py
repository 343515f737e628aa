"""The operator's process: `python -m fluxpool_operator`, settings from `FLUXPOOL_*` variables.

Owns start, shutdown and the health endpoints; `handlers` watches, `reconcile` acts. Exit status: 0 after SIGTERM, 1
after a failure, 2 for invalid settings.
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import structlog
from kubernetes.aio.config import ConfigException

from fluxpool_contract.settings import SettingsError
from fluxpool_operator.backlog import BacklogHub
from fluxpool_operator.cluster import connect
from fluxpool_operator.handlers import watch
from fluxpool_operator.metrics import OperatorMetrics
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.pool_tasks import PoolTasks
from fluxpool_operator.reconcile.sweep import Sweep
from fluxpool_operator.settings import OperatorSettings
from fluxpool_operator.startup import DefinitionError, check_definition
from fluxpool_transport.health_server import HealthServer
from fluxpool_transport.process import configure_logging, run_program

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2
SILENT_LOOP_SECONDS: Final = 300.0
"""A pool is reconciled at least every minute, for at most two: a loop that is silent for longer is dead."""

logger = structlog.stdlib.get_logger(__name__)


async def serve(settings: OperatorSettings) -> int:
    """Run the operator until SIGTERM or SIGINT; returns the exit status."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics = OperatorMetrics()
    with tempfile.TemporaryDirectory(prefix="fluxpool-operator-") as folder:
        async with (
            await connect(deadline_seconds=settings.api_deadline_seconds) as cluster,
            BacklogHub(deadline_seconds=settings.kafka_deadline_seconds, count_states=metrics.count_states) as hub,
        ):
            context = OperatorContext(settings=settings, cluster=cluster, hub=hub, folder=Path(folder), metrics=metrics)
            pool_tasks = PoolTasks(context)
            watching = asyncio.Event()
            server = HealthServer(
                host=settings.health_host,
                port=settings.health_port,
                why_not_alive=lambda: _why_not_alive(pool_tasks),
                why_not_ready=lambda: None if watching.is_set() else "the watches do not run yet",
                registry=context.metrics.registry,
            )
            async with server:
                logger.info("operator_serving", health_port=server.port)
                return await _operate(context, pool_tasks, watching=watching, stop=stop)


def _why_not_alive(pool_tasks: PoolTasks) -> str | None:
    silent_seconds = pool_tasks.longest_silence_seconds()
    return f"a pool's loop is silent for {silent_seconds:.0f} s" if silent_seconds > SILENT_LOOP_SECONDS else None


async def _operate(
    context: OperatorContext, pool_tasks: PoolTasks, *, watching: asyncio.Event, stop: asyncio.Event
) -> int:
    settings = context.settings
    checking = asyncio.create_task(check_definition(context.cluster), name="definition")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait((checking, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not checking.done():
        checking.cancel()
        return 0
    try:
        checking.result()
    except DefinitionError as error:
        logger.error("definition_refused", problem=str(error))  # noqa: TRY400 - the message says it all
        return EXIT_FAILED
    sweep = Sweep(context.cluster, pool_tasks=pool_tasks, cache=context.cache, namespaces=settings.watch_namespaces)
    sweeping = asyncio.create_task(sweep.run(interval_seconds=settings.resync_interval_seconds), name="sweep")
    watch_task = asyncio.create_task(
        watch(settings, pool_tasks=pool_tasks, cache=context.cache, stop=stop, ready=watching), name="watch"
    )
    logger.info("operator_started", namespaces=settings.watch_namespaces or "all")
    await asyncio.wait((watch_task, sweeping, stopping), return_when=asyncio.FIRST_COMPLETED)
    is_shutdown = stop.is_set()
    stop.set()
    await pool_tasks.stop()
    sweeping.cancel()
    results = await asyncio.gather(watch_task, sweeping, stopping, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            logger.error("operator_failed", error=repr(result), exc_info=result)
    logger.info("operator_stopped", is_shutdown=is_shutdown)
    return 0 if is_shutdown else EXIT_FAILED


def main() -> None:
    """Run the operator as the settings in the environment say; the console script."""
    run_program(_run)


def _run() -> int:
    """Returns the exit code."""
    argparse.ArgumentParser(
        prog="fluxpool-operator",
        description="Watches FluxWorkerPools and scales their workers with the lag of their consumer groups. "
        "Settings are FLUXPOOL_* variables, see docs/reference/settings.md.",
    ).parse_args()
    configure_logging(service="operator")
    try:
        settings = OperatorSettings.from_environment(os.environ)
    except SettingsError as error:
        sys.stderr.write(f"fluxpool-operator: {error}\n")
        return EXIT_CONFIGURATION
    # Imported modules stay for ever. Outside the collector's generations they do not delay full collections, between
    # which dead API objects would pile up.
    gc.freeze()
    try:
        return asyncio.run(serve(settings))
    except ConfigException as error:
        sys.stderr.write(f"fluxpool-operator: no cluster to connect to: {error}; run in a pod, or set KUBECONFIG\n")
        return EXIT_FAILED
    except OSError as error:
        sys.stderr.write(
            f"fluxpool-operator: health_host, health_port: {settings.health_host}:{settings.health_port} cannot be "
            f"bound ({error.strerror or error}); choose another with FLUXPOOL_HEALTH_PORT\n"
        )
        return EXIT_FAILED


if __name__ == "__main__":
    main()
