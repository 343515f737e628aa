"""How a worker's Kafka clients are set up; the one place that knows their options."""

from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from fluxpool_contract.settings import WorkerSettings
from fluxpool_transport.kafka import aiokafka_options
from fluxpool_worker.agent.consumer.membership import own_sticky_assignor

POLL_FENCE_SECONDS: Final = 60.0
"""A loop that does not poll for this long is stuck; the consumer then leaves the group by itself."""
LONGEST_HEARTBEAT_SECONDS: Final = 3.0
BLOCKED_SHARE: Final = 0.75
"""Of what is left of a session after a heartbeat: the rest is for noticing, and for a last line in the log."""
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
"""Above the largest dead letter; the topics' own limits decide."""


def heartbeat_interval_seconds(settings: WorkerSettings) -> float:
    """From one heartbeat to the next: three fit into a session."""
    return min(LONGEST_HEARTBEAT_SECONDS, settings.session_timeout_seconds / 3)


def blocked_limit_seconds(settings: WorkerSettings) -> float:
    """How long the event loop may be blocked.

    Blocked just before a heartbeat, it is noticed before the member's session is over.
    """
    return BLOCKED_SHARE * (settings.session_timeout_seconds - heartbeat_interval_seconds(settings))


def build_consumer(settings: WorkerSettings, *, client_id: str, group: str) -> AIOKafkaConsumer:
    """A member of a group, to be started and subscribed."""
    rebalance_ms = int(settings.rebalance_timeout_seconds * 1000)
    session_ms = int(settings.session_timeout_seconds * 1000)
    options = aiokafka_options(settings.kafka, client_id=client_id)
    # A JoinGroup request is answered only when all members have joined: it must outlast the rebalance.
    options["request_timeout_ms"] = max(options["request_timeout_ms"], rebalance_ms + 5000)
    return AIOKafkaConsumer(
        **options,
        group_id=group,
        partition_assignment_strategy=[own_sticky_assignor()],
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        session_timeout_ms=session_ms,
        heartbeat_interval_ms=int(heartbeat_interval_seconds(settings) * 1000),
        rebalance_timeout_ms=rebalance_ms,
        max_poll_interval_ms=int(POLL_FENCE_SECONDS * 1000),
        max_partition_fetch_bytes=64 * 1024,
        fetch_max_wait_ms=100,
    )


def build_control_reader(settings: WorkerSettings, *, client_id: str) -> AIOKafkaConsumer:
    """A reader of the whole control topic, in no group."""
    return AIOKafkaConsumer(
        settings.topics.control,
        **aiokafka_options(settings.kafka, client_id=f"{client_id}-control"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )


def build_retry_reader(settings: WorkerSettings, *, client_id: str) -> AIOKafkaConsumer:
    """A reader of the retry topics, in no group, to be started and assigned."""
    return AIOKafkaConsumer(
        **aiokafka_options(settings.kafka, client_id=f"{client_id}-retry"),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=256 * 1024,
    )


def build_reliable_producer(settings: WorkerSettings, *, client_id: str) -> AIOKafkaProducer:
    """For records that must arrive."""
    return AIOKafkaProducer(
        **aiokafka_options(settings.kafka, client_id=client_id),
        acks="all",
        enable_idempotence=True,
        max_request_size=MAX_REQUEST_BYTES,
    )


def build_progress_producer(settings: WorkerSettings, *, client_id: str) -> AIOKafkaProducer:
    """For records that may get lost."""
    return AIOKafkaProducer(**aiokafka_options(settings.kafka, client_id=f"{client_id}-progress"), acks=1, linger_ms=20)
