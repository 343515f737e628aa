"""The note that a dead letter was dealt with: it lies on the dead-letter topic itself, behind the letter it speaks of.

In the same partition and later, so that retention removes the letter first and never lets a handled one come back; a
consumer group's offsets could not say this, because Kafka forgets those of an idle group after a week.
"""

from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import Count, ErrorMessage, Name, Offset, RecordTime
from fluxpool_contract.messages.dead_letter import PREFIX
from fluxpool_contract.messages.headers import RawHeaders, cloud_event_headers, encode_headers

NOTE: Final = PREFIX + "note"
"""Header that tells a note from a dead letter; its value is the action."""
TYPE_HANDLED: Final = "dev.fluxpool.dead-letter.handled.v1"


class HandlingAction(StrEnum):
    """What was done about a dead letter."""

    REPLAYED = "replayed"
    DISCARDED = "discarded"


class HandlingNote(BaseModel):
    """One note; the last one about a dead letter counts."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    partition: Count
    """Of the dead letter, and of this note."""
    offset: Offset
    """Of the dead letter."""
    action: HandlingAction | Name
    """What was done."""
    at: RecordTime
    """UTC when it has no zone."""
    by: Name | None = None
    """Who did it."""
    reason: ErrorMessage | None = None
    """Why; always there when the letter was discarded."""
    request_id: Name | None = None
    """Of the replayed task, else of the dead letter as far as it could be read."""
    epoch: Count | None = None
    """The replayed task's; part of its object keys and of its result's event id."""
    replayed_topic: Name | None = None
    """Where the replayed task was sent to."""
    replayed_partition: Count | None = None
    replayed_offset: Offset | None = None
    patch: dict[str, Any] | None = None
    """JSON merge patch (RFC 7396) that was applied to the task."""

    def to_json(self) -> bytes:
        """The record's value."""
        return self.model_dump_json(exclude_none=True).encode()

    def to_headers(self, *, source: str) -> list[tuple[str, bytes]]:
        """The record's headers."""
        return [
            *cloud_event_headers(
                event_id=f"{self.partition}/{self.offset}/{self.action}",
                event_type=TYPE_HANDLED,
                source=source,
                subject=self.request_id,
                time=self.at,
            ),
            *encode_headers([(NOTE, str(self.action))]),
        ]


def is_note(headers: RawHeaders) -> bool:
    """Whether a record of the dead-letter topic is a note."""
    return any(name == NOTE for name, _ in headers)
