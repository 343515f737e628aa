"""Whether a change of the pod template is still being rolled out, and how many pods it may take away at once."""

from collections.abc import Sequence

from fluxpool_operator.workload.counts import count_pods
from fluxpool_operator.workload.deployment import DeploymentSummary
from fluxpool_operator.workload.pods import PodSummary


def is_rolling_out(deployment: DeploymentSummary, pods: Sequence[PodSummary]) -> bool:
    """Whether pods of an older template are among the replicas."""
    return deployment.updated < deployment.replicas or spans_templates(pods)


def spans_templates(pods: Sequence[PodSummary]) -> bool:
    """Whether the replicas have more than one template."""
    return len({pod.template_hash for pod in pods if pod.is_active}) > 1


def rollout_width(deployment: DeploymentSummary, pods: Sequence[PodSummary]) -> int:
    """The `maxUnavailable` of the Deployment.

    Normally 1. While pods lack a GPU they use that up and a rollout would never go on (8 wanted, 5 GPUs: stuck with one
    new pod that finds no room), so they are allowed for. Pods that load, and those that only wait for the GPU of a pod
    which is being stopped, are not: each replaced pod is one of them for a while, and to allow for it would take away
    the next, and so all at once.
    """
    if not is_rolling_out(deployment, pods):
        return 1
    counts = count_pods(pods)
    return 1 + counts.unschedulable + counts.gated
