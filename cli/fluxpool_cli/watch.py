"""`fluxpool watch`: what a pool is doing, straight from Kafka and, for a local stack, from its supervisor."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from aiokafka.errors import KafkaError
from pydantic import ValidationError

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.local.data_dir import DEFAULT_NAME
from fluxpool_cli.local.discovery import running_stack
from fluxpool_cli.local.stack_parts import LANES, group_of
from fluxpool_cli.overview import Overview, OverviewDisplay
from fluxpool_cli.results_topic import ResultsTopic
from fluxpool_cli.terminal import (
    JsonOption,
    OutputFormat,
    OutputOption,
    chosen_format,
    write_json,
    write_line,
    write_table,
)
from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_contract.problems import explain
from fluxpool_contract.result import GenerationResult
from fluxpool_contract.topics import TopicNames
from fluxpool_transport.backlog import BacklogReader
from fluxpool_transport.kafka_admin import KafkaUnavailableError

_INTERVAL_SECONDS = 1.0


def watch(
    *,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Kafka, as host:port[,host:port]; by default that of the local stack.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Folder of the local stack.")] = Path(DEFAULT_NAME),
    once: Annotated[bool, typer.Option("--once", help="Show one moment and end.")] = False,
    output: OutputOption = OutputFormat.TABLE,
    as_json: JsonOption = False,
) -> None:
    """Show lag by lane, workers and results; Ctrl-C ends it."""
    as_format = chosen_format(output, as_json=as_json)
    if as_format is OutputFormat.JSON and not once:
        raise typer.BadParameter("needs --once: one moment is one document", param_hint="--output json")
    connection = _connection(bootstrap_servers, data_dir)
    try:
        # Ctrl-C is how the live view ends.
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_watch(connection, data_dir=data_dir, once=once, as_format=as_format))
    except (KafkaError, KafkaUnavailableError) as error:
        servers = ",".join(connection.bootstrap_servers)
        raise CommandError(
            ExitCode.UNREACHABLE, f"Kafka at {servers} does not answer ({error}); check --bootstrap-servers"
        ) from None


def result_line(result: GenerationResult) -> str:
    """One result for a person."""
    where = result.image_url or (result.error.message if result.error else "")
    return f"{result.status} {result.request_id} by {result.worker or '?'} {where}"


def _connection(bootstrap_servers: str | None, data_dir: Path) -> KafkaConnection:
    if bootstrap_servers is None:
        stack = running_stack(data_dir)
        if stack is None or stack.bootstrap_servers is None:
            raise CommandError(
                ExitCode.UNREACHABLE,
                f"no local stack runs in {data_dir}; start one with `fluxpool local up`, or give --bootstrap-servers",
            )
        bootstrap_servers = stack.bootstrap_servers
    try:
        return KafkaConnection.model_validate({"bootstrap_servers": bootstrap_servers.split(",")})
    except ValidationError as error:
        raise typer.BadParameter(
            "; ".join(item.message for item in explain(error)), param_hint="--bootstrap-servers"
        ) from None


async def _watch(connection: KafkaConnection, *, data_dir: Path, once: bool, as_format: OutputFormat) -> None:
    async with ResultsTopic(connection, TopicNames().results) as results, BacklogReader(connection) as reader:
        await results.read_to_end()
        moment = await _observe(results, reader, data_dir)
        if once:
            if as_format is OutputFormat.JSON:
                write_json(moment.document())
            else:
                write_table(("", ""), moment.rows())
                for line in moment.recent:
                    write_line(line)
            return
        with OverviewDisplay() as display:
            display.update(moment)
            while True:
                await asyncio.sleep(_INTERVAL_SECONDS)
                await results.read_to_end()
                display.update(await _observe(results, reader, data_dir))


async def _observe(results: ResultsTopic, reader: BacklogReader, data_dir: Path) -> Overview:
    groups = await reader.read({group_of(lane): lane.topic for lane in LANES})
    stack = running_stack(data_dir)
    workers = Counter(part.state for part in stack.parts if part.name.startswith("worker-")) if stack else Counter()
    return Overview(
        lag_records={lane.name: groups[group_of(lane)].uncommitted_records_at_least for lane in LANES},
        workers=dict(workers),
        results=dict(results.counts()),
        recent=[result_line(result) for result in results.recent()],
        plan=stack.plan.reason if stack and stack.plan else "",
    )
