"""The engine's log: JSON lines on stderr from structlog, the standard library and Python warnings.

It owns the rendering and the few library messages that are dropped on purpose; it must not import the libraries.
"""

import logging
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import structlog

DROPPED_MESSAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # Advice to install torchvision for image *inputs*, which text-to-image has none of.
        "transformers.utils.import_utils": "requires torchvision",
        # Repeats the prompt, which is not ours to log; results carry a warning of their own.
        "diffusers.pipelines.flux.pipeline_flux": "part of your input was truncated",
        # Said of every prompt beyond CLIP's 77 tokens, which FLUX reads for its pooled embedding only.
        "transformers.tokenization_utils_base": "Token indices sequence length is longer",
    }
)
"""Logger -> part of the message that is dropped there."""

LIBRARIES: Final = ("diffusers", "transformers", "huggingface_hub")
"""Those that bring a plain-text handler of their own."""


def configure_logging() -> None:
    """Render structlog, the standard library's loggers and Python warnings as JSON lines on stderr."""
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*processors, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


def drop_known_messages() -> None:
    """Drop `DROPPED_MESSAGES`; call before the libraries are imported, for they speak while being so."""
    for logger_name, part in DROPPED_MESSAGES.items():
        logging.getLogger(logger_name).addFilter(_without(part))


def adopt_library_loggers() -> None:
    """Send what the libraries log to our handler instead of theirs; call after they are imported."""
    for logger_name in LIBRARIES:
        logger = logging.getLogger(logger_name)
        logger.handlers.clear()
        logger.propagate = True


def _without(part: str) -> logging.Filter:
    class _Without(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return part not in record.getMessage()

    return _Without()
