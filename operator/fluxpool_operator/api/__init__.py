"""The FluxWorkerPool API: models of the custom resource, the source of its definition.

Pure: parses what the API server hands out. Must not know how pools are watched, planned or applied.
"""

from fluxpool_operator.api.conditions import Condition, ConditionStatus, ConditionType, Reason, with_condition
from fluxpool_operator.api.pool import (
    API_VERSION,
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    FluxWorkerPool,
    FluxWorkerPoolSpec,
    InvalidPoolError,
    scaling_config,
)
from fluxpool_operator.api.scaling import LagUnavailablePolicy, ScalingMode, ScalingPolicy
from fluxpool_operator.api.status import FluxWorkerPoolStatus, LaneStatus, PlanStatus

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "FluxWorkerPool",
    "FluxWorkerPoolSpec",
    "FluxWorkerPoolStatus",
    "InvalidPoolError",
    "LagUnavailablePolicy",
    "LaneStatus",
    "PlanStatus",
    "Reason",
    "ScalingMode",
    "ScalingPolicy",
    "scaling_config",
    "with_condition",
]
