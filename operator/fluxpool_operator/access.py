"""What the operator asks of the Kubernetes API, and why.

The one list behind the chart's rules, the self check and the table in the docs; tests compare all of them with it and
with what the API server saw. Plain values: nothing is asked for or granted here.
"""

from dataclasses import dataclass
from typing import Final

from fluxpool_operator.api.pool import GROUP, PLURAL


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """Verbs on one kind of object, in every namespace whose pools are looked after."""

    group: str
    """API group; empty for the core's."""
    resource: str
    """Plural of the kind."""
    subresource: str = ""
    verbs: tuple[str, ...]
    why: str

    @property
    def path(self) -> str:
        """Resource and subresource as access rules spell them."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    @property
    def qualified(self) -> str:
        """The same with its group, as `kubectl` spells kinds."""
        return f"{self.path}.{self.group}" if self.group else self.path


_ALWAYS: Final = (
    AccessRule(group=GROUP, resource=PLURAL, verbs=("list", "watch"), why="to see the pools and their changes"),
    AccessRule(
        group=GROUP,
        resource=PLURAL,
        subresource="status",
        verbs=("patch",),
        why="to say what was seen and decided; specs are never changed",
    ),
    AccessRule(
        group=GROUP,
        resource=PLURAL,
        subresource="finalizers",
        verbs=("update",),
        why="never used by itself: clusters that enforce owner reference permissions, as OpenShift does, "
        "ask for it when a child names its pool as an owner that waits for it",
    ),
    AccessRule(
        group="apps",
        resource="deployments",
        verbs=("get", "list", "watch", "create", "patch"),
        why="to make the workers, scale them and see how they are; an apply needs `create` and `patch`",
    ),
    AccessRule(
        group="",
        resource="pods",
        verbs=("list", "watch", "patch"),
        why="to tell why workers do not start, and to mark idle ones so that scale-in takes those first",
    ),
    AccessRule(
        group="",
        resource="serviceaccounts",
        verbs=("get", "list", "watch", "create", "patch", "delete"),
        why="the account of a pool's workers, which has no rights; deleted when the pool names one of its own",
    ),
    AccessRule(
        group="policy",
        resource="poddisruptionbudgets",
        verbs=("get", "list", "watch", "create", "patch"),
        why="to bound how many workers a node drain takes at once",
    ),
    AccessRule(
        group="",
        resource="secrets",
        verbs=("get",),
        why="by the names that pools give: to read the backlog with the pool's Kafka credentials, "
        "and to make new pods when a Secret changes; never listed or watched",
    ),
    AccessRule(group="", resource="events", verbs=("create",), why="to tell at the pool what happened to it"),
)
_FOR_POD_MONITORS: Final = AccessRule(
    group="monitoring.coreos.com",
    resource="podmonitors",
    verbs=("get", "list", "watch", "create", "patch", "delete"),
    why="the monitor of a pool that asks for one; deleted when it no longer does",
)


def access_rules(*, pod_monitors: bool) -> tuple[AccessRule, ...]:
    """All rules of an operator, with those for PodMonitors if it makes them."""
    return (*_ALWAYS, _FOR_POD_MONITORS) if pod_monitors else _ALWAYS
