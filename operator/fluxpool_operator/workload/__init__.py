"""What runs: pods and the Deployment read from objects of the Kubernetes API, and what to do with them.

Pure: values in, values out. Must not know how objects are watched or written, nor how many workers a backlog needs.
"""

from fluxpool_operator.workload.child import ChildSummary, summarize_child
from fluxpool_operator.workload.counts import PodCounts, count_pods
from fluxpool_operator.workload.deployment import ControllerCondition, DeploymentSummary, summarize_deployment
from fluxpool_operator.workload.pods import (
    DELETION_COST_ANNOTATION,
    ContainerExit,
    PodPhase,
    PodStage,
    PodSummary,
    controller_uid,
    summarize_pod,
)
from fluxpool_operator.workload.rollout import is_rolling_out, rollout_width
from fluxpool_operator.workload.scale_in import VICTIM_COST, ScaleIn, plan_scale_in

__all__ = [
    "DELETION_COST_ANNOTATION",
    "VICTIM_COST",
    "ChildSummary",
    "ContainerExit",
    "ControllerCondition",
    "DeploymentSummary",
    "PodCounts",
    "PodPhase",
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
