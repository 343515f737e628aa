"""The real Kafka of the tests: start brokers; write and read topics, records and offsets independently of the product.

Nothing here uses the product's code or joins its groups.
"""

import asyncio
import contextlib
import fcntl
import subprocess
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_fixed

from fluxpool_cli.local.kafka.broker import KafkaStartError, java_command
from fluxpool_contract.kafka import SecurityProtocol
from kit.brokers.kafka_classes import classes_file, using_classes, writing_classes
from kit.brokers.kafka_cluster import KafkaCluster
from kit.brokers.kafka_settings import ListenerSpec
from kit.waiting import PATIENCE, wait_until

with warnings.catch_warnings():
    # kafka-python reads its message schemas by a function of importlib that Python 3.11 and 3.12 call deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaAdminClient, KafkaProducer
    from kafka.errors import CoordinatorLoadInProgressError, CoordinatorNotAvailableError, NotCoordinatorError
    from kafka.errors import KafkaError as _KafkaPythonError

ScriptClientError: type[Exception] = _KafkaPythonError
"""Errors of `produce` and `committed_offsets` when the brokers are down."""

_REQUEST_SECONDS = 10.0 * PATIENCE
_UNSERVED_PAUSE_SECONDS = 0.2
_DUMP_SECONDS = 120.0
"""A broker writes its classes when it ends, in 10 s of a core."""
_SILENCE_SECONDS = 5.0
"""After a leader lost and regained its role, a client was seen to fetch no more; a new client does."""
_UNSERVED = frozenset(
    getattr(KafkaError, name)
    for name in (
        "_ALL_BROKERS_DOWN",
        "_TIMED_OUT",
        "_TRANSPORT",
        "_UNKNOWN_PARTITION",
        "_UNKNOWN_TOPIC",
        "BROKER_NOT_AVAILABLE",
        "LEADER_NOT_AVAILABLE",
        "NOT_LEADER_FOR_PARTITION",
        "REQUEST_TIMED_OUT",
        "UNKNOWN_TOPIC_OR_PART",
    )
)
"""Errors of restarted brokers before they lead their partitions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRecord:
    """A record of the log; `headers` keeps order and duplicates, `timestamp_ms` is Unix time."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedOffset:
    """A group's committed offset and metadata of a partition."""

    offset: int
    metadata: str


class KafkaFactory(Protocol):
    """Start another Kafka for a test; takes the settings of `KafkaCluster` except folder and jars."""

    async def __call__(self, **settings: Any) -> KafkaCluster:
        """Return it ready; its brokers are killed when the test ends."""


@contextmanager
def running_kafka(data_dir: Path, *, libs: Path, **settings: Any) -> Iterator[KafkaCluster]:
    """Run a Kafka for a fixture of any scope, outside an event loop."""
    cluster = KafkaCluster(data_dir, libs=libs, **settings)
    # A loop factory keeps the runner from replacing the thread's current loop, which is pytest-asyncio's.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(cluster.__aenter__())
        try:
            yield cluster
        finally:
            runner.run(cluster.stop())


def share_classes(libs: Path) -> None:
    """Write the file with which every broker of these jars starts quicker, unless it was written before."""
    file = classes_file(libs)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if file.exists():
            return
        with (
            tempfile.TemporaryDirectory(dir=file.parent) as folder,
            asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
        ):
            written = Path(folder, file.name)
            cluster = KafkaCluster(Path(folder, "kafka"), libs=libs, jvm_options=writing_classes(written))
            # A JVM that was built without an archive of its own classes refuses to write one, and may not even start.
            with contextlib.suppress(KafkaStartError, subprocess.CalledProcessError, FileNotFoundError):
                runner.run(cluster.__aenter__())
                runner.run(cluster.stop(grace_seconds=_DUMP_SECONDS))
                # A file that was cut short, on a full disk or by the deadline, crashes a JVM.
                subprocess.run([*java_command(libs, using_classes(written)), "-version"], check=True, cwd=folder)
                written.replace(file)


def unique_name(prefix: str) -> str:
    """Return a name that no other test uses: topics and groups of tests live on one shared broker."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


async def create_topics(
    bootstrap_servers: str,
    topics: Mapping[str, int],
    *,
    config: Mapping[str, str] | None = None,
    replication_factor: int = -1,
) -> None:
    """Create topics (name -> number of partitions) and return once every partition has a leader.

    -1 is the broker's own replication factor. Raises `confluent_kafka.KafkaException` when one exists already.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    wanted = [
        NewTopic(name, num_partitions=partitions, replication_factor=replication_factor, config=dict(config or {}))
        for name, partitions in topics.items()
    ]
    for created in admin.create_topics(wanted, operation_timeout=_REQUEST_SECONDS).values():
        await asyncio.wrap_future(created)

    async def all_led() -> bool:
        # Only these: the shared broker has a thousand of others.
        asked = admin.describe_topics(TopicCollection(list(topics)), request_timeout=_REQUEST_SECONDS)
        try:
            described = {name: (await asyncio.wrap_future(found)).partitions for name, found in asked.items()}
        except KafkaException as error:
            if not _is_unserved(error):
                raise
            return False
        led = {name: sum(1 for one in found if one.leader and one.leader.id >= 0) for name, found in described.items()}
        return led == dict(topics)

    await wait_until(all_led, deadline_seconds=20, what=f"leaders of {', '.join(topics)}")


