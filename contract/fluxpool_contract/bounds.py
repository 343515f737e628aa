"""Bounds of every number, time and text in a record, read or written. Pure.

A record may hold any number, any time and any text; databases, Python's dates and topics cannot. The message models
use these types, so that no model holds a value outside. A number outside its bound makes the message invalid; a text is
cut.

- Numbers: `MAX_INT64` (offsets, sizes, seeds), `MAX_COUNT` (steps, attempts, pixels); types `Count`, `Int64`, `Offset`.
- Times: `moment_at` (milliseconds to a date), `milliseconds_of` (a date to milliseconds), both clamped to
  1970 to `MAX_TIMESTAMP_MS`; `with_zone` (a date without a zone is UTC); type `RecordTime`.
- Texts: `MAX_ERROR_MESSAGE_BYTES`, `MAX_NAME_BYTES`, `MAX_OBJECT_KEY_BYTES`, `MAX_URL_BYTES`; `cut_text` and
  `cut_text_start` cut; types `Name` and `ErrorMessage` cut what they are given.
"""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final

from pydantic import AfterValidator, Field

MAX_INT64: Final = 2**63 - 1
"""Largest number of a database column and of Kafka's offsets and timestamps."""
MAX_COUNT: Final = 2**31 - 1
"""Steps, attempts, pixels: far above all that occurs, and sums of them stay below `MAX_INT64`."""
MAX_TIMESTAMP_MS: Final = 253_402_214_400_000
"""9999-12-31T00:00:00Z: every zone's local time still has a year of four digits."""
MAX_ERROR_MESSAGE_BYTES: Final = 4096
"""A message for people: some twenty problems in words. A result with it stays far below any topic's limit."""
MAX_NAME_BYTES: Final = 512
"""Names of workers, pools, models and codes; Kubernetes' and Kafka's own limits are 253 and 249."""
MAX_OBJECT_KEY_BYTES: Final = 1024
"""The limit of S3."""
MAX_URL_BYTES: Final = 4096
MAX_LIST_ITEMS: Final = 64
"""Images, warnings, timings and labels of one result; a task has 8 images and 16 labels at most."""

_ELLIPSIS: Final = "…"


def cut_text(text: str, max_bytes: int) -> str:
    """The text with at most `max_bytes` bytes in UTF-8; what is cut ends in an ellipsis. Lone surrogates become `?`."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - len(_ELLIPSIS.encode())].decode(errors="ignore") + _ELLIPSIS


def cut_text_start(text: str, max_bytes: int) -> str:
    """The end of the text, with at most `max_bytes` bytes in UTF-8: of a stack trace, the innermost calls."""
    encoded = text.encode(errors="replace")
    return encoded[-max_bytes:].decode(errors="ignore")


def with_zone(moment: datetime) -> datetime:
    """The same moment, ready for comparisons: without a zone it is UTC, outside of UTC's years the nearest one inside.

    `0001-01-01T00:00:00+02:00` is such a date: it lies before the first one that UTC can express.
    """
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return datetime.min.replace(tzinfo=UTC) if moment.year == 1 else datetime.max.replace(tzinfo=UTC)
    return moment


def clamped_milliseconds(timestamp_ms: float) -> int:
    """The nearest whole number of milliseconds since 1970 that is a date; the timestamp may be any number at all.

    A producer writes what it likes into a record's timestamp: seconds, microseconds, -1, 2**63 - 1.
    """
    return int(min(max(0, timestamp_ms), MAX_TIMESTAMP_MS))


def moment_at(timestamp_ms: float) -> datetime:
    """The date (UTC) of a record's timestamp in milliseconds since 1970, clamped to the nearest one that is a date."""
    return datetime.fromtimestamp(clamped_milliseconds(timestamp_ms) / 1000, UTC)


def milliseconds_of(moment: datetime) -> int:
    """Milliseconds since 1970 of a date, clamped as `moment_at` does; a date without a zone is UTC."""
    return clamped_milliseconds(round(with_zone(moment).timestamp() * 1000))


Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
"""Something counted."""
Int64 = Annotated[int, Field(ge=-MAX_INT64 - 1, le=MAX_INT64)]
"""A number that fits into a database column."""
Offset = Annotated[int, Field(ge=0, le=MAX_INT64)]
"""An offset, a size in bytes or a seed."""
Name = Annotated[str, AfterValidator(partial(cut_text, max_bytes=MAX_NAME_BYTES))]
"""A name, cut to `MAX_NAME_BYTES`."""
ErrorMessage = Annotated[str, AfterValidator(partial(cut_text, max_bytes=MAX_ERROR_MESSAGE_BYTES))]
"""Text for people, cut to `MAX_ERROR_MESSAGE_BYTES`."""
RecordTime = Annotated[datetime, AfterValidator(with_zone)]
"""A time with a zone that can be compared with any other."""
