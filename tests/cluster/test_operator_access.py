"""The operator's permissions are exactly those that it uses: the audit log compared with the chart's rules."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kit.cluster.control_plane import ControlPlane
from kit.cluster.manifests import wait_exists, wait_gone
from kit.scaling.operator_bench import OPERATOR, OperatorBench
from kit.waiting import wait_until
from kit.workers.gate import Gate

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

Access = tuple[str, str]
"""Verb, and resource with its group."""

MONITORS = "podmonitors.monitoring.coreos.com"
BY_APPLY = {
    ("create", "deployments.apps"),
    ("create", "serviceaccounts"),
    ("create", "poddisruptionbudgets.policy"),
    ("create", MONITORS),
}
"""An apply that creates an object also requires this verb; the audit log shows a patch."""
NEVER_USED = {("update", "fluxworkerpools/finalizers.fluxpool.dev")}
"""Required only by clusters that enforce owner reference permissions."""
MONITOR_DEFINITION = """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {plural: podmonitors, singular: podmonitor, kind: PodMonitor, listKind: PodMonitorList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"""


@pytest.fixture
async def monitors(control_plane: ControlPlane) -> AsyncIterator[None]:
    """A minimal PodMonitor CRD."""
    await control_plane.kubectl("apply", "-f", "-", input=MONITOR_DEFINITION)
    await control_plane.kubectl("wait", "--for=condition=Established", f"crd/{MONITORS}", "--timeout=60s")
    yield
    await control_plane.kubectl("delete", f"crd/{MONITORS}")


@pytest.mark.parametrize("cluster_wide", [False, True], ids=["namespaced", "cluster"])
@pytest.mark.usefixtures("monitors")
async def test_the_rules_are_exactly_what_the_operator_requests(fluxpool: OperatorBench, cluster_wide: bool) -> None:
    await fluxpool.install(watch__clusterWide=cluster_wide, podMonitors__enabled=True, resyncIntervalSeconds=2)
    await _visit_everything(fluxpool)
    granted = await _granted(fluxpool, cluster_wide=cluster_wide)
    user = f"system:serviceaccount:{fluxpool.namespace}:{OPERATOR}"

    def complete() -> bool:
        return granted - BY_APPLY - NEVER_USED <= set(_asked(fluxpool, user))

    try:
        await wait_until(complete, deadline_seconds=20, what="every permission to be used")
    except AssertionError as error:
        error.add_note(f"unused: {granted - BY_APPLY - NEVER_USED - set(_asked(fluxpool, user))}")
        raise
    asked = _asked(fluxpool, user)
    assert set(asked) == granted - BY_APPLY - NEVER_USED
    refused = [event for event in _events(fluxpool, user) if event["responseStatus"]["code"] == 403]
    assert refused == []
    for access, namespaces in asked.items():
        is_wide = cluster_wide and access[0] in ("list", "watch")
        assert namespaces == ({""} if is_wide else {fluxpool.namespace}), access


async def _visit_everything(fluxpool: OperatorBench) -> None:
    """Use each thing that the operator can do at least once."""
    await fluxpool.topics("standard")
    path = f"/apis/monitoring.coreos.com/v1/namespaces/{fluxpool.namespace}/podmonitors/standard-worker"
    account = f"/api/v1/namespaces/{fluxpool.namespace}/serviceaccounts/standard-worker"
    await fluxpool.apply(fluxpool.pool(scaling__minReplicas=2, podMonitor={"intervalSeconds": 15}))
    await fluxpool.wait_pods(2)
    await wait_exists(fluxpool.bench.api, path)
    # Scale-in while one of them is busy: idle ones are marked.
    with Gate() as gate:
        await fluxpool.produce(1, prompt=gate.prompt)
        await fluxpool.wait_busy()
        await fluxpool.patch("standard", {"scaling": {"minReplicas": 1}})
        await fluxpool.wait_replicas(1)
    await fluxpool.patch("standard", {"podMonitor": None, "worker": {"serviceAccountName": "default"}})
    await wait_gone(fluxpool.bench.api, path)
    await wait_gone(fluxpool.bench.api, account)


async def _granted(fluxpool: OperatorBench, *, cluster_wide: bool) -> set[Access]:
    """Permissions of the rules in the API server."""
    kind = "clusterroles" if cluster_wide else f"namespaces/{fluxpool.namespace}/roles"
    role = await fluxpool.bench.api.get(f"/apis/rbac.authorization.k8s.io/v1/{kind}/{OPERATOR}")
    return {
        (verb, f"{resource}.{group}" if group else resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _events(fluxpool: OperatorBench, user: str) -> list[dict[str, Any]]:
    """Audit events of a user about objects."""
    return [
        event
        for event in fluxpool.bench.control_plane.audit_events()
        if event["user"]["username"] == user and "resource" in event.get("objectRef", {}) and "responseStatus" in event
    ]


def _asked(fluxpool: OperatorBench, user: str) -> dict[Access, set[str]]:
    """Requested permissions with their namespaces; empty for cluster scope."""
    asked: dict[Access, set[str]] = {}
    for event in _events(fluxpool, user):
        reference = event["objectRef"]
        path = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
        group = reference.get("apiGroup", "")
        access = (event["verb"], f"{path}.{group}" if group else path)
        asked.setdefault(access, set()).add(reference.get("namespace", ""))
    return asked
