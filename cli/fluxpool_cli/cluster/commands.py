"""`kubectl fluxpool pools`: the FluxWorkerPools of a cluster, with plan, reason and conditions that are not met."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.cluster.kubectl import ClusterOptions
from fluxpool_cli.exit_codes import CommandError
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.repeating import WatchOption, show

RESOURCE: Final = "fluxworkerpools.fluxpool.dev"
_COMPLETION_SECONDS: Final = 2.0
"""For which a person waits after the tab key."""
_BAD_WHEN_TRUE: Final = frozenset({"Degraded", "GroupConflict", "Stalled"})


def pool_names(context: typer.Context) -> list[str]:
    """The pools that the options of an unfinished line leave; none when the cluster does not answer soon."""
    given: dict[str, Any] = {field.name: context.params.get(field.name) for field in fields(ClusterOptions)}
    chosen = ClusterOptions(**{name: value for name, value in given.items() if value is not None})
    try:
        found = chosen.get(RESOURCE, deadline_seconds=_COMPLETION_SECONDS)
    except CommandError:
        return []
    return [pool["metadata"]["name"] for pool in found.get("items", [])]


@with_option_groups
def pools(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[POOL]", help="Only this pool.", autocompletion=pool_names),
    ] = None,
    *,
    watch: WatchOption = False,
    cluster: ClusterOptions,
    output: OutputOptions,
) -> None:
    """Show workers of pools, and the plan with its reason.

    Of the FluxWorkerPools of a cluster. The verbs about tasks need a gateway: --url, --profile.
    """
    words = [RESOURCE] if name is None else [RESOURCE, name]

    def read() -> Result:
        found = cluster.get(*words)
        return pools_result(found.get("items", [found]) if isinstance(found, dict) else [])

    if watch:
        show(read, output, watch=True)
    else:
        write_result(read(), output)


def pools_result(pools: Iterable[dict[str, Any]]) -> Result:
    """Each pool with why it has as many workers."""
    pools = list(pools)
    rows = [
        (
            pool["metadata"].get("namespace", "-"),
            pool["metadata"]["name"],
            _text(status.get("readyReplicas")),
            _text(status.get("desiredReplicas")),
            _text(status.get("terminatingReplicas")),
            _text(status.get("pending")),
            _text(status.get("inFlight")),
            _text(status.get("oldestAgeSeconds"), unit=" s"),
            _text(status.get("modelFamily")),
        )
        for pool in pools
        for status in [pool.get("status") or {}]
    ]
    columns = ("NAMESPACE", "POOL", "READY", "DESIRED", "ENDING", "PENDING", "IN FLIGHT", "OLDEST", "MODEL")
    table = Table(columns, rows, optional=("MODEL", "ENDING", "OLDEST", "NAMESPACE"), empty="no FluxWorkerPools")
    documents = [
        {"namespace": pool["metadata"].get("namespace"), "name": pool["metadata"]["name"], "status": pool.get("status")}
        for pool in pools
    ]
    has_namespaces = len({document["namespace"] for document in documents}) > 1
    return Result(
        document={"pools": documents},
        parts=[table, *(line for pool in pools for line in _why(pool, has_namespaces=has_namespaces))],
        names=[pool["metadata"]["name"] for pool in pools],
    )


def _why(pool: dict[str, Any], *, has_namespaces: bool) -> Iterable[str]:
    name, status = pool["metadata"]["name"], pool.get("status") or {}
    if has_namespaces:
        name = f"{pool['metadata'].get('namespace')}/{name}"
    if plan := status.get("plan"):
        yield f"{name}: {plan.get('reason', '-')}"
    if not status:
        yield f"{name}: no operator has reconciled it; see `fluxpool doctor`"
    for condition in status.get("conditions", ()):
        is_bad = condition.get("status") == ("True" if condition.get("type") in _BAD_WHEN_TRUE else "False")
        if is_bad:
            yield f"{name}: {condition.get('type')}={condition.get('status')}, {condition.get('message', '')}"


def _text(value: object, *, unit: str = "") -> str:
    return "-" if value is None else f"{value}{unit}"
