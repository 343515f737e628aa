"""`python -m fluxpool_worker`: one worker, told everything by `FLUXPOOL_*` variables."""

import asyncio
import os
import socket

import structlog

from fluxpool_contract.settings import EXIT_MODEL_LOAD_FAILED, SettingsError, WorkerSettings
from fluxpool_transport.process import configure_logging, run_program
from fluxpool_transport.storage import StorageUnavailableError
from fluxpool_worker.agent.connections import blocked_limit_seconds
from fluxpool_worker.agent.consumer.assignment_loader import TopicReplacedError
from fluxpool_worker.agent.engine.client import EngineLoadError, EngineUnstableError
from fluxpool_worker.agent.loop_watchdog import ending_when_blocked
from fluxpool_worker.agent.service import MissingTopicsError, WorkerAgent
from fluxpool_worker.agent.task.holds import HoldExpiredError
from fluxpool_worker.agent.termination import write_termination_message
from fluxpool_worker.marks.signing import SigningError

EXIT_FAILED = 1
EXIT_USAGE = 2

log = structlog.get_logger(__name__)


def main() -> int:
    """Run the worker; returns the exit code. A blocked event loop ends the process by itself, see `loop_watchdog`."""
    configure_logging(service="fluxpool-worker")
    try:
        settings = WorkerSettings.from_environment(os.environ)
    except SettingsError as error:
        write_termination_message(str(error))
        log.error("settings_refused", error=str(error))  # noqa: TRY400 - the message is for people, a trace is not
        return EXIT_USAGE
    try:
        asyncio.run(_run(settings))
    except (
        EngineLoadError,
        EngineUnstableError,
        HoldExpiredError,
        MissingTopicsError,
        SettingsError,
        SigningError,
        # A store as it is configured; one that is away is waited for.
        StorageUnavailableError,
        TopicReplacedError,
    ) as error:
        write_termination_message(str(error))
        log.error("worker_failed", error=str(error))  # noqa: TRY400 - likewise
        return EXIT_MODEL_LOAD_FAILED if isinstance(error, EngineLoadError) else EXIT_FAILED
    except Exception as error:
        # Raised again: the pod's status then shows any failure, expected or not.
        write_termination_message(repr(error))
        raise
    return 0


async def _run(settings: WorkerSettings) -> None:
    with ending_when_blocked(limit_seconds=blocked_limit_seconds(settings)):
        await WorkerAgent(settings, worker_name=settings.worker_name or socket.gethostname()).run()


if __name__ == "__main__":
    run_program(main)
