"""kopf event handlers; feed the cache and the reconcilers. The only module that knows kopf.

`on.event` alone: kopf's daemons and timers put a finalizer on every pool, which blocks its deletion while the operator
is away, and end permanently on one refused patch (https://github.com/nolar/kopf). Label selectors narrow the watches to
what the operator created. Continues in `reconcile`.
"""

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final

import kopf

from fluxpool_operator.api import GROUP, PLURAL, VERSION
from fluxpool_operator.children import MANAGED_BY
from fluxpool_operator.cluster.client import ACCOUNT_FOLDER, is_in_cluster
from fluxpool_operator.reconcile.child_cache import ChildCache
from fluxpool_operator.reconcile.pool_tasks import PoolTasks
from fluxpool_operator.settings import OperatorSettings

_DELETED: Final = "DELETED"
_CHILDREN: Final = {
    "Deployment": ("apps", "v1", "deployments"),
    "ServiceAccount": ("", "v1", "serviceaccounts"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
}
"""Children of pools by kind, with group, version and plural."""
_POD_MONITOR: Final = ("PodMonitor", "monitoring.coreos.com", "v1", "podmonitors")
_CHUNK_OBJECTS: Final = 100
"""Objects of a list that are in memory at once, some 30 KB each."""
_IDLE_SECONDS: Final = 0.5
"""kopf has a task for each object, which keeps the last event for so long: many while thousands of pods start."""
_WATCH_SECONDS: Final = 300
"""The server ends a watch after this time and kopf opens the next: bounds how long a dead watch is unnoticed."""
_ERROR_BACKOFFS: Final = (0.5, 1, 2, 3, 5, 5, 5, 5)
"""At most 5 s, so that the watches are back within 10 s of an outage."""


def build_registry(pool_tasks: PoolTasks, cache: ChildCache, *, pod_monitors: bool) -> kopf.OperatorRegistry:
    """The handlers of one operator; `pod_monitors` are watched only where their definition is installed."""
    registry = kopf.OperatorRegistry()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def pool_event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf's name
        pool_tasks.on_pool(_plain(body), is_deleted=type == _DELETED)

    def watch_children(kind: str, group: str, version: str, plural: str) -> None:
        @kopf.on.event(group, version, plural, id=plural, registry=registry)
        async def child_event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf's name
            cache.on_child(kind, _plain(body), is_deleted=type == _DELETED)

    for kind, selector in _CHILDREN.items():
        watch_children(kind, *selector)
    if pod_monitors:
        watch_children(*_POD_MONITOR)

    @kopf.on.event("", "v1", "pods", registry=registry)
    async def pod_event(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002 - kopf's name
        cache.on_pod(_plain(body), is_deleted=type == _DELETED)

    @kopf.on.login(registry=registry)
    def login(settings: kopf.OperatorSettings, **_: Any) -> kopf.ConnectionInfo | None:
        if is_in_cluster():
            return _service_account()
        return kopf.login_with_kubeconfig(settings=settings)

    return registry


def _service_account() -> kopf.ConnectionInfo:
    """The pod's service account. kopf's own login connects to `kubernetes.default.svc`, which needs DNS."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return kopf.ConnectionInfo(
        server=f"https://{f'[{host}]' if ':' in host else host}:{port}",
        ca_path=str(ACCOUNT_FOLDER / "ca.crt"),
        # Read at each login: the kubelet replaces it every hour.
        token=(ACCOUNT_FOLDER / "token").read_text().strip(),
    )


def kopf_settings() -> kopf.OperatorSettings:
    """Settings of kopf: what it watches and how it retries."""
    settings = kopf.OperatorSettings()
    # `startup` checks what is served; scanning would need rights on definitions and namespaces.
    settings.scanning.disabled = True
    # `reconcile.apply.status_writer` posts the events.
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.networking.error_backoffs = _ERROR_BACKOFFS
    settings.networking.request_timeout = 30
    settings.networking.enforce_retry_after = True
    settings.watching.server_timeout = _WATCH_SECONDS
    settings.watching.client_timeout = _WATCH_SECONDS + 30
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = _CHUNK_OBJECTS
    settings.queueing.idle_timeout = _IDLE_SECONDS
    selector = ",".join(f"{name}={value}" for name, value in MANAGED_BY.items())
    settings.watching.label_selectors["pods"] = selector
    for _, group, version, plural in (*((kind, *names) for kind, names in _CHILDREN.items()), _POD_MONITOR):
        settings.watching.label_selectors[f"{plural}.{version}.{group}" if group else plural] = selector
    return settings


async def watch(
    settings: OperatorSettings,
    *,
    pool_tasks: PoolTasks,
    cache: ChildCache,
    stop: asyncio.Event,
    ready: asyncio.Event,
) -> None:
    """Watch until `stop` is set; `ready` is set once the watches run."""
    await kopf.operator(
        registry=build_registry(pool_tasks, cache, pod_monitors=settings.pod_monitors),
        settings=kopf_settings(),
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
        standalone=True,
        stop_flag=stop,
        ready_flag=ready,
    )


def _plain(body: kopf.Body) -> Mapping[str, Any]:
    """The object itself, without kopf's views of it."""
    return dict(body)
