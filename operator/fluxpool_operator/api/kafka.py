"""`spec.kafka`: the cluster, its security, the group, the lanes and the other topics."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from fluxpool_contract.kafka import SaslMechanism, SecurityProtocol, TopicNames
from fluxpool_contract.settings import DEFAULT_CONSUMER_GROUP, STANDARD_LANE
from fluxpool_contract.text_rules import BROKER_ADDRESS_PATTERN
from fluxpool_operator.api.schema import SET, ApiModel, HttpUrl, Matching, Rule, map_by
from fluxpool_operator.api.secrets import CaSecretRef, CertificateSecretRef, ClientSecretRef, CredentialsSecretRef

_NAMES: Final = TopicNames()

BootstrapServer = Annotated[
    str,
    Field(min_length=3, max_length=260),
    Matching(
        BROKER_ADDRESS_PATTERN,
        "bootstrapServers: each must have the form host:port, such as kafka:9092",
    ),
]
TopicField = Annotated[str, Field(min_length=1, max_length=249, pattern=r"^[A-Za-z0-9._-]+$")]
GroupField = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9._-]+$")]

_GROUP_OF: Final = (
    "self.lanes.map(lane, has(lane.consumerGroup) ? lane.consumerGroup : lane.name == self.lanes[0].name"
    " ? self.consumerGroup : self.consumerGroup + '-' + lane.name)"
)

_SHARED_TOPICS: Final = "([self.results, self.progress, self.control, self.deadLetters, self.pools] + self.retry)"


class ServiceAccountToken(ApiModel):
    """Service account token projected into the pod and rotated by Kubernetes."""

    audience: Annotated[str, Field(min_length=1, max_length=253)]
    """Audience of the token, as the brokers expect it."""
    expiration_seconds: Annotated[int, Field(ge=600, le=86_400)] = 3600
    """Requested duration of validity of the token."""


class OauthSpec(ApiModel):
    """Source of OAUTHBEARER tokens: an OAuth server or a Kubernetes service account."""

    token_endpoint: HttpUrl | None = None
    """URL of the OAuth token endpoint (client-credentials grant)."""
    client_secret_ref: ClientSecretRef | None = None
    """Secret with the OAuth client ID and client secret."""
    scope: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """OAuth scope requested from tokenEndpoint."""
    ca_secret_ref: CaSecretRef | None = None
    """Secret with the CA certificates trusted for tokenEndpoint, in addition to the system's. Defaults to
    security.caSecretRef."""
    encode_credentials: bool = True
    """Form-encode the client ID and secret as RFC 6749 section 2.3.1 requires. Set to false for servers that expect
    them unencoded."""
    service_account_token: ServiceAccountToken | None = None
    """Service account token used instead of an OAuth server."""

    rules: ClassVar = (
        Rule(
            "has(self.serviceAccountToken) != (has(self.tokenEndpoint) || has(self.clientSecretRef))"
            " && has(self.tokenEndpoint) == has(self.clientSecretRef)",
            "oauth: give either serviceAccountToken, or both tokenEndpoint and clientSecretRef",
        ),
        Rule(
            "!has(self.scope) || has(self.tokenEndpoint)",
            "scope: requires tokenEndpoint; set tokenEndpoint or remove scope",
            ".scope",
        ),
        Rule(
            "!has(self.caSecretRef) || has(self.tokenEndpoint)",
            "caSecretRef: requires tokenEndpoint; set tokenEndpoint or remove caSecretRef",
            ".caSecretRef",
        ),
    )


class SecuritySpec(ApiModel):
    """Encryption and authentication of Kafka connections."""

    protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    """Kafka security.protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""
    sasl_mechanism: SaslMechanism | None = None
    """Kafka sasl.mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER. Required with the SASL protocols."""
    credentials_secret_ref: CredentialsSecretRef | None = None
    """Secret with the user name and password for PLAIN and SCRAM."""
    oauth: OauthSpec | None = None
    """OAUTHBEARER configuration."""
    ca_secret_ref: CaSecretRef | None = None
    """Secret with the CA certificates trusted for the brokers. Defaults to those of the worker image."""
    client_certificate_secret_ref: CertificateSecretRef | None = None
    """Secret with the client certificate for mutual TLS authentication."""

    rules: ClassVar = (
        Rule(
            "self.protocol.startsWith('SASL_') == has(self.saslMechanism)",
            "saslMechanism: is required with protocol SASL_PLAINTEXT and SASL_SSL, and only then",
            ".saslMechanism",
        ),
        Rule(
            "has(self.credentialsSecretRef) == (has(self.saslMechanism) && self.saslMechanism != 'OAUTHBEARER')",
            "credentialsSecretRef: is required with saslMechanism PLAIN and SCRAM, and only then",
            ".credentialsSecretRef",
        ),
        Rule(
            "has(self.oauth) == (has(self.saslMechanism) && self.saslMechanism == 'OAUTHBEARER')",
            "oauth: is required with saslMechanism OAUTHBEARER, and only then",
            ".oauth",
        ),
        Rule(
            "self.protocol.endsWith('SSL') || !(has(self.caSecretRef) || has(self.clientCertificateSecretRef))",
            "protocol: caSecretRef and clientCertificateSecretRef need protocol SSL or SASL_SSL",
            ".protocol",
        ),
    )


