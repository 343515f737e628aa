"""Fault points of forked programs: modules bind them in the fork server, long before a program's environment is known.

`defer` goes before every import of a module with a fault point. `arm` is for the forked process, which then has the
points that its own environment arms, as if it had imported the modules itself.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final

from fluxpool_transport import process
from fluxpool_transport.process import faults

_bind: Final = faults.fault_point


class _DeferredPoint:
    """What a module binds: the product's own point, of the present environment until another one arms it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pass: Callable[[], None] = _bind(name)

    def __call__(self) -> None:
        self._pass()

    def arm(self, environment: Mapping[str, str]) -> None:
        self._pass = _bind(self._name, environment)


_points: Final[list[_DeferredPoint]] = []


def defer() -> None:
    """Have the modules that are imported from now on bind points that can be armed later."""
    process.fault_point = faults.fault_point = _deferred


def arm() -> None:
    """Arm the points as this process's environment says; raises `FaultSpecError` for a malformed one."""
    for point in _points:
        point.arm(os.environ)


def _deferred(name: str, environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    if environment is not os.environ:
        return _bind(name, environment)
    point = _DeferredPoint(name)
    _points.append(point)
    return point
