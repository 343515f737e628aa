"""A real S3 API that fails on demand: moto's server behind a handler that injects errors and delays."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from kit.stores.s3 import HOST, S3Service

WsgiApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_ERROR_CODES: Final = {500: "InternalError", 503: "SlowDown"}
_REASONS: Final = {500: "Internal Server Error", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Fault:
    """A fault of requests; without `status` the request is served."""

    status: int | None = None
    """The error status: 500 or 503."""
    after_the_deed: bool = False
    """Serve the request and respond with the error anyway: the outcome is lost."""
    wait_seconds: float = 0.0
    """Delay before the request is handled."""
    methods: frozenset[str] = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
    key_part: str = ""
    """Only requests whose path contains this text."""
    times: int | None = None
    """How many requests it affects; None for all until it is cleared."""


class FailingS3Service(S3Service):
    """An S3 service with at most one fault at a time; its buckets are kept across faults and restarts."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._fault: S3Fault | None = None
        self._left: int | None = None
        self._front: BaseWSGIServer | None = None
        self._front_port = 0
        self._thread: threading.Thread | None = None
        self.struck = 0
        """How many requests faults have affected so far."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of all requests, in order."""

    @property
    def port(self) -> int:
        """Where it listens, once it was started."""
        return self._front_port

    @property
    def endpoint_url(self) -> str:
        """Address of the service."""
        return f"http://{HOST}:{self._front_port}"

    def fail(self, fault: S3Fault) -> None:
        """Apply this fault to requests from now on."""
        with self._lock:
            self._fault, self._left = fault, fault.times

    def heal(self) -> None:
        """Serve everything again."""
        with self._lock:
            self._fault = None

    def start(self) -> None:
        """Serve; the port is chosen the first time and kept."""
        application: WsgiApplication = DomainDispatcherApplication(create_backend_app)

        def failing(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            return self._answer(application, environ, start_response)

        self._front = make_server(HOST, self._front_port, failing, threaded=True, request_handler=_QuietHandler)
        self._front_port = self._front.server_port
        self._thread = threading.Thread(target=self._front.serve_forever, name="s3", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._front is not None and self._thread is not None:
            self._front.shutdown()
            self._thread.join()
            self._front.server_close()
            self._front = self._thread = None

    def _answer(
        self, application: WsgiApplication, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        fault = self._strike(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if fault is None:
            return application(environ, start_response)
        time.sleep(fault.wait_seconds)
        if fault.status is None:
            return application(environ, start_response)
        if fault.after_the_deed:
            for _ in application(environ, lambda *_: None):
                pass
        else:
            # With an unread body, closing the connection sends a reset, which hides the response.
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{_ERROR_CODES[fault.status]}</Code><Message>on demand</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        start_response(f"{fault.status} {_REASONS[fault.status]}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _strike(self, method: str, path: str) -> S3Fault | None:
        with self._lock:
            self.requests.append((method, path))
            fault = self._fault
            if fault is None or method not in fault.methods or fault.key_part not in path or self._left == 0:
                return None
            if self._left is not None:
                self._left -= 1
            self.struck += 1
            return fault


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log no requests."""


@contextmanager
def running_failing_s3() -> Iterator[FailingS3Service]:
    """Run one for a fixture of any scope."""
    service = FailingS3Service()
    service.start()
    try:
        yield service
    finally:
        service.heal()
        service.stop()
