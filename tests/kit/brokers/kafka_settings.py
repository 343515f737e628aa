"""Settings of test brokers: listeners, users, replicas, and any other property.

Plain values; starts nothing and touches no file.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fluxpool_cli.local.kafka.broker import CONTROLLER_LISTENER, PLAIN_LISTENER, plain_properties
from fluxpool_cli.local.loopback import HOST
from fluxpool_contract.kafka import SaslMechanism, SecurityProtocol
from kit.waiting import PATIENCE

SESSION_SECONDS = 2.0 * PATIENCE
"""A broker that is silent for longer is fenced; one that was killed may register again after it."""
# Readiness needs a leader and a loaded coordinator for every partition, one by one: far fewer than Kafka's 50.
OFFSETS_PARTITIONS = 3

_OWNED_SETTINGS = frozenset(
    {
        "advertised.listeners",
        "controller.listener.names",
        "controller.quorum.voters",
        "inter.broker.listener.name",
        "listener.security.protocol.map",
        "listeners",
        "log.dirs",
        "node.id",
        "offsets.topic.num.partitions",
        "process.roles",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScramUser:
    """A login that is written into the cluster's metadata when it is formatted."""

    name: str
    password: str = field(repr=False)
    mechanism: SaslMechanism = SaslMechanism.SCRAM_SHA_512

    def __post_init__(self) -> None:
        """Refuse what the format tool's `key=value,...` notation cannot carry."""
        for attribute, text in (("name", self.name), ("password", self.password)):
            if not text or re.search(r'[\s,="\[\]]', text):
                raise ValueError(f'SCRAM user: {attribute} must not be empty or hold blanks, commas, =, ", [ or ]')

    def as_argument(self) -> str:
        """Return the value of the format tool's `--add-scram`."""
        return f"{self.mechanism}=[name={self.name},password={self.password}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSpec:
    """One more address of every broker, beside the plain one.

    `properties` are the listener's own settings without prefix, such as `ssl.keystore.type` or
    `plain.sasl.jaas.config`. `advertised_ports` maps node id -> the loopback port at which clients find the broker
    instead of its own, such as a proxy's.
    """

    name: str
    protocol: SecurityProtocol
    advertised_ports: Mapping[int, int] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse names that Kafka or this module uses itself."""
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.name):
            raise ValueError(f"listener name {self.name!r}: use capital letters, digits and _, such as SASL")
        if self.name in {PLAIN_LISTENER, CONTROLLER_LISTENER}:
            raise ValueError(f"listener name {self.name!r} is taken by the cluster itself: choose another one")
        for node_id, port in self.advertised_ports.items():
            if not 1 <= port <= 65535:
                raise ValueError(
                    f"listener {self.name}: advertised_ports: {port} of broker {node_id} is not between 1 and 65535"
                )


def check_listeners(listeners: Sequence[ListenerSpec], *, brokers: int) -> None:
    """Raise `ValueError` for a name used twice or a broker that is not there."""
    names = [listener.name for listener in listeners]
    if len(set(names)) != len(names):
        raise ValueError(f"listeners {', '.join(names)}: each name may be used once")
    for listener in listeners:
        strangers = sorted(listener.advertised_ports.keys() - set(range(1, brokers + 1)))
        if strangers:
            raise ValueError(
                f"listener {listener.name}: advertised_ports: there is no broker {strangers[0]}; use 1 to {brokers}"
            )


def check_extra_properties(properties: Mapping[str, str]) -> None:
    """Raise `ValueError` when a setting is one that the cluster derives from its layout."""
    owned = sorted(_OWNED_SETTINGS & properties.keys())
    if owned:
        raise ValueError(f"extra_properties: {', '.join(owned)} cannot be set, the cluster derives it from its layout")


def broker_properties(
    *,
    node_id: int,
    ports: Mapping[int, Mapping[str, int]],
    listeners: Sequence[ListenerSpec],
    extra_properties: Mapping[str, str],
) -> dict[str, str]:
    """Return the settings of one broker; `ports` maps each broker's node id to listener name -> port.

    `extra_properties` win over everything but the layout.
    """
    own_ports = ports[node_id]
    replicas = len(ports)
    in_sync = max(1, replicas - 1)
    protocols = {PLAIN_LISTENER: SecurityProtocol.PLAINTEXT} | {spec.name: spec.protocol for spec in listeners}
    advertised = {spec.name: spec.advertised_ports[node_id] for spec in listeners if node_id in spec.advertised_ports}
    voters = ",".join(f"{node}@{HOST}:{node_ports[CONTROLLER_LISTENER]}" for node, node_ports in sorted(ports.items()))
    replication = {
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.num.partitions": OFFSETS_PARTITIONS,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.num.partitions": OFFSETS_PARTITIONS,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
    }
    of_listeners = {
        f"listener.name.{spec.name.lower()}.{key}": value
        for spec in listeners
        for key, value in spec.properties.items()
    }
    layout = {
        "node.id": node_id,
        "controller.quorum.voters": voters,
        "listeners": _addresses([*protocols, CONTROLLER_LISTENER], own_ports),
        "advertised.listeners": _addresses(protocols, dict(own_ports) | advertised),
        "listener.security.protocol.map": ",".join(
            f"{name}:{protocol}"
            for name, protocol in [*protocols.items(), (CONTROLLER_LISTENER, SecurityProtocol.PLAINTEXT)]
        ),
        # The readiness check computes which group lands on which partition.
        "offsets.topic.num.partitions": OFFSETS_PARTITIONS,
    }
    # A controller writes an empty record every half second: a third of what an idle broker takes of a core.
    quiet = {"metadata.max.idle.interval.ms": 0}
    # Tests kill brokers and start them again; see `plain_properties`.
    session = {"broker.session.timeout.ms": round(SESSION_SECONDS * 1000)}
    merged = (
        plain_properties(own_ports) | quiet | session | replication | of_listeners | dict(extra_properties) | layout
    )
    return {key: str(value) for key, value in merged.items()}


def _addresses(names: Iterable[str], ports: Mapping[str, int]) -> str:
    return ",".join(f"{name}://{HOST}:{ports[name]}" for name in names)


def render_properties(properties: Mapping[str, str]) -> str:
    """Return the text of a Java properties file, in ASCII; values may hold anything, such as the line breaks of PEM."""
    return "".join(f"{key}={_escaped(value)}\n" for key, value in sorted(properties.items()))


def _escaped(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    # Java reads the file as Latin-1, in UTF-16 units (java.util.Properties).
    escaped = "".join(
        character if character.isascii() and character.isprintable() else _utf16_escapes(character)
        for character in escaped
    )
    # Blanks at the start of a value would be dropped.
    return f"\\{escaped}" if escaped.startswith(" ") else escaped


def _utf16_escapes(character: str) -> str:
    units = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def group_on_partition(partition: int, *, partitions: int = OFFSETS_PARTITIONS) -> str:
    """Return a group id whose offsets Kafka keeps on this partition of `__consumer_offsets`.

    Kafka takes `abs(String.hashCode(group)) % partitions` (GroupMetadataManager.partitionFor).
    """
    candidates = (f"fluxpool-readiness-{number}" for number in range(100 * partitions))
    return next(group for group in candidates if _java_hash(group) % partitions == partition)


def _java_hash(text: str) -> int:
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return abs(value - (1 << 32) if value & 0x80000000 else value)
