"""What every process does alike: logging, backoff, fault points, its end, ending with its parent."""

from fluxpool_transport.process.backoff import Backoff, retry_forever
from fluxpool_transport.process.ending import end_process, run_program
from fluxpool_transport.process.faults import fault_point
from fluxpool_transport.process.logging_setup import configure_logging
from fluxpool_transport.process.parent_death import ParentGoneError, bound_command, die_with_parent

__all__ = [
    "Backoff",
    "ParentGoneError",
    "bound_command",
    "configure_logging",
    "die_with_parent",
    "end_process",
    "fault_point",
    "retry_forever",
    "run_program",
]