async def read_topic(
    bootstrap_servers: str, topic: str, *, isolation_level: str = "read_uncommitted", deadline_seconds: float = 60
) -> list[TopicRecord]:
    """Return all records up to the end at the time of the call: `TopicReader.records` of a client for this once."""
    reader = TopicReader(bootstrap_servers, isolation_level=isolation_level)
    try:
        return await reader.records(topic, deadline_seconds=deadline_seconds)
    finally:
        await asyncio.to_thread(reader.close)


class TopicReader:
    """Reads topics repeatedly up to their ends with one client; a read fetches only new records.

    Joins no group. For topics that are neither compacted nor recreated: records that were read are kept until the log
    start offset passes them.
    """

    def __init__(self, bootstrap_servers: str, *, isolation_level: str = "read_uncommitted") -> None:
        self._settings = {
            "bootstrap.servers": bootstrap_servers,
            # librdkafka requires one; only a subscription or a commit would use it.
            "group.id": "unused",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,
            "isolation.level": isolation_level,
            # Brokers of tests are restarted soon, and their outages are expected.
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,
        }
        self._consumer: Any = None
        self._held: dict[tuple[str, int], list[TopicRecord]] = {}
        self._next: dict[tuple[str, int], int] = {}
        # An expired wait leaves its read running in a thread.
        self._reading = threading.Lock()

    async def records(self, topic: str, *, deadline_seconds: float = 60) -> list[TopicRecord]:
        """Return all records up to the end at the time of the call, by partition and offset.

        Repeats requests to brokers that do not serve the topic yet. Raises `LookupError` when there is no such topic,
        `TimeoutError` when the end is not reached in time, `confluent_kafka.KafkaException` when it is not served by
        then.
        """
        deadline_seconds *= PATIENCE
        deadline = time.monotonic() + deadline_seconds

        def read() -> list[TopicRecord]:
            with self._reading:
                try:
                    return self._read(topic, deadline=deadline)
                except BaseException:
                    # After a fault the next read uses new connections.
                    self._close()
                    raise

        return await _again_until_served(deadline_seconds)(asyncio.to_thread, read)

    def close(self) -> None:
        """Close the connections."""
        with self._reading:
            self._close()

    def _close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _read(self, topic: str, *, deadline: float) -> list[TopicRecord]:
        if self._consumer is None:
            self._consumer = Consumer(self._settings)
        partitions = self._consumer.list_topics(topic, timeout=_REQUEST_SECONDS).topics[topic].partitions
        if not partitions:
            raise LookupError(f"topic {topic!r} does not exist")
        ends: dict[int, int] = {}
        for number in partitions:
            place = topic, number
            bounds = self._consumer.get_watermark_offsets(TopicPartition(*place), timeout=_REQUEST_SECONDS)
            if bounds is None:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - the library's public name
            start, end = bounds
            self._held[place] = [record for record in self._held.get(place, []) if record.offset >= start]
            self._next[place] = max(start, self._next.get(place, start))
            if self._next[place] < end:
                ends[number] = end
        self._read_on(topic, ends, deadline=deadline)
        return [record for number in sorted(partitions) for record in self._held[topic, number]]

    def _read_on(self, topic: str, ends: Mapping[int, int], *, deadline: float) -> None:
        """Read these partitions from their last positions to these ends."""
        self._consumer.assign([TopicPartition(topic, number, self._next[topic, number]) for number in ends])
        unread = set(ends)
        silent_at = time.monotonic() + _SILENCE_SECONDS
        while unread:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"the end of {topic!r} was not reached on partitions {sorted(unread)}")
            if time.monotonic() >= silent_at:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - the library's public name
            for message in self._consumer.consume(num_messages=500, timeout=0.2):
                silent_at = time.monotonic() + _SILENCE_SECONDS
                number = message.partition()
                if number not in unread:
                    continue
                # Transaction markers and compaction leave tails without records: compare with the end offset.
                if message.error() is None:
                    self._held[topic, number].append(_as_topic_record(message))
                    self._next[topic, number] = message.offset() + 1
                elif message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's public name
                    self._next[topic, number] = message.offset()
                    unread.discard(number)
                else:
                    raise KafkaException(message.error())
                if self._next[topic, number] >= ends[number]:
                    unread.discard(number)
        # An assigned partition would be fetched forever.
        self._consumer.unassign()


def _again_until_served(seconds: float) -> AsyncRetrying:
    """Repeat while restarted brokers do not serve yet."""
    return AsyncRetrying(
        retry=retry_if_exception(_is_unserved),
        wait=wait_fixed(_UNSERVED_PAUSE_SECONDS),
        stop=stop_after_delay(seconds),
        reraise=True,
    )


