"""Which pods a scale-in takes, and how far it can go without taking a busy one.

A Deployment does not let its user choose: its ReplicaSet sorts the pods (`ActivePodsWithRanks` in
pkg/controller/controller_utils.go of Kubernetes) and deletes the first ones. Only the fourth of its criteria, the
deletion cost, can be set: a pod that is not ready is deleted before every ready one, whatever its cost.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fluxpool_operator.workload.pods import PodPhase, PodStage, PodSummary, spans_templates

VICTIM_COST: Final = -100
"""Deletion cost of victims; below what users set by hand. Other pods have 0."""

_PHASE_ORDER: Final = {PodPhase.PENDING: 0, PodPhase.UNKNOWN: 1, PodPhase.RUNNING: 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleIn:
    """What to write: the costs first, then the replicas."""

    replicas: int
    costs: Mapping[str, int]
    """By pod name, only those that change; 0 removes the annotation."""


def plan_scale_in(pods: Sequence[PodSummary], *, busy: frozenset[str], current: int, wanted: int) -> ScaleIn:
    """Go from `current` to `wanted` replicas as far as no pod in `busy` (by name) is taken.

    Without a scale-in it only clears the costs that an earlier one left.
    """
    active = [pod for pod in pods if pod.is_active]
    if wanted >= current:
        return ScaleIn(replicas=wanted, costs=_cleared(active))
    if spans_templates(active) and (wanted > 0 or any(pod.name in busy for pod in active)):
        # During a rollout the Deployment divides a scale-in between its ReplicaSets by size: the victims are unknown.
        return ScaleIn(replicas=current, costs=_cleared(active))
    order = victim_order(active, costs={pod.name: 0 if pod.name in busy else VICTIM_COST for pod in active})
    safe = next((place for place, pod in enumerate(order) if pod.name in busy), len(order))
    taken = min(max(0, len(active) - wanted), safe)
    victims = {pod.name for pod in order[:taken]}
    replicas = max(wanted, min(current, len(active) - taken))
    return ScaleIn(replicas=replicas, costs=_cleared(active, victims=victims))


def victim_order(pods: Sequence[PodSummary], *, costs: Mapping[str, int]) -> list[PodSummary]:
    """The order in which the ReplicaSet deletes pods with these deletion costs by name; first victim first.

    Where all else is equal Kubernetes compares the binary logarithms of ages and then uids: chance among pods of
    similar age. Here the younger is first. That never decides between a busy and an idle pod of equal readiness,
    because their costs differ.
    """
    per_node = Counter(pod.node for pod in pods)

    def rank(pod: PodSummary) -> tuple[float | str, ...]:
        return (
            pod.node is not None,
            _PHASE_ORDER.get(pod.phase, len(_PHASE_ORDER)),
            pod.stage is PodStage.READY,
            costs.get(pod.name, pod.deletion_cost),
            -per_node[pod.node],
            -pod.ready_since.timestamp() if pod.ready_since else -math.inf,
            -pod.restarts,
            -pod.created_at.timestamp(),
            pod.uid,
        )

    return sorted(pods, key=rank)


def _cleared(pods: Sequence[PodSummary], *, victims: frozenset[str] | set[str] = frozenset()) -> Mapping[str, int]:
    """Changes that leave only the victims below 0. A positive cost protects a pod and stays."""
    wanted = {pod.name: VICTIM_COST if pod.name in victims else max(0, pod.deletion_cost) for pod in pods}
    return MappingProxyType({pod.name: wanted[pod.name] for pod in pods if wanted[pod.name] != pod.deletion_cost})
