"""Summaries of pods, Deployments and other children, and what a scale-in and a rollout do with them.

Pure: values in, values out. Must not know how objects are watched or written, nor how many workers a backlog needs.
"""

from fluxpool_operator.workload.child import ChildSummary, summarize_child
from fluxpool_operator.workload.deployment import (
    DeploymentSummary,
    is_rolling_out,
    rollout_width,
    summarize_deployment,
)
from fluxpool_operator.workload.pods import (
    DELETION_COST_ANNOTATION,
    PodCounts,
    PodStage,
    PodSummary,
    controller_uid,
    count_pods,
    summarize_pod,
)
from fluxpool_operator.workload.scale_in import ScaleIn, plan_scale_in

__all__ = [
    "DELETION_COST_ANNOTATION",
    "ChildSummary",
    "DeploymentSummary",
    "PodCounts",
    "PodStage",
    "PodSummary",
    "ScaleIn",
    "controller_uid",
    "count_pods",
    "is_rolling_out",
    "plan_scale_in",
    "rollout_width",
    "summarize_child",
    "summarize_deployment",
    "summarize_pod",
]
