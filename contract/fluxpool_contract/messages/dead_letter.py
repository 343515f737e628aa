"""The dead letter: a record that could not be turned into images, its bytes untouched, and the reason in headers.

Key, value and headers of the original stay as they were; what Fluxpool adds begins with `fluxpool-dlq-`. The fields of
Kafka Connect's and Spring's dead letters were the model, with a disposition beside them, because "crashed" and
"refused" cannot be told apart otherwise.
"""

from datetime import datetime
from enum import StrEnum
from typing import Final, Self

from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import (
    MAX_OBJECT_KEY_BYTES,
    Count,
    Int64,
    Name,
    Offset,
    RecordTime,
    cut_text,
    cut_text_start,
)
from fluxpool_contract.messages.headers import RawHeaders, encode_headers, format_time
from fluxpool_contract.problems import ErrorClass, ErrorCode

DEAD_LETTER_PREFIX: Final = "fluxpool-dlq-"
MAX_ERROR_TEXT_BYTES: Final = 1024
MAX_STACK_BYTES: Final = 8 * 1024
MAX_HEADER_BYTES: Final = 16 * 1024
"""Room that the added headers take at most; the dead-letter topic's `max.message.bytes` exceeds the tasks' by more."""


class Disposition(StrEnum):
    """Why the record ended here."""

    INVALID = "invalid"
    EXHAUSTED = "exhausted"
    CRASH_LOOP = "crash-loop"
    EXPIRED = "expired"
    OVERSIZE = "oversize"


class DeadLetter(BaseModel):
    """What the `fluxpool-dlq-*` headers of one record say."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    origin_topic: Name
    origin_partition: Count
    origin_offset: Offset
    origin_timestamp_ms: Int64
    """Timestamp of the original record, milliseconds since 1970; -1 when it had none."""
    disposition: Disposition | Name
    error_class: ErrorClass | Name
    error_code: ErrorCode | Name
    message: str
    """At most 1 KiB."""
    stack: str | None = None
    """At most 8 KiB, the innermost end."""
    attempts: Count
    crashes: Count = 0
    worker: Name | None = None
    pool: Name | None = None
    model: Name | None = None
    failed_at: RecordTime
    """UTC when it has no zone."""
    request_id: Name | None = None
    """As far as it could be read from the value."""
    object: str | None = None
    """Key in the object store of the original's value, when the record was too large to be kept here; absent: the
    value is this record's own."""

    def to_headers(self, original: RawHeaders) -> list[tuple[str, bytes]]:
        """Headers of the dead letter: the original's, less those of an earlier dead letter, and this one's."""
        kept = [(name, value or b"") for name, value in original if not name.startswith(DEAD_LETTER_PREFIX)]
        added: list[tuple[str, str]] = []
        for field, value in self:
            match value:
                case None:
                    continue
                case datetime():
                    text = format_time(value)
                case str():
                    text = _bounded(field, value)
                case _:
                    text = str(value)
            added.append((DEAD_LETTER_PREFIX + field.replace("_", "-"), text))
        return kept + encode_headers(added)

    @classmethod
    def from_headers(cls, headers: RawHeaders) -> Self:
        """The dead letter that the headers of a record describe.

        Raises pydantic's `ValidationError` when a record of another origin lies on the topic.
        """
        fields = {
            name.removeprefix(DEAD_LETTER_PREFIX).replace("-", "_"): value.decode(errors="replace")
            for name, value in headers
            if name.startswith(DEAD_LETTER_PREFIX) and value is not None
        }
        return cls.model_validate(fields)


def _bounded(field: str, text: str) -> str:
    match field:
        case "message":
            return cut_text(text, MAX_ERROR_TEXT_BYTES)
        case "stack":
            return cut_text_start(text, MAX_STACK_BYTES)
        case _:
            return cut_text(text, MAX_OBJECT_KEY_BYTES)
