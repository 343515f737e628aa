"""The resolution of a dead letter: a record on the dead-letter topic, in the same partition behind the dead letter.

There retention removes the dead letter first, so that a resolved one never comes back; a consumer group's offsets could
not say this, because Kafka forgets those of an idle group after a week.
"""

from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from fluxpool_contract.bounds import Count, ErrorMessage, Name, Offset, RecordTime
from fluxpool_contract.messages.dead_letter import DEAD_LETTER_PREFIX
from fluxpool_contract.messages.headers import RawHeaders, cloud_event_headers, encode_headers

RESOLUTION: Final = DEAD_LETTER_PREFIX + "resolution"
"""Header that tells a resolution from a dead letter; its value is the action."""
_HEADERS: Final = frozenset({RESOLUTION, DEAD_LETTER_PREFIX + "note"})
"""Release 0.1 wrote the second."""
TYPE_RESOLVED: Final = "dev.fluxpool.dead-letter.resolved.v1"


class ResolutionAction(StrEnum):
    """What was done about a dead letter."""

    REPLAYED = "replayed"
    DISCARDED = "discarded"
    DELETED = "deleted"
    """Its task was deleted: nothing lists, exports or replays the dead letter, whatever else is said of it."""


class Resolution(BaseModel):
    """What was done about one dead letter; its last resolution counts."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    partition: Count
    """Of the dead letter and of this record."""
    offset: Offset
    """Of the dead letter."""
    action: ResolutionAction | Name
    """What was done."""
    at: RecordTime
    """UTC when it has no zone."""
    by: Name | None = None
    """Who did it."""
    reason: ErrorMessage | None = None
    """Why; required when the dead letter was discarded."""
    job_id: Name | None = None
    """Replay job of the gateway that it belongs to."""
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
                event_type=TYPE_RESOLVED,
                source=source,
                subject=self.request_id,
                time=self.at,
            ),
            *encode_headers([(RESOLUTION, str(self.action))]),
        ]


def is_resolution(headers: RawHeaders) -> bool:
    """Whether a record of the dead-letter topic is a resolution, rather than a dead letter."""
    return any(name in _HEADERS for name, _ in headers)
