"""Logging of every Fluxpool process: structlog to stderr, libraries' own messages through the same pipe.

Owns the format and the quota for libraries. Knows nothing of what is logged. Tracebacks never show local variables,
because prompts and secrets live there.
"""

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

REPEAT_INTERVAL_SECONDS: Final = 30.0
"""aiokafka alone logs a lost broker some thousand times a minute."""

_OWN: Final = "fluxpool"
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_CHATTY_LIBRARIES: Final = ("aiokafka", "httpx", "httpcore")
"""Their info level tells every request or group step; shown with `debug` only."""
_MAX_TEMPLATES: Final = 1000
"""Libraries that build messages instead of using templates must not fill the memory."""


class RepeatedMessageFilter(logging.Filter):
    """Passes the first of equal library messages in an interval; the next one says how many were held back.

    Messages are equal when logger, level and template are. Fluxpool's own loggers always pass.
    """

    def __init__(
        self, *, interval_seconds: float = REPEAT_INTERVAL_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written; adds `suppressed` to it when others were not."""
        if record.name.split(".", 1)[0].startswith(_OWN) or not isinstance(record.msg, str):
            return True
        # `%s` alone is no template: what differs is all in the arguments (the `warnings` module logs so).
        template = record.getMessage() if record.msg == "%s" else record.msg
        key = (record.name, record.levelno, template)
        now = self._clock()
        with self._lock:
            passed_at, suppressed = self._seen.get(key, (None, 0))
            if passed_at is not None and now - passed_at < self._interval_seconds:
                self._seen[key] = (passed_at, suppressed + 1)
                return False
            if len(self._seen) >= _MAX_TEMPLATES and key not in self._seen:
                self._seen.clear()
            self._seen[key] = (now, 0)
        if suppressed:
            record.suppressed = suppressed
        return True


def configure_logging(
    *, service: str, json: bool | None = None, level: str = "info", stream: TextIO | None = None
) -> None:
    """Send all logging of the process to stderr (or `stream`); call once, at the start of a program.

    `json` writes one object a line; None decides by whether the stream is a terminal. `service` is in every line. Give
    uvicorn `log_config=None`, or it replaces what is set up here. Raises `ValueError` for an unknown level.
    """
    if level not in _LEVELS:
        raise ValueError(f"log level: {level!r} is not one of {', '.join(_LEVELS)}")
    target = sys.stderr if stream is None else stream
    as_json = not target.isatty() if json is None else json

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_service(service),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.UnicodeDecoder(),
    ]
    renderer: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    )
    handler = logging.StreamHandler(target)
    handler.addFilter(RepeatedMessageFilter())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(allow=["suppressed"])],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_LEVELS[level])
    for name in _CHATTY_LIBRARIES:
        logging.getLogger(name).setLevel(_LEVELS[level] if level == "debug" else max(logging.WARNING, _LEVELS[level]))
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _add_service(service: str) -> Processor:
    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return add_service
