"""`fluxpool topics`: creates the topics that are missing, or compares those that are there with what is needed.

Owns the commands and their results; `kafka.topic_comparison` knows what a difference costs, the transport reads and
creates. Nothing about a topic that exists is changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.doctor.checking import State
from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.kafka.target import KafkaTarget, TargetOptions, find_target, run_on
from fluxpool_cli.kafka.topic_comparison import Difference, differences, wanted_topics
from fluxpool_cli.options import finite, with_option_groups
from fluxpool_cli.output import Block, OutputOptions, Part, Result, Table, write_result
from fluxpool_contract.kafka import TopicSpec
from fluxpool_transport.kafka import ClusterLayout, TopicLayout, ensure_topics, explain, read_layout

_READ_SECONDS: Final = 10.0

app = typer.Typer(no_args_is_help=True, help="Create the topics, or compare them with what is needed.")

TimeoutOption = Annotated[float, typer.Option(min=1, help="Seconds to wait for the brokers.", callback=finite)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOptions:
    """Sizes that differ between clusters; the other settings of a topic are the product's."""

    task_partitions: Annotated[
        int,
        typer.Option(min=1, max=10_000, help="Of task topics: a little above the highest number of workers."),
    ] = 6
    event_partitions: Annotated[int, typer.Option(min=1, max=10_000, help="Of results, progress and the like.")] = 3
    replication_factor: Annotated[
        int, typer.Option(min=1, max=100, help="Replicas of each topic, on as many brokers.")
    ] = 3

    def wanted(self, target: KafkaTarget) -> tuple[TopicSpec, ...]:
        """The layout of the target's topics with these sizes."""
        return wanted_topics(target, **asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One topic, and what is different about it."""

    spec: TopicSpec
    layout: TopicLayout | None
    """None without the topic, or the right to describe it."""
    problem: str = ""
    """Why there is no layout."""
    differences: tuple[Difference, ...] = ()

    @property
    def state(self) -> State:
        """How it is: failed when records are lost or refused."""
        if self.layout is None or any(item.loses_records for item in self.differences):
            return State.FAILED
        return State.WARNING if self.differences else State.OK


@app.command()
@with_option_groups
def init(*, sizes: SizeOptions, timeout: TimeoutOption = 30.0, kafka: TargetOptions, output: OutputOptions) -> None:
    """Create the topics that are missing, with the settings that the product needs.

    Topics that are there are left as they are, and `topics check` compares them; several may create at once. Names are
    those of the FLUXPOOL_TOPICS_* and FLUXPOOL_LANES variables. Waits until every partition has a leader.

    Exits 0 when every topic is there, 2 when the brokers refuse to create one, 3 when Kafka does not answer.
    """
    target = find_target(kafka.bootstrap_servers, kafka.data_dir)
    specs = sizes.wanted(target)
    with interruptible("topics that were created stay; the same command creates the others"):
        created, layout = run_on(target, _create(target, specs, timeout_seconds=timeout))
    found = list(_compare(specs, layout, target))
    rows = [(item.spec.name, "created" if item.spec.name in created else "exists", *_sizes(item)) for item in found]
    # Also of a new topic: what the layout leaves to the brokers may be wrong for it.
    differing = [item for item in found if item.differences]
    document = {
        "servers": list(target.kafka.bootstrap_servers),
        "topics": [
            {
                "name": item.spec.name,
                "created": item.spec.name in created,
                **_size_document(item),
                "differences": [asdict(difference) for difference in item.differences],
            }
            for item in found
        ],
    }
    notes = []
    if differing:
        names = ", ".join(item.spec.name for item in differing)
        notes.append(f"not as needed: {names}; `fluxpool topics check` has the command for each difference")
    table = Table(("TOPIC", "OUTCOME", "PARTITIONS", "REPLICAS"), rows)
    write_result(Result(document=document, parts=[table], names=[spec.name for spec in specs], notes=notes), output)


@app.command()
@with_option_groups
def check(
    *, sizes: SizeOptions, timeout: TimeoutOption = _READ_SECONDS, kafka: TargetOptions, output: OutputOptions
) -> None:
    """Compare the topics with what the product needs, with the remedy of each difference.

    Changes nothing. More partitions, more replicas and a longer retention than needed are no difference.

    Exits 0 when no record is lost or refused by what was found, 1 when one may be or a topic is missing, 3 when Kafka
    does not answer.
    """
    target = find_target(kafka.bootstrap_servers, kafka.data_dir)
    specs = sizes.wanted(target)
    layout = run_on(target, read_layout(target.kafka, [spec.name for spec in specs], deadline_seconds=timeout))
    found = list(_compare(specs, layout, target))
    document = {
        "servers": list(target.kafka.bootstrap_servers),
        "brokers": layout.brokers,
        "topics": [
            {
                "name": item.spec.name,
                "state": str(item.state),
                **_size_document(item),
                "problem": item.problem or None,
                "differences": [asdict(difference) for difference in item.differences],
            }
            for item in found
        ],
    }
    rows = [(item.spec.name, str(item.state), *_sizes(item)) for item in found]
    parts: list[Part] = [Table(("TOPIC", "STATE", "PARTITIONS", "REPLICAS"), rows)]
    for item in found:
        if item.layout is None:
            parts += [f"{item.spec.name}: {item.problem}", Block("fluxpool topics init")]
        for difference in item.differences:
            parts += [f"{item.spec.name}: {difference.found}", Block(difference.remedy)]
    write_result(Result(document=document, parts=parts, names=[spec.name for spec in specs]), output)
    failed = [item.spec.name for item in found if item.state is State.FAILED]
    if failed:
        raise CommandError(ExitCode.FAILED, f"records may be lost or refused by: {', '.join(failed)}")


async def _create(
    target: KafkaTarget, specs: Sequence[TopicSpec], *, timeout_seconds: float
) -> tuple[tuple[str, ...], ClusterLayout]:
    """The names of those that were created, and all topics after that; raises `CommandError` (2)."""
    names = [spec.name for spec in specs]
    before = await read_layout(target.kafka, names)
    is_missing = any(not isinstance(topic, TopicLayout) for topic in before.topics.values())
    # A topic keeps the number of replicas that it was created with. With those of the brokers that happen to run, as
    # while a cluster starts, its records would be lost with one of them long after that.
    if is_missing and before.brokers < specs[0].replication_factor:
        raise CommandError(
            ExitCode.USAGE,
            f"{specs[0].replication_factor} replicas need as many brokers, and {before.brokers} "
            f"run{'s' if before.brokers == 1 else ''}: start the others, or take fewer with --replication-factor",
        )
    created = await ensure_topics(target.kafka, specs, deadline_seconds=timeout_seconds)
    return created, await read_layout(target.kafka, names)


def _compare(specs: Sequence[TopicSpec], layout: ClusterLayout, target: KafkaTarget) -> Iterator[Found]:
    lanes = {topic for _, topic in target.lane_groups().values()}
    for spec in specs:
        topic = layout.topics[spec.name]
        if isinstance(topic, TopicLayout):
            is_lane = spec.name in lanes
            found = differences(spec, topic, brokers=layout.brokers, servers=target.servers, is_lane=is_lane)
            yield Found(spec=spec, layout=topic, differences=tuple(found))
        else:
            yield Found(spec=spec, layout=None, problem=f"is missing, or may not be described: {explain(topic)}")


def _sizes(found: Found) -> tuple[str, str]:
    layout = found.layout
    return ("-", "-") if layout is None else (str(layout.partitions), str(layout.replication_factor))


def _size_document(found: Found) -> dict[str, Any]:
    layout = found.layout
    return {
        "partitions": None if layout is None else layout.partitions,
        "replication_factor": None if layout is None else layout.replication_factor,
    }
