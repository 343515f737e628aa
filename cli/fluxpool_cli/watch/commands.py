"""`fluxpool watch`: lag and results of a pool from Kafka, and the workers of a local stack."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from fluxpool_cli.exit_codes import interruptible
from fluxpool_cli.kafka.results_topic import ResultsTopic
from fluxpool_cli.kafka.target import KafkaTarget, TargetOptions, find_target, run_on
from fluxpool_cli.local.state_file import running_stack
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputFormat, OutputOptions, Part, Result, Table, write_result
from fluxpool_cli.terminal import say
from fluxpool_cli.watch.display import LiveDisplay, PoolSnapshot
from fluxpool_contract.messages import GenerationResult
from fluxpool_transport.lag import LagReader

_NEWEST_RECORDS = 10_000
"""Of the results topic: some seconds to read, some megabytes to remember."""
_INTERVAL_SECONDS = 1.0


@with_option_groups
def watch(
    *,
    kafka: TargetOptions,
    once: Annotated[bool, typer.Option("--once", help="Show one snapshot and end.")] = False,
    output: OutputOptions,
) -> None:
    """Show lag, workers and the newest results of Kafka.

    Ctrl-C ends it.

    Topics, groups and credentials are those of the FLUXPOOL_KAFKA_*, FLUXPOOL_TOPICS_*, FLUXPOOL_CONSUMER_GROUP and
    FLUXPOOL_LANES variables.
    """
    if output.form is not OutputFormat.TABLE and not once:
        raise typer.BadParameter("needs --once: one snapshot is one document", param_hint=f"--output {output.form}")
    target = find_target(kafka.bootstrap_servers, kafka.data_dir)
    with interruptible("the pool goes on"):
        run_on(target, _watch(target, data_dir=kafka.data_dir, once=once, output=output))


def result_line(result: GenerationResult) -> str:
    """One result for a person."""
    where = result.image_url or (result.error.message if result.error else "")
    marks = dict.fromkeys(mark for image in result.images for mark in image.marks)
    return " ".join(
        filter(
            None,
            (
                f"{result.status} {result.request_id} by {result.worker or '?'}",
                where,
                f"({'+'.join(marks)})" if marks else "",
            ),
        )
    )


async def _watch(target: KafkaTarget, *, data_dir: Path, once: bool, output: OutputOptions) -> None:
    topic = target.topics.results
    async with (
        ResultsTopic(target.kafka, topic, newest_records=_NEWEST_RECORDS) as results,
        LagReader(target.kafka) as reader,
    ):
        await results.read_to_end()
        if results.passed_over:
            say(f"{topic} has {results.passed_over} older records, which are not counted")
        snapshot = await _observe(target, results, reader, data_dir)
        if once:
            parts: list[Part] = [Table(("", ""), snapshot.rows()), *snapshot.recent]
            write_result(Result(document=snapshot.document(), parts=parts, names=[*snapshot.lag_records]), output)
            return
        with LiveDisplay() as display:
            display.update(snapshot)
            while True:
                await asyncio.sleep(_INTERVAL_SECONDS)
                await results.read_to_end()
                display.update(await _observe(target, results, reader, data_dir))


async def _observe(target: KafkaTarget, results: ResultsTopic, reader: LagReader, data_dir: Path) -> PoolSnapshot:
    lanes = target.lane_groups()
    backlogs = await reader.read(dict(lanes.values()))
    # Workers are known of a stack of this machine only, and it may be on another Kafka than the one that is asked.
    stack = running_stack(data_dir)
    if stack is not None and stack.bootstrap_servers != target.servers:
        stack = None
    workers = Counter(part.state for part in stack.parts if part.name.startswith("worker-")) if stack else Counter()
    plan = stack.plan.reason if stack and stack.plan else ""
    if stack is not None and stack.workers_problem is not None:
        plan = f"workers cannot start: {stack.workers_problem}"
    return PoolSnapshot(
        lag_records={name: backlogs[group].lag_records_at_least for name, (group, _) in lanes.items()},
        workers=dict(workers),
        results=dict(results.counts()),
        recent=[result_line(result) for result in results.recent()],
        plan=plan,
    )
