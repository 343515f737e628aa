"""Builds what a server process runs from its settings, and runs its background parts. `http.app` has the routes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from fluxpool_contract.messages import work_of_task
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.dead_letters.replaying import ReplayRunner
from fluxpool_gateway.dead_letters.service import DeadLetters
from fluxpool_gateway.dead_letters.topic import KafkaDeadLetterTopic
from fluxpool_gateway.feedback.writing import FeedbackWriter
from fluxpool_gateway.http.readiness import BrokerWatch
from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.identity.gate import Gate, KeyGate, OpenGate
from fluxpool_gateway.live.preview_reader import open_preview_reader
from fluxpool_gateway.live.readers import EventReaders
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.presets.choosing import Presets
from fluxpool_gateway.projection.barrier import ProjectionBarrier
from fluxpool_gateway.projection.projected_records import task_topics
from fluxpool_gateway.queue import routes as queue_routes
from fluxpool_gateway.queue.admission import Admission
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import served_lanes
from fluxpool_gateway.queue.pool_state_reader import PoolStateReader
from fluxpool_gateway.settings import GatewaySettings, OidcSettings
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.stores import (
    open_key_store,
    open_quotas,
    open_replay_jobs,
    open_reservations,
    open_signer,
    open_task_reader,
    open_trust,
    open_webhooks,
)
from fluxpool_gateway.tasks.canceling import Canceling
from fluxpool_gateway.tasks.deleting import Deleting
from fluxpool_gateway.tasks.idempotency import Idempotency, Reservations
from fluxpool_gateway.tasks.limits import TaskQuotas
from fluxpool_gateway.tasks.lookup import RecentTasks, TaskLookup, TaskTopicEnds
from fluxpool_gateway.tasks.producer import TaskProducer
from fluxpool_gateway.tasks.waiting import StoreWaits, TaskWaits
from fluxpool_gateway.webhooks.requested.admission import RequestedWebhooks
from fluxpool_gateway.webhooks.store import WebhookStore
from fluxpool_transport.kafka import KafkaMetadata, librdkafka_options
from fluxpool_transport.partitioner import LoadAwarePartitioner, SharedSends
from fluxpool_transport.storage import ObjectStore, open_object_store

if TYPE_CHECKING:
    from fluxpool_gateway.identity.tokens import Tokens

CLIENT_ID: Final = "fluxpool-gateway"
METADATA_SECONDS: Final = 2.0
"""Longest wait for metadata: `GET` of a task that is not projected yet waits for it."""

logger = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ServerParts:
    """What the routes of one process use."""

    services: Services
    submission: Submission


@dataclass(frozen=True, slots=True, kw_only=True)
class _Clients:
    """Stores and connections of one process, opened."""

    metadata: KafkaMetadata
    objects: ObjectStore
    producer: TaskProducer
    store: TaskStoreReader
    webhooks: WebhookStore
    reservations: Reservations
    quotas: TaskQuotas
    own_secret: bytes | None
    trust: TenantTrust
    dead_letters: DeadLetters


@asynccontextmanager
async def running_parts(
    settings: GatewaySettings,
    *,
    gate: Gate,
    metrics: GatewayMetrics,
    shared_sends: SharedSends | None,
    on_failure: Callable[[], None],
    stopping: asyncio.Event,
) -> AsyncIterator[ServerParts]:
    """The parts of a process, with those that run in the background; `on_failure` is called when one of these ends.

    Raises `KafkaCredentialsError`, and the errors of stores that cannot be opened.
    """
    recent, lanes = RecentTasks(asyncio.get_running_loop().time), _lane_watch(settings)
    partitioner = LoadAwarePartitioner(
        settings.kafka, settings.groups(), observe=lanes.observe, work_of=work_of_task, shared=shared_sends
    )
    presets = Presets(presets=settings.presets, exploration=settings.preset_exploration)
    async with _open_clients(settings, gate, metrics, on_failure) as clients, asyncio.TaskGroup() as group:
        metadata, store, trust = clients.metadata, clients.store, clients.trust
        watch = BrokerWatch(metadata, task_topics(settings.topics))
        ends = TaskTopicEnds(metadata, settings.topics)
        barrier = ProjectionBarrier(group, ends=ends.read, projected=store.positions)
        idempotency = Idempotency(
            reservations=clients.reservations,
            store=store,
            barrier=barrier.passed,
            deadline_seconds=settings.produce_deadline_seconds,
        )
        services = _services(
            settings,
            clients,
            lookup=TaskLookup(store=store, recent=recent, barrier=barrier),
            waits=TaskWaits(group, versions=store.versions),
            tenant_waits=StoreWaits(group, store.latest_changes),
            watch=watch,
            lanes=lanes,
            metrics=metrics,
            stopping=stopping,
        )
        submission = Submission(
            admit=gate.admit,
            producer=clients.producer,
            partitioner=partitioner,
            partition_counts=watch.partition_count,
            recent=recent,
            metrics=metrics,
            once=idempotency.once,
            topics=settings.topics,
            qualities=settings.qualities,
            admission=Admission(lanes, count=metrics.count_admission),
            presets=presets,
            models_of=lanes.pools.models_of,
            quotas=clients.quotas,
            trust=trust,
            public_url=settings.public_url,
            webhooks=RequestedWebhooks(store=clients.webhooks, targets=settings.webhooks, now_ms=services.now_ms),
        )
        parts: dict[str, Callable[[], Awaitable[None]]] = {
            **_background_parts(settings, clients, services, partitioner),
            "presets": partial(presets.run, store.read),
            "reservations": idempotency.purge,
        }
        if isinstance(gate, KeyGate):
            parts["key_usage"] = gate.run
        background = [group.create_task(run_or_fail(run, on_failure, name=name)) for name, run in parts.items()]
        yield ServerParts(services, submission)
        for task in background:
            task.cancel()
        await clients.producer.stop()
        await clients.reservations.close()
        await clients.quotas.close()


@asynccontextmanager
async def _open_clients(
    settings: GatewaySettings, gate: Gate, metrics: GatewayMetrics, on_failure: Callable[[], None]
) -> AsyncIterator[_Clients]:
    """All but what has to be written to the end is closed: `running_parts` does that while its tasks run."""
    objects = open_object_store(settings.storage)
    metadata = KafkaMetadata(settings.kafka, client_id=CLIENT_ID, timeout_seconds=METADATA_SECONDS)
    await metadata.admin()  # unusable credentials end the start
    producer = TaskProducer(
        librdkafka_options(settings.kafka, client_id=CLIENT_ID),
        deadline_seconds=settings.produce_deadline_seconds,
        on_failure=on_failure,
    )
    store = open_task_reader(settings)
    webhooks = open_webhooks(settings)
    reservations = Reservations(open_reservations(settings))
    quotas = open_quotas(settings, store)
    own_secret = await gate.store.secret() if isinstance(gate, KeyGate) else None
    trust = open_trust(settings, own_secret)
    dead_letters = open_dead_letters(settings, store, metrics, trust)
    producer.start()
    try:
        yield _Clients(
            metadata=metadata,
            objects=objects,
            producer=producer,
            store=store,
            webhooks=webhooks,
            reservations=reservations,
            quotas=quotas,
            own_secret=own_secret,
            trust=trust,
            dead_letters=dead_letters,
        )
    finally:
        await dead_letters.jobs.close()
        store.close()
        webhooks.close()
        if isinstance(gate, KeyGate):
            await gate.close()


def _background_parts(
    settings: GatewaySettings, clients: _Clients, services: Services, partitioner: LoadAwarePartitioner
) -> dict[str, Callable[[], Awaitable[None]]]:
    """What the process learns from Kafka and of itself, and the replays of dead letters, by name."""
    lanes = services.lanes
    pool_states = PoolStateReader(settings.kafka, settings.topics.pools, metadata=clients.metadata, states=lanes.pools)
    return {
        "broker_watch": services.watch.run,
        "partitioner": partitioner.run,
        "pool_states": pool_states.run,
        "pool_history": partial(services.pool_history.run, partial(queue_routes.sample_pools, lanes)),
        "dead_letter_replays": clients.dead_letters.runner.run,
        "previews": open_preview_reader(settings, services.previews, clients.trust).run,
    }


def _lane_watch(settings: GatewaySettings) -> LaneWatch:
    lanes = served_lanes(settings.consumer_group, settings.lanes, settings.topics)
    return LaneWatch(lanes, clock=time.monotonic, wall_clock=time.time)


def _services(
    settings: GatewaySettings,
    clients: _Clients,
    *,
    lookup: TaskLookup,
    waits: TaskWaits,
    tenant_waits: StoreWaits[str],
    watch: BrokerWatch,
    lanes: LaneWatch,
    metrics: GatewayMetrics,
    stopping: asyncio.Event,
) -> Services:
    producer, topics = clients.producer, settings.topics
    return Services(
        lookup=lookup,
        store=clients.store,
        watch=watch,
        objects=clients.objects,
        signer=open_signer(settings),
        public_url=settings.public_url,
        waits=waits,
        tenant_waits=tenant_waits,
        canceling=Canceling(producer=producer, topic=topics.control),
        deleting=Deleting(producer=producer, topic=topics.results, objects=clients.objects, trust=clients.trust),
        feedback=FeedbackWriter(
            producer=producer,
            topic=topics.feedback,
            trust=clients.trust,
            rater_secret=clients.own_secret,
            metrics=metrics,
        ),
        stopping=stopping,
        readers=EventReaders(
            most=settings.event_streams, most_of_tenant=settings.event_streams_of_tenant, metrics=metrics
        ),
        metrics=metrics,
        lanes=lanes,
        dead_letters=clients.dead_letters,
        webhooks=clients.webhooks,
        webhook_targets=settings.webhooks,
    )


def open_gate(settings: GatewaySettings) -> Gate:
    """Who is admitted; opens nothing yet."""
    if not settings.needs_keys():
        return OpenGate()
    return KeyGate(open_key_store(settings), tokens=open_tokens(settings.oidc))


def open_tokens(settings: OidcSettings) -> "Tokens | None":
    """Whose tokens are accepted; None where keys alone are."""
    if settings.issuer is None:
        return None
    # Here alone, for the start of gateways without: HTTP client and PyJWT take a tenth of it.
    from fluxpool_gateway.identity.issuer_keys import IssuerKeys  # noqa: PLC0415
    from fluxpool_gateway.identity.tokens import Tokens  # noqa: PLC0415

    return Tokens(settings, keys=IssuerKeys(settings))


def open_dead_letters(
    settings: GatewaySettings, store: TaskStoreReader, metrics: GatewayMetrics, trust: TenantTrust
) -> DeadLetters:
    """The dead letters of the topic that the settings name."""
    topic = KafkaDeadLetterTopic(settings.kafka, settings.topics.dead_letters, trust)
    jobs = open_replay_jobs(settings)
    retry_topics = frozenset(settings.topics.retry)
    runner = ReplayRunner(jobs=jobs, topic=topic, retry_topics=retry_topics, metrics=metrics, store=store)
    return DeadLetters(store=store, topic=topic, jobs=jobs, runner=runner, topics=settings.topics)


async def run_or_fail(run: Callable[[], Awaitable[None]], on_failure: Callable[[], None], *, name: str) -> None:
    """Run a background part until cancelled; when it ends by itself, call `on_failure`, because nothing restarts it."""
    try:
        await run()
    except Exception:  # the top of a part: whatever ended it, the process must end with it
        logger.exception("background_part_failed", part=name)
    else:
        logger.error("background_part_ended", part=name)
    on_failure()
