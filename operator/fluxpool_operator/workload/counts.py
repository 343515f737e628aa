"""How many pods of a pool there are in each state; which of them lack a GPU for good and which only wait for one."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from fluxpool_operator.workload.pods import PodStage, PodSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCounts:
    """Pods by what they are doing. All but `terminating` and `finished` are replicas; none is counted twice."""

    ready: int = 0
    not_ready: int = 0
    loading: int = 0
    """On a node or about to be, and on the way to work."""
    gated: int = 0
    unschedulable: int = 0
    """No node has room, and no pod of the pool is about to make some."""
    waiting_for_gpu: int = 0
    """No node has room while a pod of the pool, which is being stopped, still holds its GPU."""
    terminating: int = 0
    finished: int = 0

    @property
    def active(self) -> int:
        """Pods that the ReplicaSets count as replicas."""
        return self.ready + self.not_ready + self.loading + self.gated + self.unschedulable + self.waiting_for_gpu


def count_pods(pods: Iterable[PodSummary]) -> PodCounts:
    """Count pods of one pool.

    A Deployment makes the replacement of a pod at once, while its predecessor finishes a task and still holds the GPU.
    So as many unschedulable pods as there are terminating ones are said to wait.
    """
    stages = Counter(pod.stage for pod in pods)
    without_node, terminating = stages[PodStage.UNSCHEDULABLE], stages[PodStage.TERMINATING]
    waiting = min(without_node, terminating)
    return PodCounts(
        ready=stages[PodStage.READY],
        not_ready=stages[PodStage.NOT_READY],
        loading=stages[PodStage.STARTING],
        gated=stages[PodStage.GATED],
        unschedulable=without_node - waiting,
        waiting_for_gpu=waiting,
        terminating=terminating,
        finished=stages[PodStage.FINISHED],
    )
