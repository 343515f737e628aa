"""When a delivery that failed is attempted again, and when it is given up. Pure."""

from typing import Final

_SECOND_MS: Final = 1000
_MINUTE_MS: Final = 60 * _SECOND_MS
_HOUR_MS: Final = 60 * _MINUTE_MS
DELAYS_MS: Final = (5 * _SECOND_MS, 5 * _MINUTE_MS, 30 * _MINUTE_MS, 2 * _HOUR_MS, 5 * _HOUR_MS, 10 * _HOUR_MS)
"""Before the second attempt and those after it; the last delay repeats. The example of Standard Webhooks."""
MAX_AGE_MS: Final = 72 * _HOUR_MS
JITTER: Final = 0.05
"""A delay is longer or shorter by so much at most. Endpoints that failed together are attempted apart."""


def next_attempt_ms(
    *, tries: int, queued_at_ms: int, now_ms: int, retry_after_ms: int | None, draw: float
) -> int | None:
    """When the next attempt is due after so many failed ones; None when the delivery is given up.

    `retry_after_ms` is the least delay that the endpoint asks for; `draw` is random, from 0 to 1.
    """
    delay_ms = DELAYS_MS[min(tries, len(DELAYS_MS)) - 1] * (1 + JITTER * (2 * draw - 1))
    at_ms = now_ms + max(round(delay_ms), retry_after_ms or 0)
    return at_ms if at_ms <= queued_at_ms + MAX_AGE_MS else None
