"""`fluxpool workers`."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.target import KafkaTarget, TargetOptions, find_target, run_on
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result
from fluxpool_cli.repeating import WatchOption, show
from fluxpool_cli.workers.reading import read_workers
from fluxpool_cli.workers.view import workers_result


@with_option_groups
def workers(
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="Only this pool.")] = None,
    *,
    watch: WatchOption = False,
    kafka: TargetOptions,
    output: OutputOptions,
) -> None:
    """Show who works on what.

    Of each worker with a loaded model: its partitions, the task that it has begun and for how long, and how many wait
    for it. Read from Kafka, which knows it for any gateway: members of the consumer groups, and the ledgers that
    workers commit. Pools are those whose operators write their state there, and the groups of the
    FLUXPOOL_CONSUMER_GROUP and FLUXPOOL_LANES variables. Without access to Kafka, `fluxpool pools` shows numbers of
    workers through a gateway.

    A worker that is `gone` left a task behind; the next owner of its partition makes it again. Exits 3 when Kafka does
    not answer.
    """
    target = find_target(kafka.bootstrap_servers, kafka.data_dir)
    show(lambda: _read(target, pool), output, watch=watch)


def _read(target: KafkaTarget, pool: str | None) -> Result:
    now = datetime.now(UTC)
    found = run_on(target, read_workers(target, now=now))
    if pool is not None:
        pools = tuple(state for state in found.pools if state.pool == pool)
        if not pools:
            known = ", ".join(state.pool for state in found.pools) or "none"
            raise CommandError(ExitCode.USAGE, f"no operator tells of a pool {pool}; it may be one of: {known}")
        found = replace(found, pools=pools, workers=tuple(worker for worker in found.workers if worker.pool == pool))
    return workers_result(found, now=now)
