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

_SHARED_TOPICS: Final = "([self.results, self.progress, self.control, self.deadLetters] + self.retry)"


class ServiceAccountToken(ApiModel):
    """The token of the pod's own service account, renewed by Kubernetes."""

    audience: Annotated[str, Field(min_length=1, max_length=253)]
    """Whom the token is for, as the brokers check it."""
    expiration_seconds: Annotated[int, Field(ge=600, le=86_400)] = 3600
    """How long one token is valid."""


class OauthSpec(ApiModel):
    """How tokens for OAUTHBEARER are had: from an OAuth server, or from Kubernetes itself."""

    token_endpoint: HttpUrl | None = None
    """Address of the OAuth server's token endpoint (client-credentials grant)."""
    client_secret_ref: ClientSecretRef | None = None
    """The client's id and secret for that endpoint."""
    scope: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Scope to ask for."""
    ca_secret_ref: CaSecretRef | None = None
    """The authorities to trust for that endpoint, beside the system's; those of security.caSecretRef when absent."""
    encode_credentials: bool = True
    """Form-encode the client's id and secret, as RFC 6749 section 2.3.1 demands; false for servers that take them as
    they are."""
    service_account_token: ServiceAccountToken | None = None
    """Use a token of the pod's service account instead."""

    rules: ClassVar = (
        Rule(
            "has(self.serviceAccountToken) != (has(self.tokenEndpoint) || has(self.clientSecretRef))"
            " && has(self.tokenEndpoint) == has(self.clientSecretRef)",
            "oauth: give either serviceAccountToken, or both tokenEndpoint and clientSecretRef",
        ),
        Rule(
            "!has(self.scope) || has(self.tokenEndpoint)",
            "scope: is sent to a tokenEndpoint; give one or remove scope",
            ".scope",
        ),
        Rule(
            "!has(self.caSecretRef) || has(self.tokenEndpoint)",
            "caSecretRef: is for a tokenEndpoint; give one or remove caSecretRef",
            ".caSecretRef",
        ),
    )


class SecuritySpec(ApiModel):
    """How connections to Kafka are encrypted and who the worker is there."""

    protocol: SecurityProtocol = SecurityProtocol.PLAINTEXT
    """Kafka's security.protocol."""
    sasl_mechanism: SaslMechanism | None = None
    """How the worker proves who it is; required with the SASL protocols."""
    credentials_secret_ref: CredentialsSecretRef | None = None
    """User name and password for PLAIN and SCRAM."""
    oauth: OauthSpec | None = None
    """Where tokens for OAUTHBEARER come from."""
    ca_secret_ref: CaSecretRef | None = None
    """The authorities to trust; those of the worker's image when absent."""
    client_certificate_secret_ref: CertificateSecretRef | None = None
    """The worker's own certificate, for mutual TLS."""

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
    """One topic that the pool serves, in a consumer group of its own."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
    """What the lane is called in status, metrics and the name of its group."""
    topic: Annotated[
        TopicField,
        Rule("self == oldSelf", "topic: cannot change, its offsets belong to the group; add another lane instead"),
    ]
    """The topic with the tasks."""
    consumer_group: GroupField | None = None
    """Its group; when absent kafka.consumerGroup for the first lane, and the same with -NAME for every other."""
    preference: Annotated[int, Field(ge=0, le=100)] = 0
    """Lanes with a higher one are served first; the others keep a share."""

    rules: ClassVar = (
        Rule(
            "has(self.consumerGroup) == has(oldSelf.consumerGroup)"
            " && (!has(self.consumerGroup) || self.consumerGroup == oldSelf.consumerGroup)",
            "consumerGroup: of a lane cannot change, its offsets would be lost; add another lane instead",
            ".consumerGroup",
        ),
    )


class TopicsSpec(ApiModel):
    """Names of the topics that every lane shares."""

    results: TopicField = _NAMES.results
    """Where every task gets its one answer."""
    progress: TopicField = _NAMES.progress
    """Where the steps of running tasks are told."""
    retry: Annotated[tuple[TopicField, ...], Field(min_length=1, max_length=8, json_schema_extra=SET)] = _NAMES.retry
    """Where tasks wait for their next attempt, shortest delay first."""
    control: TopicField = _NAMES.control
    """Where tasks are cancelled."""
    dead_letters: TopicField = _NAMES.dead_letters
    """Where tasks go that cannot be done."""

    rules: ClassVar = (
        Rule(
            f"{_SHARED_TOPICS}.all(topic, {_SHARED_TOPICS}.exists_one(other, other == topic))",
            "topics: every topic needs a name of its own, or records of one are taken for those of another",
        ),
    )


class TopicLayoutSpec(ApiModel):
    """How topics are created when manageTopics is true; existing ones only ever get more partitions."""

    task_partitions: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Of each lane's topic; a little above the most workers expected, because a worker without a partition idles."""
    event_partitions: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Of the topics for results, progress, retries and dead letters."""
    replication_factor: Annotated[int, Field(ge=1, le=32)] = 3
    """On how many brokers each topic lies."""


class KafkaSpec(ApiModel):
    """Where the tasks come from and the answers go."""

    bootstrap_servers: Annotated[tuple[BootstrapServer, ...], Field(min_length=1, max_length=32, json_schema_extra=SET)]
    """Addresses of some brokers, host:port; the others are found through them."""
    security: SecuritySpec = SecuritySpec()
    """Encryption and credentials."""
    consumer_group: Annotated[
        GroupField,
        Rule("self == oldSelf", "consumerGroup: cannot change, its offsets would be lost; make another pool instead"),
    ] = DEFAULT_CONSUMER_GROUP
    """Group of the first lane; every further lane has a group of this name with -NAME. Cannot change."""
    lanes: Annotated[tuple[LaneSpec, ...], Field(min_length=1, max_length=8, json_schema_extra=map_by("name"))] = (
        LaneSpec(name=STANDARD_LANE.name, topic=STANDARD_LANE.topic),
    )
    """The topics that the pool serves. The first lane keeps its place."""
    topics: TopicsSpec = TopicsSpec()
    """Names of the other topics."""
    manage_topics: bool = False
    """Create the topics that are missing, add partitions to those that have fewer than topicLayout says, and set
    message.timestamp.type=LogAppendTime."""
    topic_layout: TopicLayoutSpec = TopicLayoutSpec()
    """How topics are created when manageTopics is true."""
    offset_retention_days: Annotated[int, Field(ge=1, le=3650)] = 365
    """How long Kafka keeps the offsets of a pool that sleeps at zero."""

    rules: ClassVar = (
        Rule(
            "self.lanes[0].name == oldSelf.lanes[0].name",
            "lanes: the first lane owns consumerGroup and must stay the first; put new lanes after it",
            ".lanes",
        ),
        Rule(
            "self.lanes.all(lane, self.lanes.exists_one(other, other.topic == lane.topic))",
            "lanes: every lane needs a topic of its own, or each task would be done twice",
            ".lanes",
        ),
        Rule(
            f"{_GROUP_OF}.all(group, {_GROUP_OF}.exists_one(other, other == group))",
            "lanes: every lane needs a consumer group of its own; change one of the consumerGroup fields",
            ".lanes",
        ),
        Rule(
            "!self.lanes.exists(lane, lane.topic in [self.topics.results, self.topics.progress, self.topics.control,"
            " self.topics.deadLetters] || lane.topic in self.topics.retry)",
            "lanes: a topic that workers write to cannot be a lane; choose another topic",
            ".lanes",
        ),
    )
