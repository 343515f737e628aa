"""Runs checks side by side, each with a deadline: one that hangs is a finding, and holds up no other."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from queue import Empty, SimpleQueue

from fluxpool_cli.exit_codes import CommandError


class State(StrEnum):
    """How a part is."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"
    """It is not configured here."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    state: State
    found: str
    remedy: str = ""
    """What to do; empty when all is well."""


Check = Callable[[], Iterable[Finding]]


def run_checks(checks: Mapping[str, Check], *, deadline_seconds: float) -> dict[str, list[Finding]]:
    """The findings of each check, in the order of the checks; never raises for what a check raises."""
    queue: SimpleQueue[tuple[str, Finding | None]] = SimpleQueue()

    def work(part: str, check: Check) -> None:
        try:
            for finding in check():
                queue.put((part, finding))
        except CommandError as error:
            queue.put((part, Finding(State.FAILED, str(error))))
        except Exception as error:  # noqa: BLE001 - a check meets whatever is wrong here
            queue.put((part, Finding(State.FAILED, f"{type(error).__name__}: {error}", "run again with --verbose")))
        queue.put((part, None))

    for part, check in checks.items():
        # Not joined: a check that hangs ends with the program.
        threading.Thread(target=work, args=(part, check), name=f"doctor-{part}", daemon=True).start()
    found: dict[str, list[Finding]] = {part: [] for part in checks}
    running = set(checks)
    until = time.monotonic() + deadline_seconds
    while running:
        try:
            part, finding = queue.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            break
        if finding is None:
            running.discard(part)
        else:
            found[part].append(finding)
    for part in running:
        hangs = Finding(State.FAILED, f"no answer within {deadline_seconds:g} s", "check its address and the network")
        found[part].append(hangs)
    return found
