"""The names and the layout of all topics; the one place that knows either."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.messages.dead_letter import MAX_HEADER_BYTES

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS
MAX_MESSAGE_BYTES: Final = 1024 * 1024
"""Kafka's own default is a little above this; stated so that the dead-letter topic can be larger for certain."""

MAX_DEAD_LETTER_BYTES: Final = MAX_MESSAGE_BYTES + 4 * MAX_HEADER_BYTES
"""Any task with its added headers."""

TIMESTAMP_TYPE: Final = "message.timestamp.type"
LOG_APPEND_TIME: Final = "LogAppendTime"


def _check_topic_name(name: str) -> str:
    if name in {".", ".."}:
        raise ValueError("must not be . or .., which Kafka refuses")
    return name


TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$"), AfterValidator(_check_topic_name)]


class TopicNames(BaseModel):
    """Every topic by its role."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tasks: TopicName = "flux-generation-tasks"
    """Standard tasks."""
    tasks_vip: TopicName = "flux-generation-tasks-vip"
    """Tasks of priority `vip`."""
    results: TopicName = "flux-generation-results"
    """The result of every task."""
    progress: TopicName = "flux-generation-progress"
    """Progress of running tasks; lossy."""
    retry: tuple[TopicName, ...] = (
        "flux-generation-retry-15s",
        "flux-generation-retry-2m",
        "flux-generation-retry-15m",
    )
    """One topic per delay, shortest first."""
    control: TopicName = "flux-generation-control"
    """Commands to all workers."""
    dead_letters: TopicName = "flux-dlq"
    """Dead-letter topic."""
    feedback: TopicName = "flux-feedback"
    """Ratings and comparisons."""
    pools: TopicName = "flux-pools"
    """States of the pools, from their operator."""

    @model_validator(mode="after")
    def _differ(self) -> Self:
        roles: dict[str, str] = {}
        for role, topic in self._by_role():
            if topic in roles:
                raise ValueError(
                    f"{role}: {topic} is the topic of {roles[topic]} as well, so their records could not be "
                    "told apart; choose another topic"
                )
            roles[topic] = role
        return self

    @property
    def written_by_workers(self) -> dict[str, str]:
        """Each topic that workers or clients write something other than new tasks to, with its role."""
        return {topic: role for role, topic in self._by_role() if role not in {"tasks", "tasks_vip"}}

    def _by_role(self) -> Iterator[tuple[str, str]]:
        for role, topics in self:
            yield from ((role, topic) for topic in ([topics] if isinstance(topics, str) else topics))


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How one topic is created."""

    name: str
    partitions: int
    replication_factor: int
    config: dict[str, str] = field(default_factory=dict)


def topic_specs(
    names: TopicNames, *, task_partitions: int = 6, event_partitions: int = 3, replication_factor: int = 3
) -> tuple[TopicSpec, ...]:
    """The layout of all topics. Every one has `LogAppendTime`, so that retention deletes no record before its time.

    `task_partitions` should be a little above the highest number of workers: a worker without a partition is idle.
    """
    # Retention, order and ages go by the time in a record: the broker's, because a producer may write any number there.
    by_arrival = {TIMESTAMP_TYPE: LOG_APPEND_TIME}
    work = {"retention.ms": str(7 * DAY_MS), "max.message.bytes": str(MAX_MESSAGE_BYTES)}
    compacted = {"cleanup.policy": "compact"}
    layout = {
        names.tasks: (task_partitions, work),
        names.tasks_vip: (task_partitions, work),
        names.results: (event_partitions, {"retention.ms": str(7 * DAY_MS)}),
        names.progress: (event_partitions, {"retention.ms": str(6 * HOUR_MS)}),
        **dict.fromkeys(names.retry, (event_partitions, work)),
        names.control: (1, compacted),
        names.dead_letters: (
            event_partitions,
            {"retention.ms": str(30 * DAY_MS), "max.message.bytes": str(MAX_DEAD_LETTER_BYTES)},
        ),
        names.feedback: (event_partitions, compacted),
        # Live pools are written every half minute: what is a day old is of a pool that was deleted unseen. Only closed
        # segments are compacted, hence an hour for each.
        names.pools: (
            1,
            {"cleanup.policy": "compact,delete", "retention.ms": str(DAY_MS), "segment.ms": str(HOUR_MS)},
        ),
    }
    return tuple(
        TopicSpec(name=name, partitions=partitions, replication_factor=replication_factor, config=by_arrival | config)
        for name, (partitions, config) in layout.items()
    )


def explain_create_time(topic: str) -> str:
    """What is wrong with a topic that keeps the producer's time, and the remedy; for conditions and warnings."""
    return (
        f"topic {topic} has {TIMESTAMP_TYPE}=CreateTime: a producer with a wrong clock can have its tasks deleted "
        f"before their time; set {TIMESTAMP_TYPE}={LOG_APPEND_TIME} (kafka-configs.sh --alter --topic {topic} "
        f"--add-config {TIMESTAMP_TYPE}={LOG_APPEND_TIME})"
    )
