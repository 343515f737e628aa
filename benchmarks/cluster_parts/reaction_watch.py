"""The replicas of Deployments over time, from a watch, and the reaction to a burst of tasks.

Owns the times of observed changes. Must not know what scales, nor why.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from kit.cluster.kubernetes_api import Body, KubernetesApi


@dataclass(frozen=True, slots=True)
class Sighting:
    """One value of a Deployment's `spec.replicas`."""

    at_seconds: float
    """Monotonic time of the watch event."""
    replicas: int


@dataclass(frozen=True, slots=True)
class Reaction:
    """How a Deployment reached the planned size."""

    seconds: float
    """From the last task's acknowledgement; negative if the size was reached before."""
    steps: int
    """Changes of the number of replicas since the burst began."""


def reaction_to(sightings: Sequence[Sighting], *, acked_at_seconds: float, size: int) -> Reaction | None:
    """The reaction to a burst, from all changes since it began; None while the size is another one.

    The last change counts: a scaler that left the planned size again, or exceeded it, had not reached it.
    """
    if not sightings or sightings[-1].replicas != size:
        return None
    return Reaction(seconds=sightings[-1].at_seconds - acked_at_seconds, steps=len(sightings))


class ReplicaLog:
    """Every change of `spec.replicas` of a namespace's Deployments, by their names, while `follow` runs."""

    def __init__(self, api: KubernetesApi, *, namespace: str) -> None:
        """No change is recorded before `follow`."""
        self._api = api
        self._path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
        self._seen: dict[str, list[Sighting]] = {}

    async def follow(self) -> None:
        """Watch until cancelled; raises the API client's errors, except for the normal end of a watch."""
        while True:
            listed = await self._api.get(self._path)
            for found in listed["items"]:
                self._note(found)
            version = listed["metadata"]["resourceVersion"]
            async for event, found in self._api.watch(self._path, resource_version=version):
                if event != "BOOKMARK":  # a bookmark: no object, but with a number of replicas
                    self._note(found)

    def replicas(self, name: str) -> int | None:
        """Last value of a Deployment; None before the first."""
        return self._seen[name][-1].replicas if name in self._seen else None

    def since(self, name: str, at_seconds: float) -> list[Sighting]:
        """The changes from then on, in order."""
        return [seen for seen in self._seen.get(name, ()) if seen.at_seconds >= at_seconds]

    def _note(self, found: Body) -> None:
        replicas = found["spec"]["replicas"]
        seen = self._seen.setdefault(found["metadata"]["name"], [])
        if not seen or seen[-1].replicas != replicas:
            seen.append(Sighting(time.monotonic(), replicas))
