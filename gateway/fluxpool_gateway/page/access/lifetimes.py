"""Times that the forms of keys and endpoints offer, in words."""

from typing import Final

_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
OVERLAPS: Final = {0: "at once", _HOUR: "after 1 hour", _DAY: "after 1 day", 7 * _DAY: "after 7 days"}
"""When the former secret ends, by seconds."""
USUAL_OVERLAP: Final = _DAY
LIFETIMES: Final = {
    "": "never",
    str(_DAY): "in 1 day",
    str(30 * _DAY): "in 30 days",
    str(90 * _DAY): "in 90 days",
    str(365 * _DAY): "in 1 year",
}
"""When a new key expires, by seconds; empty: it does not."""
