"""The operator's RBAC rules, with a reason for each.

The one list behind the chart's roles, the self check and the table in the docs; tests compare all of them with it and
with the API server's audit log.
"""

from dataclasses import dataclass
from typing import Final

from fluxpool_operator.api.pool import GROUP, PLURAL


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRule:
    """Verbs on one kind of object, in every watched namespace."""

    group: str
    """API group; empty for the core's."""
    resource: str
    """Plural of the kind."""
    subresource: str = ""
    verbs: tuple[str, ...]
    why: str

    @property
    def path(self) -> str:
        """`resource/subresource`, as RBAC rules spell them."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    @property
    def qualified(self) -> str:
        """The path with its group, as `kubectl` spells kinds."""
        return f"{self.path}.{self.group}" if self.group else self.path


_ALWAYS: Final = (
    AccessRule(group=GROUP, resource=PLURAL, verbs=("list", "watch"), why="to observe the pools"),
    AccessRule(
        group=GROUP,
        resource=PLURAL,
        subresource="status",
        verbs=("patch",),
        why="to write the status; specs are never changed",
    ),
    AccessRule(
        group=GROUP,
        resource=PLURAL,
        subresource="finalizers",
        verbs=("update",),
        why="required by clusters that enforce owner reference permissions, such as OpenShift, to set "
        "`blockOwnerDeletion` on children",
    ),
    AccessRule(
        group="apps",
        resource="deployments",
        verbs=("get", "list", "watch", "create", "patch"),
        why="to create, scale and observe the workers; an apply needs `create` and `patch`",
    ),
    AccessRule(
        group="",
        resource="pods",
        verbs=("list", "watch", "patch"),
        why="to report why workers do not start, and to set the deletion cost of idle ones before a scale-in",
    ),
    AccessRule(
        group="",
        resource="serviceaccounts",
        verbs=("get", "list", "watch", "create", "patch", "delete"),
        why="for the account of a pool's workers, which has no rights; deleted when the pool names another one",
    ),
    AccessRule(
        group="policy",
        resource="poddisruptionbudgets",
        verbs=("get", "list", "watch", "create", "patch"),
        why="to limit how many workers a node drain evicts at once",
    ),
    AccessRule(
        group="",
        resource="secrets",
        verbs=("get",),
        why="by the names in pools: to read the lag with the pool's Kafka credentials, and to roll the pods "
        "when a Secret changes; never listed or watched",
    ),
    AccessRule(group="", resource="events", verbs=("create",), why="to post events about pools"),
)
_FOR_POD_MONITORS: Final = AccessRule(
    group="monitoring.coreos.com",
    resource="podmonitors",
    verbs=("get", "list", "watch", "create", "patch", "delete"),
    why="for the monitor of a pool with podMonitor; deleted when the field is removed",
)


def access_rules(*, pod_monitors: bool) -> tuple[AccessRule, ...]:
    """All rules; those for PodMonitors only when the operator creates them."""
    return (*_ALWAYS, _FOR_POD_MONITORS) if pod_monitors else _ALWAYS
