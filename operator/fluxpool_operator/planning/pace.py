"""Recent changes of the number of replicas, and how many more a scaling policy permits in its period.

Counts observed changes, not plans: a plan that is not applied uses nothing up. Must not know why replicas are required.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaChange:
    """Replicas that were added (positive) or removed (negative)."""

    seconds_ago: float
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The last observed number and its recent changes."""

    observed_replicas: int | None = None
    """None before the first observation."""
    changes: tuple[ReplicaChange, ...] = ()
    """Latest last."""

    def seen(self, replicas: int, *, elapsed_seconds: float, remember_seconds: float) -> "Pace":
        """The pace after one more observation; changes as old as `remember_seconds` are dropped."""
        aged = (replace(change, seconds_ago=change.seconds_ago + max(0.0, elapsed_seconds)) for change in self.changes)
        changes = [change for change in aged if change.seconds_ago < remember_seconds]
        if self.observed_replicas is not None and replicas != self.observed_replicas and remember_seconds > 0:
            changes.append(ReplicaChange(seconds_ago=0.0, replicas=replicas - self.observed_replicas))
        return Pace(observed_replicas=replicas, changes=tuple(changes))

    def may_add(self, *, step: int | None, period_seconds: float) -> int | None:
        """How many replicas may be added now; None for no limit."""
        return self._left(step, period_seconds, sign=1)

    def may_remove(self, *, step: int | None, period_seconds: float) -> int | None:
        """How many replicas may be removed now; None for no limit."""
        return self._left(step, period_seconds, sign=-1)

    def _left(self, step: int | None, period_seconds: float, *, sign: int) -> int | None:
        recent = (change.replicas for change in self.changes if change.seconds_ago < period_seconds)
        return None if step is None else max(0, step - sum(max(0, sign * replicas) for replicas in recent))
