"""`kubectl fluxpool workers`: the pods of pools, what they are doing, and why they do not work."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.cluster.kubectl import ClusterOptions
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table
from fluxpool_cli.repeating import WatchOption, show
from fluxpool_operator.workload import PodSummary, summarize_pod

POOL_LABEL: Final = "fluxpool.dev/pool"
_SELECTOR: Final = f"app.kubernetes.io/name=fluxpool-worker,{POOL_LABEL}"
_COLUMNS: Final = ("NAMESPACE", "POOL", "WORKER", "STAGE", "SINCE", "RESTARTS", "NODE")
_OPTIONAL: Final = ("NAMESPACE", "POOL", "RESTARTS")
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "m"))


@with_option_groups
def workers(
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="Only this pool.")] = None,
    *,
    watch: WatchOption = False,
    cluster: ClusterOptions,
    output: OutputOptions,
) -> None:
    """Show who works on what.

    The pods of pools in a cluster: what each is doing, on which node, and why it does not work. Their tasks are known
    to Kafka: `fluxpool workers` shows them.
    """
    selector = _SELECTOR if pool is None else f"{_SELECTOR.partition(',')[0]},{POOL_LABEL}={pool}"
    show(
        lambda: pods_result(cluster.get("pods", f"--selector={selector}").get("items", ()), now=datetime.now(UTC)),
        output,
        watch=watch,
    )


def pods_result(pods: Iterable[dict[str, Any]], *, now: datetime) -> Result:
    """Each pod, and why those that do not work do not."""
    found = sorted(
        (
            pod["metadata"].get("namespace", "-"),
            (pod["metadata"].get("labels") or {}).get(POOL_LABEL, "-"),
            pod["metadata"]["name"],
            summarize_pod(pod),
        )
        for pod in pods
    )
    rows = [
        (namespace, pool, name, pod.stage, _age(pod, now), str(pod.restarts), pod.node or "-")
        for namespace, pool, name, pod in found
    ]
    document = {
        "workers": [
            {
                "namespace": namespace,
                "pool": pool,
                "name": name,
                "stage": str(pod.stage),
                "created_at": pod.created_at.isoformat(),
                "ready_since": None if pod.ready_since is None else pod.ready_since.isoformat(),
                "restarts": pod.restarts,
                "node": pod.node,
                "why": _why(pod) or None,
            }
            for namespace, pool, name, pod in found
        ]
    }
    return Result(
        document=document,
        parts=[
            Table(_COLUMNS, rows, optional=_OPTIONAL, empty="no workers"),
            *(f"{name}: {_why(pod)}" for _, _, name, pod in found if _why(pod)),
        ],
        names=[name for _, _, name, _ in found],
    )


def _why(pod: PodSummary) -> str:
    """Why it does not work; empty for one that does, or that only starts."""
    if pod.ready_since is not None:
        return ""
    words = [pod.unschedulable_message or ""]
    if pod.waiting_reason not in (None, "ContainerCreating", "PodInitializing"):
        words.append(": ".join(filter(None, (pod.waiting_reason, pod.waiting_message))))
    if pod.last_exit is not None:
        ended = pod.last_exit
        words.append(f"last exit {ended.code} ({ended.reason}){f': {ended.message}' if ended.message else ''}")
    return "; ".join(filter(None, words))


def _age(pod: PodSummary, now: datetime) -> str:
    """How long it is in its stage, where that is known; else how old it is."""
    seconds = max(0, int((now - (pod.ready_since or pod.created_at)).total_seconds()))
    return next((f"{seconds // size}{unit}" for size, unit in _UNITS if seconds >= size), f"{seconds}s")
