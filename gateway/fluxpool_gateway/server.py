"""The HTTP server: uvicorn on one listening socket, in this process or in several workers.

uvicorn's own supervisor (`uvicorn.supervisors.Multiprocess`) starts the workers, replaces one that ended, and passes
SIGTERM on. A single server has no supervisor: the kubelet or the local stack starts the program again. Owns what
uvicorn is given; each worker continues in `http.app`.
"""

import gc
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import structlog
import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from fluxpool_contract.settings import SettingsError
from fluxpool_gateway.http.app import GatewayApplication, build_application
from fluxpool_gateway.http.protocol import BoundedHttpProtocol
from fluxpool_gateway.identity.key_store import KeysError
from fluxpool_gateway.metrics.gateway_metrics import open_metrics
from fluxpool_gateway.metrics.shared_values import FOLDER_VARIABLE, shared_folder
from fluxpool_gateway.settings import EXIT_CONFIGURATION, GatewaySettings
from fluxpool_gateway.store.database import DatabaseUnusableError
from fluxpool_gateway.webhooks.secret_box import SecretKeysError, open_secret_box
from fluxpool_transport.kafka import KafkaCredentialsError, librdkafka_options
from fluxpool_transport.partitioner import SharedSends
from fluxpool_transport.process import configure_logging, die_with_parent
from fluxpool_transport.storage import StorageUnavailableError, open_object_store
from fluxpool_transport.tenant_secret import tenant_keys_of

BACKLOG_CONNECTIONS: Final = 2048
KEEP_ALIVE_SECONDS: Final = 75
"""Longer than the idle time of common load balancers (60 s), which otherwise meet connections that are just closing."""
SHUTDOWN_MARGIN_SECONDS: Final = 2
"""What a server takes beyond the produce deadline to finish the requests under way."""
WORKER_START_SECONDS: Final = 30
"""uvicorn kills a worker that does not answer a ping for so long, also one that is still starting."""
_COLLECTED_OBJECTS: Final = 10_000
"""New objects until the garbage collector looks for cycles. A request leaves a few behind for some milliseconds, so
that Python's default, 700, looks at those of the same requests again and again, and finds none."""
_OTHER_FILES: Final = 256
"""Brokers, the object store, the task store."""

logger = structlog.stdlib.get_logger(__name__)


class ListenError(Exception):
    """The address cannot be listened on; the message names the setting."""


def main() -> int:
    """Serve until SIGTERM, then finish the requests under way; returns the exit status, 2 for wrong settings."""
    try:
        settings = GatewaySettings.from_environment(os.environ)
        # Reported once and plainly here, rather than by each worker.
        librdkafka_options(settings.kafka, client_id="settings-check")
        open_object_store(settings.storage)
        tenant_keys_of(settings.tenant_secret_file)
        _prepare_database(settings)
        _prepare_webhooks(settings)
        if settings.needs_keys():
            _prepare_keys(settings)
    except (
        SettingsError,
        KafkaCredentialsError,
        StorageUnavailableError,
        DatabaseUnusableError,
        KeysError,
        SecretKeysError,
    ) as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return EXIT_CONFIGURATION
    configure_logging(service="gateway")
    if settings.needs_keys() and settings.tenant_secret_file is None:
        logger.info(
            "tenant_secret_not_shared",
            remedy="set FLUXPOOL_TENANT_SECRET_FILE here and in workers, or only the tenant default has its own folder",
        )
    if settings.webhooks.key_file is None:
        logger.info("webhook_secrets_not_encrypted", remedy="set FLUXPOOL_WEBHOOKS_KEY_FILE")
    try:
        return _serve(settings)
    except ListenError as error:
        sys.stderr.write(f"fluxpool-gateway: {error}\n")
        return 1


def _prepare_database(settings: GatewaySettings) -> None:
    if settings.database_url is not None:
        # As below.
        from fluxpool_gateway.store.postgres.start import prepare_database  # noqa: PLC0415

        prepare_database(settings.database_url.get_secret_value())


def _prepare_webhooks(settings: GatewaySettings) -> None:
    # As above: it runs migrations.
    from fluxpool_gateway.webhooks.start import prepare_webhooks  # noqa: PLC0415

    prepare_webhooks(settings.webhook_store(), open_secret_box(settings.webhooks.key_file))


def _prepare_keys(settings: GatewaySettings) -> None:
    # Here alone: Alembic is large, and servers that are started by this one do without.
    from fluxpool_gateway.identity.bootstrap import prepare_keys  # noqa: PLC0415

    prepare_keys(
        settings.key_store(),
        bootstrap_key_file=settings.bootstrap_key_file,
        takes_tokens=settings.oidc.issuer is not None,
        now_ms=time.time_ns() // 1_000_000,
    )


