"""The scaling plan: how many replicas a lag requires, and why.

Pure: no I/O, no clock, no randomness, no logging. The operator (for pods) and local mode (for processes) call the same
`plan`.
"""

from fluxpool_operator.planning.lag_policy import plan
from fluxpool_operator.planning.pace import Pace, ReplicaChange
from fluxpool_operator.planning.snapshot import (
    Constraint,
    Plan,
    PlanState,
    ScalingConfig,
    Snapshot,
)

__all__ = [
    "Constraint",
    "Pace",
    "Plan",
    "PlanState",
    "ReplicaChange",
    "ScalingConfig",
    "Snapshot",
    "plan",
]
