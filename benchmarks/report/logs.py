"""The log of parts that run inside a benchmark, kept out of its output."""

import logging
import sys

import structlog


def quiet_logs(*clients: str, level: int = logging.WARNING) -> None:
    """Log Fluxpool's events from a level on to standard error, and silence these clients, which log lost connections.

    `clients` are names of Python's loggers, such as `aiokafka`.
    """
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    for client in clients:
        logging.getLogger(client).setLevel(logging.CRITICAL)
