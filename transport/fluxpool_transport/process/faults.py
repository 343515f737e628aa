"""Named points where tests make the program fail on purpose.

`FLUXPOOL_FAULT=<point>:<kill|hang|raise>[:nth]` arms one point: the nth time (default: the first) that the program
passes it, the process is killed with SIGKILL, hangs, or raises `InjectedFaultError`. The choice is made once, when a
point is bound at import; an unarmed point is a function that does nothing.
"""

import itertools
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from enum import StrEnum

ENVIRONMENT_VARIABLE = "FLUXPOOL_FAULT"
_SPEC = re.compile(r"(?P<point>[a-z0-9][a-z0-9.-]*):(?P<action>kill|hang|raise)(:(?P<nth>[1-9][0-9]*))?")


class FaultAction(StrEnum):
    """What an armed point does."""

    KILL = "kill"
    HANG = "hang"
    RAISE = "raise"


class InjectedFaultError(Exception):
    """Raised by a point armed with `raise`."""


class FaultSpecError(ValueError):
    """The variable's value does not have the form `<point>:<kill|hang|raise>[:nth]`."""


def fault_point(name: str, environment: Mapping[str, str] = os.environ) -> Callable[[], None]:
    """Bind the point `name`; call the result where the program may fail.

    Raises `FaultSpecError` when the variable is set but malformed, so that a mistyped test cannot pass by accident.
    """
    spec = environment.get(ENVIRONMENT_VARIABLE)
    if not spec:
        return lambda: None
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise FaultSpecError(
            f"{ENVIRONMENT_VARIABLE}={spec!r}: expected <point>:<kill|hang|raise>[:nth], such as after-store:kill:2"
        )
    if match["point"] != name:
        return lambda: None
    return _armed(name, FaultAction(match["action"]), int(match["nth"] or 1))


def _armed(name: str, action: FaultAction, nth: int) -> Callable[[], None]:
    passes = itertools.count(1)

    def trip() -> None:
        if next(passes) != nth:
            return
        match action:
            case FaultAction.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case FaultAction.HANG:
                threading.Event().wait()
            case FaultAction.RAISE:
                raise InjectedFaultError(name)

    return trip
