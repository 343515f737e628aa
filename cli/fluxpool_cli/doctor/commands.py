"""`fluxpool doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from fluxpool_cli.cluster.kubectl import ClusterOptions
from fluxpool_cli.doctor.checking import Finding, State, run_checks
from fluxpool_cli.doctor.http_gateway import check_gateway
from fluxpool_cli.doctor.kafka import check_kafka
from fluxpool_cli.doctor.machine import check_cluster, check_model, check_storage
from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.kafka.target import TargetOptions
from fluxpool_cli.options import finite, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result


@with_option_groups
def doctor(
    *,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or hub id to check.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="File of contexts; by default that of kubectl.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for all checks.", callback=finite)] = 30.0,
    kafka: TargetOptions,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Check Kafka, storage, model, gateway and cluster.

    Says of each what is right, what is wrong and what to do. A part that is not configured here is skipped, one that
    hangs is reported. Nothing is changed, but one small object that the check of the storage writes, as workers do.

    Exits 0 when nothing is wrong, 1 when something is; warnings alone do not count.
    """
    place = gateway.place(kafka.data_dir)
    cluster = ClusterOptions(context=context, kubeconfig=kubeconfig)
    found = run_checks(
        {
            "kafka": lambda: check_kafka(kafka.bootstrap_servers, kafka.data_dir),
            "storage": lambda: check_storage(kafka.data_dir),
            "model": lambda: check_model(model, kafka.data_dir),
            "gateway": lambda: check_gateway(place),
            "cluster": lambda: check_cluster(cluster),
        },
        deadline_seconds=timeout,
    )
    write_result(_result(found), output)
    failed = [part for part, findings in found.items() if any(item.state is State.FAILED for item in findings)]
    if failed:
        raise CommandError(ExitCode.FAILED, f"something is wrong with: {', '.join(failed)}")


def _result(found: dict[str, list[Finding]]) -> Result:
    rows = [
        (part, str(item.state), f"{item.found}{f' - {item.remedy}' if item.remedy else ''}")
        for part, findings in found.items()
        for item in findings
    ]
    document = {
        "checks": [
            {"part": part, "state": str(item.state), "found": item.found, "remedy": item.remedy or None}
            for part, findings in found.items()
            for item in findings
        ]
    }
    return Result(document=document, parts=[Table(("PART", "STATE", "FOUND"), rows)], names=[*found])
