"""Series of the last hour as lines of a small plot, with the same in words. Pure: time is an argument."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

WIDTH: Final = 360
"""Of the plot, in units of the drawing: one for ten seconds."""
HEIGHT: Final = 80
SPAN_SECONDS: Final = 3600.0
GAP_SECONDS: Final = 120.0
"""Without a point for longer nothing is drawn: four heartbeats of an operator, eight samples."""

Point = tuple[float, float | None]
"""Seconds since 1970 and a value; None where it was not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series."""

    name: str
    segments: tuple[str, ...]
    """Points of polylines, as SVG has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One plot."""

    title: str
    top: str
    """The value at its upper edge."""
    now: str
    """The latest value; empty while none is known."""
    lines: tuple[Line, ...]
    words: str
    """What it shows, for who does not see it."""


def plot(title: str, series: Iterable[tuple[str, Sequence[Point]]], *, now: float, steps: bool = False) -> Plot:
    """The plot of some series, the first of which is the one that it is about.

    With `steps` a value holds until the next one.
    """
    kept = [(name, [(at, value) for at, value in points if at >= now - SPAN_SECONDS]) for name, points in series]
    values = [value for _, points in kept for _, value in points if value is not None]
    top = _round_top(max(values, default=0.0))
    lines = tuple(Line(name=name, segments=_segments(points, now=now, top=top, steps=steps)) for name, points in kept)
    latest = next((value for _, value in reversed(kept[0][1]) if value is not None), None) if kept else None
    told = [_words(name, [value for _, value in points if value is not None]) for name, points in kept]
    return Plot(
        title=title,
        top=show(top),
        now="" if latest is None else show(latest),
        lines=lines,
        words=f"{title} in the last hour. " + " ".join(filter(None, told)) if values else f"{title}: not known yet.",
    )


def show(value: float) -> str:
    """A number of a plot."""
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.1f}"


def _words(name: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{name}: from {show(min(values))} to {show(max(values))}, now {show(values[-1])}."


def _round_top(most: float) -> float:
    """The least of 1, 2, 4, 5, 10, 20, 40, 50, ... that is not below."""
    scale = 1.0
    while True:
        for factor in (1, 2, 4, 5):
            if most <= factor * scale:
                return factor * scale
        scale *= 10


def _segments(points: Sequence[Point], *, now: float, top: float, steps: bool) -> tuple[str, ...]:
    parts: list[list[tuple[float, float]]] = []
    known_until = -inf
    for at, value in [*points, (now, None)] if steps else points:
        if steps and parts and parts[-1][-1][0] < (until := min(at, known_until)):
            parts[-1].append((until, parts[-1][-1][1]))
        if value is None:
            known_until = -inf
            continue
        if at > known_until:
            parts.append([])
        parts[-1].append((at, value))
        known_until = at + GAP_SECONDS
    return tuple(
        " ".join(
            f"{WIDTH * (1 - (now - at) / SPAN_SECONDS):.1f},{HEIGHT * (1 - value / top):.1f}" for at, value in part
        )
        # A lone point is a short stroke: a line of one point is none.
        + (f" {WIDTH * (1 - (now - part[0][0]) / SPAN_SECONDS) - 1:.1f},{HEIGHT * (1 - part[0][1] / top):.1f}")
        * (len(part) == 1)
        for part in parts
    )