def _serve(settings: GatewaySettings) -> int:
    with _listen(settings.listen_host, settings.listen_port) as listening:
        url = _url_of(listening)
        config = uvicorn.Config(
            # By name: a worker answers pings before it imports these.
            f"{__name__}:{application.__name__}",
            factory=True,
            workers=settings.processes,
            http=f"{BoundedHttpProtocol.__module__}:{BoundedHttpProtocol.__name__}",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # Addresses are settings (`public_url`), not what a header of some proxy claims.
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(settings.produce_deadline_seconds) + SHUTDOWN_MARGIN_SECONDS,
            timeout_worker_healthcheck=WORKER_START_SECONDS,
        )
        logger.info("gateway_listening", url=url, processes=settings.processes)
        if settings.address_file is not None:
            _write_whole(settings.address_file, url + "\n")
        try:
            return _run_workers(config, listening) if settings.processes > 1 else _run(config, listening)
        finally:
            if settings.address_file is not None:
                settings.address_file.unlink(missing_ok=True)


def _run(config: uvicorn.Config, listening: socket.socket) -> int:
    # uvicorn raises the signal that stopped it once more when it is done; that must not end the process by a signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    return 1 if server.lifespan.should_exit else 0


class _Supervisor(Multiprocess):
    """uvicorn's, but workers are pinged only when one of them has ended.

    uvicorn pings each worker twice a second and handles no signal while it waits for the answer. A worker answers none
    before it has started, which takes tens of seconds on a busy machine: SIGTERM would come too late.
    """

    def keep_subprocess_alive(self) -> None:
        """Replace workers that have ended."""
        if not all(worker.process.is_alive() for worker in self.processes):
            super().keep_subprocess_alive()


def _run_workers(config: uvicorn.Config, listening: socket.socket) -> int:
    with ExitStack() as stack:
        try:
            os.environ[FOLDER_VARIABLE] = str(stack.enter_context(shared_folder()))
        except OSError as error:
            os.environ.pop(FOLDER_VARIABLE, None)
            logger.warning("metrics_not_shared", reason=str(error))
        supervisor = _Supervisor(config, sockets=[listening])
        supervisor.run()
    # It stops by itself when a worker could not start: another one would fail likewise.
    return STARTUP_FAILURE if any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes) else 0


def application() -> GatewayApplication:
    """The application of this process; uvicorn calls it in each worker, with the environment of the program."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A worker holds both ends of uvicorn's pipe, so it would outlive a parent that was killed. SIGTERM, because
        # requests under way may still be answered.
        die_with_parent(parent.pid or 0, with_signal=signal.SIGTERM)
        configure_logging(service="gateway")
    folder = None if parent is None else os.environ.get(FOLDER_VARIABLE)
    metrics = open_metrics(None if folder is None else Path(folder))
    settings = GatewaySettings.from_environment(os.environ)
    BoundedHttpProtocol.max_connections = _possible_connections(settings.max_connections)
    app = build_application(
        settings,
        on_failure=lambda: signal.raise_signal(signal.SIGTERM),
        metrics=metrics,
        shared_sends=None if parent is None or folder is None else _open_shared_sends(Path(folder)),
    )
    # Modules and routes are never freed; later collections need not visit them during requests.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_OBJECTS)
    return app


def _open_shared_sends(folder: Path) -> SharedSends | None:
    try:
        return SharedSends(folder)
    except OSError as error:
        # Each process learns of the tasks of the others from Kafka, a little later.
        logger.warning("sends_not_shared", folder=str(folder), reason=str(error))
        return None


def _listen(host: str, port: int) -> socket.socket:
    """The socket, listening before any worker runs: connections wait in its backlog until one accepts them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG_CONNECTIONS, dualstack_ipv6=dual)
    except OSError as error:
        raise ListenError(
            f"listen_host, listen_port: {host}:{port} cannot be listened on ({error.strerror}); "
            "stop what uses it, or choose another address (port 0 takes any free one)"
        ) from error


def _url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _write_whole(file: Path, text: str) -> None:
    """Write a file so that a reader sees all of it or none."""
    partial_file = file.with_name(f".{file.name}.{os.getpid()}")
    partial_file.write_text(text)
    partial_file.replace(file)


def _possible_connections(wanted: int) -> int:
    """As many of the wanted connections as this process may have open files for, with what else it opens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, soft - _OTHER_FILES)
    return wanted