class LaneSpec(ApiModel):
    """Topic that the pool consumes, with its own consumer group."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    """Name of the lane in the status, in metrics and in the default name of its consumer group."""
    topic: Annotated[
        TopicField,
        Rule("self == oldSelf", "topic: is immutable, the committed offsets belong to it; add another lane instead"),
    ]
    """Topic with the tasks. Immutable."""
    consumer_group: GroupField | None = None
    """Consumer group of the lane. Defaults to kafka.consumerGroup for the first lane, kafka.consumerGroup-NAME for the
    others. Immutable."""
    preference: Annotated[int, Field(ge=0, le=100)] = 0
    """Priority of the lane. Lanes with a higher preference are served first; the others keep a share."""

    rules: ClassVar = (
        Rule(
            "has(self.consumerGroup) == has(oldSelf.consumerGroup)"
            " && (!has(self.consumerGroup) || self.consumerGroup == oldSelf.consumerGroup)",
            "consumerGroup: is immutable, its offsets would be lost; add another lane instead",
            ".consumerGroup",
        ),
    )


class TopicsSpec(ApiModel):
    """Names of the topics shared by all lanes."""

    results: TopicField = _NAMES.results
    """Results topic: one result for each task."""
    progress: TopicField = _NAMES.progress
    """Progress topic: steps of running tasks."""
    retry: Annotated[tuple[TopicField, ...], Field(min_length=1, max_length=8, json_schema_extra=SET)] = _NAMES.retry
    """Retry topics, one for each delay, shortest first."""
    control: TopicField = _NAMES.control
    """Control topic: cancellations of tasks."""
    dead_letters: TopicField = _NAMES.dead_letters
    """Dead-letter topic."""
    pools: TopicField = _NAMES.pools
    """Topic with the states of pools, for the gateway."""

    rules: ClassVar = (
        Rule(
            f"{_SHARED_TOPICS}.all(topic, {_SHARED_TOPICS}.exists_one(other, other == topic))",
            "topics: every topic needs its own name, or records of one are read as those of another",
        ),
    )


class TopicLayoutSpec(ApiModel):
    """Partitions and replication factor of managed topics. Partitions of existing topics are only ever added."""

    task_partitions: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Number of partitions of each lane's topic. A worker without a partition is idle: use slightly more than the
    expected maximum of workers."""
    event_partitions: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Number of partitions of the results, progress, retry and dead-letter topics."""
    replication_factor: Annotated[int, Field(ge=1, le=32)] = 3
    """Replication factor of created topics."""


class KafkaSpec(ApiModel):
    """Kafka cluster, consumer groups and topics of a pool."""

    bootstrap_servers: Annotated[tuple[BootstrapServer, ...], Field(min_length=1, max_length=32, json_schema_extra=SET)]
    """Bootstrap servers of the Kafka cluster, host:port."""
    security: SecuritySpec = SecuritySpec()
    """Encryption and authentication of Kafka connections."""
    consumer_group: Annotated[
        GroupField,
        Rule("self == oldSelf", "consumerGroup: is immutable, its offsets would be lost; create another pool instead"),
    ] = DEFAULT_CONSUMER_GROUP
    """Consumer group of the first lane, and prefix of the consumer groups of the other lanes. Immutable."""
    lanes: Annotated[tuple[LaneSpec, ...], Field(min_length=1, max_length=8, json_schema_extra=map_by("name"))] = (
        LaneSpec(name=STANDARD_LANE.name, topic=STANDARD_LANE.topic),
    )
    """Lanes: topics that the pool consumes. The first lane cannot be moved or removed."""
    topics: TopicsSpec = TopicsSpec()
    """Names of the topics shared by all lanes."""
    manage_topics: bool = False
    """Whether the operator creates missing topics, adds partitions up to topicLayout, and sets
    message.timestamp.type=LogAppendTime."""
    topic_layout: TopicLayoutSpec = TopicLayoutSpec()
    """Partitions and replication factor of the topics when manageTopics is true."""
    offset_retention_days: Annotated[int, Field(ge=1, le=3650)] = 365
    """How long the committed offsets of a pool that is scaled to zero are retained."""

    rules: ClassVar = (
        Rule(
            "self.lanes[0].name == oldSelf.lanes[0].name",
            "lanes: the first lane owns consumerGroup and must stay the first; put new lanes after it",
            ".lanes",
        ),
        Rule(
            "self.lanes.all(lane, self.lanes.exists_one(other, other.topic == lane.topic))",
            "lanes: every lane needs its own topic, or each task would be processed twice",
            ".lanes",
        ),
        Rule(
            f"{_GROUP_OF}.all(group, {_GROUP_OF}.exists_one(other, other == group))",
            "lanes: every lane needs its own consumer group; change one of the consumerGroup fields",
            ".lanes",
        ),
        Rule(
            "!self.lanes.exists(lane, lane.topic in [self.topics.results, self.topics.progress, self.topics.control,"
            " self.topics.deadLetters, self.topics.pools] || lane.topic in self.topics.retry)",
            "lanes: a topic that workers produce to cannot be a lane; choose another topic",
            ".lanes",
        ),
    )
