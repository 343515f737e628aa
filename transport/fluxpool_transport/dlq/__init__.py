"""The dead-letter topic: reading, replaying and discarding dead letters."""

from fluxpool_transport.dlq.prepare import (
    DEFAULT_MAX_REPLAYS,
    PreparedReplay,
    RefusedReplay,
    ReplayChoices,
    check_choices,
)
from fluxpool_transport.dlq.reading import (
    FOREIGN,
    DeadLetterEntry,
    DeadLetterFilter,
    Place,
    entry_of,
    read_dead_letters,
    read_records,
)
from fluxpool_transport.dlq.replay import DeadLetterDesk, HandlingInterruptedError, SentReplay

__all__ = [
    "DEFAULT_MAX_REPLAYS",
    "FOREIGN",
    "DeadLetterDesk",
    "DeadLetterEntry",
    "DeadLetterFilter",
    "HandlingInterruptedError",
    "Place",
    "PreparedReplay",
    "RefusedReplay",
    "ReplayChoices",
    "SentReplay",
    "check_choices",
    "entry_of",
    "read_dead_letters",
    "read_records",
]
