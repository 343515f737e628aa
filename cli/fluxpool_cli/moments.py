"""Moments as people write them on a command line: a time, or how long ago."""

import re
from datetime import UTC, datetime, timedelta

import typer

from fluxpool_contract.messages import parse_time

_AGO = re.compile(r"(\d{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_moment(text: str, *, now: datetime, option: str) -> datetime:
    """The UTC moment of `90s`, `15m`, `24h`, `7d` (so long before `now`) or of an RFC 3339 time.

    Raises `typer.BadParameter` for the option, with both forms.
    """
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now.astimezone(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        return parse_time(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} must be how long ago, such as 15m, 24h or 7d, or a time such as 2026-04-05T10:00:00Z",
            param_hint=option,
        ) from None


def utc_text(moment: datetime) -> str:
    """A moment for a table, UTC to the millisecond."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"
