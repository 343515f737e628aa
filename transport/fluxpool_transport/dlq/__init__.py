"""The dead-letter topic: reading, replaying and discarding dead letters."""

from fluxpool_transport.dlq.contents import RecordContents, contents_of
from fluxpool_transport.dlq.export import csv_columns, csv_lines, csv_original, csv_row, original_of
from fluxpool_transport.dlq.prepare import (
    DEFAULT_MAX_REPLAYS,
    PreparedReplay,
    RefusedReplay,
    ReplayChoices,
    check_choices,
    refuse_deleted_task,
)
from fluxpool_transport.dlq.reading import (
    FOREIGN,
    DeadLetterEntry,
    DeadLetterFilter,
    RecordRef,
    entry_of,
    parse_resolution,
    read_dead_letters,
    read_each,
    read_records,
    resolution_among,
)
from fluxpool_transport.dlq.replay import DeadLetterReplayer, IsDeleted, ResolutionInterruptedError, SentReplay

__all__ = [
    "DEFAULT_MAX_REPLAYS",
    "FOREIGN",
    "DeadLetterEntry",
    "DeadLetterFilter",
    "DeadLetterReplayer",
    "IsDeleted",
    "PreparedReplay",
    "RecordContents",
    "RecordRef",
    "RefusedReplay",
    "ReplayChoices",
    "ResolutionInterruptedError",
    "SentReplay",
    "check_choices",
    "contents_of",
    "csv_columns",
    "csv_lines",
    "csv_original",
    "csv_row",
    "entry_of",
    "original_of",
    "parse_resolution",
    "read_dead_letters",
    "read_each",
    "read_records",
    "refuse_deleted_task",
    "resolution_among",
]
