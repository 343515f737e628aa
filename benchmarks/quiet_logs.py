"""What benchmarks let their parts log: figures are read by people and by programs, noise by nobody."""

import logging
import sys

import structlog


def quiet_logs(*clients: str, level: int = logging.WARNING) -> None:
    """Our own parts from a level on to standard error, and nothing of these clients', which tell of lost connections.

    `clients` are names of Python's loggers, such as `aiokafka`.
    """
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )
    for client in clients:
        logging.getLogger(client).setLevel(logging.CRITICAL)
