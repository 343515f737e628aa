"""When a status is worth a write, and the patch that writes it.

Every pool's writes add up in etcd, so what only differs in numbers waits.
"""

from collections.abc import Mapping
from typing import Any, Final

from fluxpool_operator.api import FluxWorkerPoolStatus

INTERVAL_SECONDS: Final = 10.0
"""Between two writes of which the later only has other numbers."""

_COUNTS: Final = (
    "observed_generation",
    "replicas",
    "ready_replicas",
    "updated_replicas",
    "terminating_replicas",
    "desired_replicas",
    "selector",
    "template_hash",
)


def worth_writing(written: FluxWorkerPoolStatus, new: FluxWorkerPoolStatus, *, seconds_since_write: float) -> bool:
    """Whether to write now: at once when a condition or a count of pods differs, later for other numbers."""
    if written == new:
        return False
    if _urgent(written) != _urgent(new):
        return True
    # A later reading of the same backlog is no news: thousands of pools at rest must not write.
    times = {"lag_observed_time": new.lag_observed_time, "last_active_time": new.last_active_time}
    is_later_reading = written.model_copy(update=times) == new
    return not is_later_reading and seconds_since_write >= INTERVAL_SECONDS


def status_patch(written: FluxWorkerPoolStatus, new: FluxWorkerPoolStatus) -> dict[str, Any]:
    """A merge patch of `status` that leaves exactly the new one: in full, and null for what is no more."""
    return _merge(written.to_manifest(), new.to_manifest())


def _urgent(status: FluxWorkerPoolStatus) -> tuple[object, ...]:
    said = tuple((each.type, each.status, each.reason, each.observed_generation) for each in status.conditions)
    return (said, *(getattr(status, name) for name in _COUNTS))


def _merge(written: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(written.keys() - new.keys())
    for name, value in new.items():
        before = written.get(name)
        patch[name] = _merge(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return patch
