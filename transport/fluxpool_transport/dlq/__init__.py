"""The dead-letter topic: reading, replaying and discarding dead letters."""

from fluxpool_transport.dlq.contents import RecordContents, contents_of
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
    RecordRef,
    entry_of,
    parse_resolution,
    read_dead_letters,
    read_records,
)
from fluxpool_transport.dlq.replay import DeadLetterReplayer, ResolutionInterruptedError, SentReplay

__all__ = [
    "DEFAULT_MAX_REPLAYS",
    "FOREIGN",
    "DeadLetterEntry",
    "DeadLetterFilter",
    "DeadLetterReplayer",
    "PreparedReplay",
    "RecordContents",
    "RecordRef",
    "RefusedReplay",
    "ReplayChoices",
    "ResolutionInterruptedError",
    "SentReplay",
    "check_choices",
    "contents_of",
    "entry_of",
    "parse_resolution",
    "read_dead_letters",
    "read_records",
]
