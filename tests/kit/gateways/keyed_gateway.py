"""Two replicas of a gateway with API keys, over real stores and without Kafka or sockets."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.dead_letters.replaying import ReplayRunner
from fluxpool_gateway.dead_letters.service import DeadLetters
from fluxpool_gateway.feedback.records import FeedbackSeen
from fluxpool_gateway.feedback.writing import FeedbackWriter
from fluxpool_gateway.http.app import GatewayApplication, build_application
from fluxpool_gateway.http.readiness import BrokerWatch
from fluxpool_gateway.http.routes import Services
from fluxpool_gateway.http.submission import Submission
from fluxpool_gateway.identity.api_key import KeyScope, new_key
from fluxpool_gateway.identity.bootstrap import prepare_keys
from fluxpool_gateway.identity.gate import KeyGate
from fluxpool_gateway.identity.key_store import KeyStore
from fluxpool_gateway.live.readers import EventReaders
from fluxpool_gateway.presets.choosing import Presets
from fluxpool_gateway.projection.barrier import ProjectionBarrier
from fluxpool_gateway.projection.projected_records import read_change
from fluxpool_gateway.queue.admission import Admission
from fluxpool_gateway.queue.lane_watch import LaneWatch
from fluxpool_gateway.queue.lanes import served_lanes
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.reservations import FILE_SUFFIX, reservation_file
from fluxpool_gateway.store.task_state import Change, Position, ResultSeen, TaskStatus
from fluxpool_gateway.store.task_store import LogPosition, TaskStoreWriter
from fluxpool_gateway.stores import open_quotas, open_replay_jobs, open_signer, open_webhooks
from fluxpool_gateway.tasks.canceling import Canceling
from fluxpool_gateway.tasks.deleting import Deleting
from fluxpool_gateway.tasks.idempotency import Idempotency, Reservations
from fluxpool_gateway.tasks.lookup import RecentTasks, TaskLookup
from fluxpool_gateway.tasks.producer import DeliveryError
from fluxpool_gateway.tasks.waiting import StoreWaits, TaskWaits
from fluxpool_gateway.usage.figures import Figures
from fluxpool_gateway.webhooks.requested.admission import RequestedWebhooks
from fluxpool_gateway.wiring import open_tokens
from fluxpool_transport.kafka.metadata import KafkaMetadata
from fluxpool_transport.partitioner.load_aware import LoadAwarePartitioner
from fluxpool_transport.storage.object_store import open_object_store
from kit.gateways.dead_letter_topic import MemoryTopic
from kit.stores.store_file import make_webhooks, opened_store

NOW_MS = 1_800_000_000_000
IMAGE = b"\x89PNG and so on"
KAFKA = KafkaConnection(bootstrap_servers=("localhost:9092",))


@dataclass(slots=True)
class Clock:
    """The time of day and the monotonic clock of every gateway of a test."""

    now_ms: int = NOW_MS

    def pass_seconds(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)

    def monotonic(self) -> float:
        return self.now_ms / 1000


@dataclass(slots=True)
class Records:
    """What the gateways wrote to Kafka."""

    headers: list[dict[str, bytes]] = field(default_factory=list)
    values: list[dict[str, Any]] = field(default_factory=list)
    """Tasks."""
    commands: list[tuple[str, dict[str, bytes], dict[str, Any]]] = field(default_factory=list)
    """Key, headers and value of those on the control topic."""
    deletions: list[tuple[bytes, dict[str, bytes]]] = field(default_factory=list)
    """Key and headers of those on the results topic, which have no value."""
    feedback: list[tuple[str, dict[str, bytes], bytes | None]] = field(default_factory=list)
    """Key, headers and value of those on the feedback topic."""
    failure: DeliveryError | None = None
    """What the next record ends with."""
    on_deletion: Callable[[bytes, dict[str, bytes]], None] | None = None
    """The projection of deletions, if any."""

    async def send(
        self, *, topic: str, partition: int, key: bytes, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> int:
        if self.failure is not None:
            raise self.failure
        if topic == TopicNames().control:
            assert value is not None
            self.commands.append((key.decode(), dict(headers), json.loads(value)))
            return len(self.commands)
        if topic == TopicNames().results:
            assert value is None
            self.deletions.append((key, dict(headers)))
            if self.on_deletion is not None:
                self.on_deletion(key, dict(headers))
            return len(self.deletions)
        if topic == TopicNames().feedback:
            self.feedback.append((key.decode(), dict(headers), value))
            return len(self.feedback)
        assert value is not None
        assert all((topic, partition >= 0, key, value))
        self.headers.append(dict(headers))
        self.values.append(json.loads(value))
        return len(self.headers)


@dataclass(slots=True)
class Replica:
    """One server process."""

    app: GatewayApplication
    gate: KeyGate
    http: httpx.AsyncClient
    dead_letters: DeadLetters

    async def ask(self, method: str, path: str, key: str | None = None, **arguments: Any) -> httpx.Response:
        headers = dict(arguments.pop("headers", {}))
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        return await self.http.request(method, path, headers=headers, **arguments)

    async def submit(self, key: str | None, **arguments: Any) -> httpx.Response:
        return await self.ask("POST", "/v1/generations", key, json={"prompt": "a fox"}, **arguments)


@dataclass(slots=True)
class Gateway:
    """Two replicas on the same stores, and an admin's key."""

    one: Replica
    two: Replica
    admin: str
    clock: Clock
    records: Records
    tasks: TaskStoreWriter
    settings: GatewaySettings
    dead_letters: MemoryTopic

    async def create(self, *scopes: str, tenant: str = "default", **more: Any) -> str:
        body = {"name": "test", "tenant": tenant, "scopes": scopes or list(KeyScope), **more}
        answer = await self.one.ask("POST", "/v1/keys", self.admin, json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def project(self, *changes: Change | FeedbackSeen) -> None:
        self.tasks.apply(
            [((TopicNames().tasks, 0, offset), change) for offset, change in enumerate(changes)], {}, now_ms=1
        )

    async def project_feedback(self) -> None:
        """Every record of the feedback topic so far."""
        topics = TopicNames()
        trust = TenantTrust(secret=await self.one.gate.store.secret())
        changes = []
        for offset, (key, headers, value) in enumerate(self.records.feedback):
            change = read_change(
                topics, topic=topics.feedback, key=key.encode(), value=value, headers=list(headers.items()),
                timestamp_ms=self.clock.now_ms, trust=trust,
            )  # fmt: skip
            assert change is not None
            changes.append(((topics.feedback, 0, offset), change))
        assert self.tasks.apply(changes, {}, now_ms=self.clock.now_ms) == []


def succeeded(request_id: str, tenant: str, *, object_key: str | None = None) -> ResultSeen:
    """The end of a task with one image, whose bytes are `IMAGE`."""
    image = ImageDescription(
        index=0,
        url="http://images/0.png",
        object=object_key or f"{tenant}/2026/04/05/{request_id}/0.png",
        width=64,
        height=64,
        seed=7,
        format="png",
        content_type="image/png",
        bytes=len(IMAGE),
        sha256=hashlib.sha256(IMAGE).hexdigest(),
    )
    result = GenerationResult(request_id=request_id, image_url=None, status=ResultStatus.SUCCESS, images=(image,))
    return ResultSeen(
        request_id=request_id,
        status=TaskStatus.SUCCEEDED,
        body=result.model_dump_json(),
        completed_at_ms=1,
        tenant=tenant,
        used=Figures.of(result),
    )


def key_id(key: str) -> str:
    return key.split("_")[1]


def keyed_settings(tmp_path: Path) -> GatewaySettings:
    """Settings of a gateway with a bootstrap key, which keeps everything below the folder."""
    bootstrap = tmp_path / "bootstrap-key"
    bootstrap.write_text(new_key() + "\n")
    return GatewaySettings(
        kafka=KAFKA,
        storage=StorageSettings(url=(tmp_path / "images").as_uri()),
        database_file=tmp_path / "tasks.sqlite",
        bootstrap_key_file=bootstrap,
    )


def prepare(settings: GatewaySettings) -> None:
    """What the program does before it starts its servers."""
    prepare_keys(settings.key_store_file(), bootstrap_key_file=settings.bootstrap_key_file, now_ms=NOW_MS)
    if not settings.webhook_store_file().exists():
        make_webhooks(settings.webhook_store_file())


@asynccontextmanager
async def keyed_gateway(settings: GatewaySettings) -> AsyncIterator[Gateway]:
    """Run both replicas for a block."""
    prepare(settings)
    assert settings.bootstrap_key_file is not None
    with opened_store(settings.task_store_file()) as engine:
        clock, records = Clock(), Records()
        keys = KeyStore(settings.key_store_file())
        dead_letters = MemoryTopic(TaskStoreWriter(engine), TenantTrust(secret=await keys.secret()))
        keys.close()
        async with (
            replica(settings, clock, records, dead_letters) as one,
            replica(settings, clock, records, dead_letters) as two,
        ):
            admin = settings.bootstrap_key_file.read_text().strip()
            yield Gateway(one, two, admin, clock, records, TaskStoreWriter(engine), settings, dead_letters)


@asynccontextmanager
async def replica(
    settings: GatewaySettings, clock: Clock, records: Records, topic: MemoryTopic
) -> AsyncIterator[Replica]:
    store = TaskStoreReader(settings.task_store_file())
    app = build_application(settings, on_failure=lambda: None)
    jobs = open_replay_jobs(settings)
    dead_letters = DeadLetters(
        store=store,
        topic=topic,
        jobs=jobs,
        runner=ReplayRunner(
            jobs=jobs, topic=topic, retry_topics=frozenset(settings.topics.retry), metrics=app.metrics, store=store
        ),
        topics=settings.topics,
    )
    # The same as the application's own, but for the clock.
    tokens = open_tokens(settings.oidc)
    gate = app.gate = KeyGate(
        KeyStore(settings.key_store_file()), tokens=tokens, clock=clock.monotonic, now_ms=lambda: clock.now_ms
    )
    recent = RecentTasks(clock.monotonic)

    async def nothing() -> Mapping[Position, LogPosition]:
        return {}

    file = settings.task_store_file()
    reservations = Reservations(reservation_file(file.with_name(file.name + FILE_SUFFIX)))
    quotas = open_quotas(settings, store)
    objects = open_object_store(settings.storage)
    secret = await gate.store.secret()
    trust = TenantTrust(secret=secret)
    webhooks = open_webhooks(settings)
    async with asyncio.TaskGroup() as group:
        barrier = ProjectionBarrier(group, ends=nothing, projected=nothing)
        idempotency = Idempotency(reservations=reservations, store=store, barrier=barrier.passed, deadline_seconds=3)
        app.state.services = Services(
            lookup=TaskLookup(store=store, recent=recent, barrier=barrier),
            store=store,
            watch=BrokerWatch(KafkaMetadata(settings.kafka, client_id="test"), ()),
            objects=objects,
            signer=open_signer(settings),
            public_url=None,
            waits=TaskWaits(group, versions=store.versions),
            tenant_waits=StoreWaits(group, store.latest_changes),
            canceling=Canceling(producer=records, topic=TopicNames().control),
            deleting=Deleting(producer=records, topic=TopicNames().results, objects=objects, trust=trust),
            feedback=FeedbackWriter(
                producer=records,
                topic=TopicNames().feedback,
                trust=trust,
                rater_secret=secret,
                metrics=app.metrics,
            ),
            stopping=asyncio.Event(),
            readers=EventReaders(
                most=settings.event_streams, most_of_tenant=settings.event_streams_of_tenant, metrics=app.metrics
            ),
            metrics=app.metrics,
            lanes=LaneWatch(
                served_lanes(settings.consumer_group, settings.lanes, settings.topics),
                clock=clock.monotonic,
                wall_clock=lambda: clock.now_ms / 1000,
            ),
            dead_letters=dead_letters,
            webhooks=webhooks,
            webhook_targets=settings.webhooks,
            now_ms=lambda: clock.now_ms,
        )
        app.submission = Submission(
            admit=gate.admit,
            producer=records,
            partitioner=LoadAwarePartitioner(settings.kafka, {}),
            partition_counts=lambda _topic: 3,
            recent=recent,
            metrics=app.metrics,
            once=idempotency.once,
            topics=TopicNames(),
            admission=Admission(app.state.services.lanes, count=app.metrics.count_admission),
            presets=Presets(presets=settings.presets, exploration=settings.preset_exploration),
            quotas=quotas,
            trust=trust,
            public_url=None,
            webhooks=RequestedWebhooks(store=webhooks, targets=settings.webhooks, now_ms=lambda: clock.now_ms),
        )
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield Replica(app, gate, client, dead_letters)
    await gate.close()
    await reservations.close()
    await jobs.close()
    await quotas.close()
    store.close()
    webhooks.close()
