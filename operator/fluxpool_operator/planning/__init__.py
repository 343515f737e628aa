"""The scaling plan: how many replicas a backlog asks for, and why. Values in, values out.

Pure: no I/O, no clock, no randomness, no logging. Whoever scales anything (the operator over pods, local mode over
processes) calls the same `plan`.
"""

from fluxpool_operator.planning.drain import Drain
from fluxpool_operator.planning.lag_policy import plan
from fluxpool_operator.planning.pace import Pace, ReplicaChange
from fluxpool_operator.planning.snapshot import (
    Constraint,
    LaneLag,
    Plan,
    PlanState,
    ScalingConfig,
    Snapshot,
)

__all__ = [
    "Constraint",
    "Drain",
    "LaneLag",
    "Pace",
    "Plan",
    "PlanState",
    "ReplicaChange",
    "ScalingConfig",
    "Snapshot",
    "plan",
]
