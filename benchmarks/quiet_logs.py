"""What benchmarks let their parts log: figures are read by people and by programs, noise by nobody."""

import logging
import sys

import structlog


def quiet_logs(*clients: str) -> None:
    """Warnings of our own parts to standard error, and nothing of these clients', which tell of every lost connection.

    `clients` are names of Python's loggers, such as `aiokafka`.
    """
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    for client in clients:
        logging.getLogger(client).setLevel(logging.CRITICAL)
