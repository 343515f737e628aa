"""The FluxWorkerPool API: models of the custom resource, the source of its definition.

Pure: parses what the API server hands out. Must not know how pools are watched, planned or applied.
"""

from fluxpool_operator.api.conditions import ConditionStatus, ConditionType, Reason, Verdict, with_condition
from fluxpool_operator.api.pool import (
    API_VERSION,
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    FluxWorkerPool,
    InvalidPoolError,
    scaling_config,
)
from fluxpool_operator.api.scaling import ScalingMode
from fluxpool_operator.api.status import FluxWorkerPoolStatus, LaneStatus, PlanStatus

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "PLURAL",
    "VERSION",
    "ConditionStatus",
    "ConditionType",
    "FluxWorkerPool",
    "FluxWorkerPoolStatus",
    "InvalidPoolError",
    "LaneStatus",
    "PlanStatus",
    "Reason",
    "ScalingMode",
    "Verdict",
    "scaling_config",
    "with_condition",
]
