"""Retry topics: how long each makes a task wait, who hands it on, and what it carries there. Pure.

A retry topic has one fixed delay, so that its partitions are ordered by the time their records are due. Pools may share
retry topics: hence the group that hands records on is named after the topic, and each record says where it belongs.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from fluxpool_contract.headers import (
    ATTEMPT,
    CRASHES,
    ERROR_CLASS,
    ERROR_CODE,
    FIRST_SEEN,
    NOT_BEFORE,
    ORIGIN_OFFSET,
    ORIGIN_PARTITION,
    ORIGIN_TOPIC,
    Envelope,
    RawHeaders,
    format_time,
)

DELAY_PATTERN: Final = r"^[1-9][0-9]{0,5}(ms|s|m|h)$"
"""How a delay is written: `500ms`, `15s`, `2m`, `1h`."""
DELAYS_BY_PLACE_SECONDS: Final = (15.0, 120.0, 900.0)
"""For topics whose name does not end in a delay: the first, the second, and all further ones."""
MAX_JITTER: Final = 0.2
"""Part of its delay that a task may wait longer, so that tasks that failed together do not come back together."""

_UNIT_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_SUFFIX: Final = re.compile(r"(?:^|[._-])([1-9][0-9]{0,5})(ms|s|m|h)$")


def parse_delay(text: str) -> float:
    """Seconds of a text such as `15s`; raises `ValueError` when it has another form."""
    if re.match(DELAY_PATTERN, text) is None:
        raise ValueError(f"{text!r} must be a whole number and ms, s, m or h, such as 15s or 2m")
    return _seconds(*_split(text))


def retry_delays_seconds(topics: Sequence[str], configured: Sequence[str] = ()) -> tuple[float, ...]:
    """The delay of each retry topic: as configured, else the end of its name (`-2m`), else by its place."""
    if configured:
        return tuple(map(parse_delay, configured))
    return tuple(_delay_of(topic, place) for place, topic in enumerate(topics))


def due_at(now: datetime, delay_seconds: float, *, jitter: float) -> datetime:
    """When a task that goes to a retry topic now may go on; `jitter` is a random number from 0 to 1."""
    return now + timedelta(seconds=delay_seconds * (1 + MAX_JITTER * jitter))


def scheduler_group(retry_topic: str) -> str:
    """The consumer group that hands a retry topic's records on when they are due; one for all pools."""
    return f"{retry_topic}-scheduler"


def retry_headers(
    original: RawHeaders,
    envelope: Envelope,
    *,
    attempt: int,
    crashes: int,
    first_seen: datetime,
    not_before: datetime,
    origin: tuple[str, int, int],
    error: tuple[str, str],
) -> list[tuple[str, bytes]]:
    """Headers of a task on its way to a retry topic: its own, with its counts and its history brought up to date.

    `attempt` is the one to come. `origin` (topic, partition, offset) is where it was taken now; an earlier origin that
    the envelope knows of is kept. `error` is class and code.
    """
    first = (envelope.origin_topic, envelope.origin_partition, envelope.origin_offset)
    topic, partition, offset = origin if envelope.origin_topic is None else first
    return _replaced(
        original,
        {
            ATTEMPT: str(attempt),
            CRASHES: str(crashes),
            FIRST_SEEN: format_time(first_seen),
            NOT_BEFORE: format_time(not_before),
            ORIGIN_TOPIC: topic,
            ORIGIN_PARTITION: None if partition is None else str(partition),
            ORIGIN_OFFSET: None if offset is None else str(offset),
            ERROR_CLASS: error[0],
            ERROR_CODE: error[1],
        },
    )


def due_headers(original: RawHeaders) -> list[tuple[str, bytes]]:
    """Headers of a task on its way back from a retry topic: it waits for nothing more."""
    return _replaced(original, {NOT_BEFORE: None})


def _replaced(original: RawHeaders, values: dict[str, str | None]) -> list[tuple[str, bytes]]:
    kept = [(name, value or b"") for name, value in original if name not in values]
    return kept + [(name, value.encode()) for name, value in values.items() if value is not None]


def _delay_of(topic: str, place: int) -> float:
    suffix = _SUFFIX.search(topic)
    if suffix is not None:
        return _seconds(suffix[1], suffix[2])
    return DELAYS_BY_PLACE_SECONDS[min(place, len(DELAYS_BY_PLACE_SECONDS) - 1)]


def _split(text: str) -> tuple[str, str]:
    number = text.rstrip("hms")
    return number, text[len(number) :]


def _seconds(number: str, unit: str) -> float:
    return int(number) * _UNIT_SECONDS[unit]
