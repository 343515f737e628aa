"""Checks of the storage of images, of a model folder, and of a Kubernetes cluster."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from fluxpool_cli.cluster.commands import RESOURCE, pools_result
from fluxpool_cli.cluster.kubectl import ClusterOptions
from fluxpool_cli.doctor.checking import Finding, State
from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.data_dir import DataDir
from fluxpool_cli.local.state_file import running_stack
from fluxpool_cli.local.workers.model_check import ModelError, checked_model, licensed_model
from fluxpool_contract.folder_address import folder_address
from fluxpool_contract.settings import EnvironmentSettings, SettingsError, StorageSettings
from fluxpool_transport.storage import StorageUnavailableError, open_object_store

_PREFIX: Final = "FLUXPOOL_STORAGE_"
_KUBECTL_SECONDS: Final = 5.0
_OPERATOR: Final = "app.kubernetes.io/name=fluxpool,app.kubernetes.io/component=operator"


class _Storage(EnvironmentSettings):
    """The variables of the storage alone."""

    storage: StorageSettings


def check_storage(data_dir: Path) -> Iterator[Finding]:
    """Whether images can be written, read, and never replaced; writes one small object, as workers do."""
    variables = {name: text for name, text in os.environ.items() if name.startswith(_PREFIX) and text}
    stack = running_stack(data_dir)
    try:
        if variables:
            settings = _Storage.from_environment(variables).storage
        elif stack is not None:
            settings = StorageSettings(url=folder_address(DataDir(stack.data_dir).images))
        else:
            yield Finding(State.SKIPPED, "no storage is named here", "set FLUXPOOL_STORAGE_URL as for the workers")
            return
        asyncio.run(open_object_store(settings).probe())
    except SettingsError as error:
        yield Finding(State.FAILED, str(error), "correct the variables")
    except StorageUnavailableError as error:
        yield Finding(
            State.FAILED, str(error), "check FLUXPOOL_STORAGE_*, the credentials and the rights on the bucket"
        )
    else:
        yield Finding(State.OK, f"{settings.url} is written, read, and replaces nothing")


def check_model(model: str | None, data_dir: Path) -> Iterator[Finding]:
    """Whether workers can load a checkpoint, as far as its files tell."""
    stack = running_stack(data_dir)
    named = model or os.environ.get("FLUXPOOL_MODEL") or (stack.model if stack is not None else None)
    if named is None:
        yield Finding(State.SKIPPED, "no model is named here", "name one with --model")
        return
    try:
        checked = checked_model(named)
    except ModelError as error:
        yield Finding(State.FAILED, str(error), "name a whole checkpoint folder, or fetch it again")
        return
    if Path(checked).is_dir():
        yield Finding(State.OK, licensed_model(checked))
    else:
        yield Finding(State.OK, f"{checked} is an id of a hub: workers fetch it when they start")


def check_cluster(cluster: ClusterOptions) -> Iterator[Finding]:
    """The CRD, the operator and the pools, by kubectl."""
    try:
        crd = cluster.get("customresourcedefinitions", RESOURCE, deadline_seconds=_KUBECTL_SECONDS)
    except CommandError as error:
        is_absent = error.code == ExitCode.UNREACHABLE and cluster.context is None and cluster.kubeconfig is None
        if "NotFound" in str(error):
            yield Finding(
                State.FAILED, f"the cluster has no CRD {RESOURCE}", "install the chart: its crds folder has it"
            )
        elif is_absent:
            yield Finding(State.SKIPPED, f"no cluster answers: {error}", "choose one with --context or --kubeconfig")
        else:
            yield Finding(State.FAILED, str(error), "check the context and the rights of its user")
        return
    versions = ", ".join(version["name"] for version in crd["spec"]["versions"])
    yield Finding(State.OK, f"CRD {RESOURCE} ({versions})")
    everywhere = ClusterOptions(all_namespaces=True, context=cluster.context, kubeconfig=cluster.kubeconfig)
    yield _operator(everywhere.get("deployments", f"--selector={_OPERATOR}", deadline_seconds=_KUBECTL_SECONDS))
    pools = everywhere.get(RESOURCE, deadline_seconds=_KUBECTL_SECONDS).get("items", [])
    troubles = [
        str(part) for part in pools_result(pools).parts[1:] if "=False" in str(part) or "no operator" in str(part)
    ]
    if troubles:
        yield Finding(State.WARNING, "; ".join(troubles), "see `kubectl fluxpool pools` and the events of the pool")
    else:
        yield Finding(State.OK, f"{len(pools)} FluxWorkerPools")


def _operator(deployments: dict[str, Any]) -> Finding:
    ready = [
        f"{item['metadata']['namespace']}/{item['metadata']['name']}"
        for item in deployments.get("items", [])
        if (item.get("status") or {}).get("readyReplicas")
    ]
    if ready:
        return Finding(State.OK, f"operator {', '.join(ready)} is ready")
    there = [item["metadata"]["name"] for item in deployments.get("items", [])]
    if there:
        return Finding(State.FAILED, f"operator {there[0]} is not ready", "see `kubectl logs` of its pod")
    return Finding(State.FAILED, "no operator runs", "install the chart charts/fluxpool")