def _is_unserved(error: BaseException) -> bool:
    if isinstance(error, KafkaException):
        return error.args[0].code() in _UNSERVED
    return isinstance(error, CoordinatorLoadInProgressError | CoordinatorNotAvailableError | NotCoordinatorError)


def _as_topic_record(message: Any) -> TopicRecord:
    return TopicRecord(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        key=message.key(),
        value=message.value(),
        headers=tuple(message.headers() or ()),
        timestamp_ms=message.timestamp()[1],
    )


async def produce(
    bootstrap_servers: str,
    topic: str,
    records: Sequence[tuple[bytes | None, bytes | None]],
    *,
    partition: int | None = None,
    headers: Iterable[tuple[str, bytes]] = (),
) -> list[tuple[int, int]]:
    """Send (key, value) pairs as a simple script would, by kafka-python; returns (partition, offset) of each.

    All are acknowledged when it returns; without `headers` the records have none.
    """

    def send_all() -> list[tuple[int, int]]:
        producer = KafkaProducer(bootstrap_servers=bootstrap_servers, acks="all")
        try:
            pending = [
                producer.send(topic, key=key, value=value, partition=partition, headers=list(headers))
                for key, value in records
            ]
            acknowledged = [future.get(timeout=_REQUEST_SECONDS) for future in pending]
        finally:
            producer.close(timeout=_REQUEST_SECONDS)
        return [(metadata.partition, metadata.offset) for metadata in acknowledged]

    return await asyncio.to_thread(send_all)


async def committed_offsets(bootstrap_servers: str, group: str) -> dict[tuple[str, int], CommittedOffset]:
    """Return the group's committed offsets: `OffsetReader.committed` of a client for this once."""
    reader = OffsetReader(bootstrap_servers)
    try:
        return await reader.committed(group)
    finally:
        await asyncio.to_thread(reader.close)


class OffsetReader:
    """Reads committed offsets repeatedly with one client, without joining groups."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._admin: Any = None
        # An expired wait leaves its read running in a thread.
        self._reading = threading.Lock()

    async def committed(self, group: str) -> dict[tuple[str, int], CommittedOffset]:
        """Return the group's committed offsets by (topic, partition).

        Partitions without a commit are absent. Repeats the request while the coordinator moves or loads. Raises
        kafka-python's errors for any other error, and when no broker can be reached.
        """
        committed: dict[Any, Any] = await _again_until_served(_REQUEST_SECONDS)(asyncio.to_thread, self._fetch, group)
        return {
            (partition.topic, partition.partition): CommittedOffset(offset=found.offset, metadata=found.metadata)
            for partition, found in committed.items()
        }

    def close(self) -> None:
        """Close the connections."""
        with self._reading:
            self._close()

    def _fetch(self, group: str) -> dict[Any, Any]:
        with self._reading:
            if self._admin is not None:
                # Its connections may be those of a broker that was restarted since.
                with contextlib.suppress(ScriptClientError):
                    return self._ask(group)
            return self._ask(group)

    def _ask(self, group: str) -> dict[Any, Any]:
        try:
            if self._admin is None:
                self._admin = KafkaAdminClient(bootstrap_servers=self._bootstrap_servers)
            committed: dict[Any, Any] = self._admin.list_group_offsets(group)[group]
        except BaseException:
            self._close()
            raise
        return committed

    def _close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None


def sasl_plain_listener(users: Mapping[str, str], *, name: str = "SASL") -> ListenerSpec:
    """Return a listener that accepts these users (name -> password) by SASL PLAIN."""
    logins = " ".join(f'user_{user}="{password}"' for user, password in users.items())
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return ListenerSpec(
        name=name,
        protocol=SecurityProtocol.SASL_PLAINTEXT,
        properties={
            "sasl.enabled.mechanisms": "PLAIN",
            "plain.sasl.jaas.config": f"{module} required {logins};",
        },
    )


def scram_listener(*, name: str = "SCRAM") -> ListenerSpec:
    """Return a listener that accepts the cluster's `scram_users`, by either mechanism."""
    module = "org.apache.kafka.common.security.scram.ScramLoginModule"
    return ListenerSpec(
        name=name,
        protocol=SecurityProtocol.SASL_PLAINTEXT,
        properties={
            "sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512",
            "scram-sha-256.sasl.jaas.config": f"{module} required;",
            "scram-sha-512.sasl.jaas.config": f"{module} required;",
        },
    )


def tls_listener(
    *, certificate_chain_pem: str, private_key_pem: str, client_ca_pem: str | None = None, name: str = "TLS"
) -> ListenerSpec:
    """Return a TLS listener; with `client_ca_pem` clients must show a certificate of that authority.

    The private key must be PKCS #8 ("BEGIN PRIVATE KEY"), the only form that Kafka reads.
    """
    properties = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": certificate_chain_pem,
        "ssl.keystore.key": private_key_pem,
    }
    if client_ca_pem is not None:
        properties |= {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": client_ca_pem,
            "ssl.client.auth": "required",
        }
    return ListenerSpec(name=name, protocol=SecurityProtocol.SSL, properties=properties)
