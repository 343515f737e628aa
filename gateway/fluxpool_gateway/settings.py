"""Settings of the gateway, read from `FLUXPOOL_*` variables."""

import ipaddress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fluxpool_contract.kafka import KafkaConnection, TopicNames
from fluxpool_contract.messages import Quality, check_tenant
from fluxpool_contract.settings import (
    DEFAULT_CONSUMER_GROUP,
    EnvironmentSettings,
    GroupId,
    HttpBaseUrl,
    Lane,
    StorageSettings,
    check_lanes,
    serving_groups,
)
from fluxpool_contract.text_rules import MAX_URL_CHARACTERS, SecretCredential, check_http_url
from fluxpool_gateway.identity.api_key import KeyScope
from fluxpool_gateway.presets.preset import MAX_PRESETS, Preset, PresetName, check_presets

EXIT_CONFIGURATION: Final = 2
"""Exit status of a program whose settings are wrong: starting it again does not help."""


class Authentication(StrEnum):
    """Who may use the gateway."""

    KEYS = "keys"
    """Holders of an API key, or of a token of the issuer where one is set."""
    NONE_ON_LOOPBACK = "none-on-loopback"
    """Every user of this machine."""
    NONE_FOR_ANYONE_WHO_CAN_CONNECT = "none-for-anyone-who-can-connect"


EVERY_TENANT: Final = "*"


def _check_limited(name: str) -> str:
    return name if name == EVERY_TENANT else check_tenant(name)


SubmitLimit = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,6}/(second|minute|hour|day)$")]
"""Tasks in a time, as 50/second."""


class TenantLimits(BaseModel):
    """What a tenant may use of the gateway."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    submit: SubmitLimit | None = None
    """Tasks that it may submit in a time: 50/second, or 3000/minute for longer bursts."""
    outstanding: Annotated[int, Field(ge=1, le=30_000)] | None = None
    """Tasks of it that may be unfinished."""


def _check_issuer(url: str) -> str:
    parts = urlsplit(check_http_url(url))
    if parts.scheme != "https" and not _is_loopback(parts.hostname or ""):
        raise ValueError("must begin with https://: a server that answers in its place could make tokens")
    return url


_IssuerUrl = Annotated[str, Field(max_length=MAX_URL_CHARACTERS), AfterValidator(_check_issuer)]
_ClaimName = Annotated[str, Field(min_length=1, max_length=200)]


class OidcSettings(BaseModel):
    """Whose bearer tokens are accepted beside API keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    issuer: _IssuerUrl | None = None
    """OpenID Connect issuer whose tokens are accepted, as the claim `iss` and its discovery document have it."""
    audience: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Required with an issuer: what the claim `aud` of a token has to name. Without it tokens for other services would
    be accepted."""
    jwks_url: _IssuerUrl | None = None
    """Where the issuer's public keys are; found by discovery when absent."""
    ca_file: Path | None = None
    """PEM file of authorities trusted for these addresses, besides the system's."""
    tenant_claim: _ClaimName = "tenant"
    """Claim that names the tenant; a path has dots, such as `kubernetes.io.namespace`."""
    scopes_claim: _ClaimName = "scope"
    """Claim with the scopes: text with blanks, or a list; a path has dots, such as `realm_access.roles`."""
    scope_prefix: Annotated[str, Field(min_length=1, max_length=200)] = "fluxpool:"
    """What the scopes of this gateway begin with, as in `fluxpool:submit`; `fluxpool:priority:vip` allows that
    priority."""
    default_scopes: Annotated[tuple[KeyScope, ...], Field(max_length=len(KeyScope))] = ()
    """Scopes of a token that has no scopes claim."""
    client_id: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """Client at the issuer for people who log in to the page (authorization code with PKCE); register the address
    `ui/login/callback` below `public_url` for it. Absent: the page asks for an API key."""
    client_secret: SecretCredential | None = None
    """Secret of the client; absent for a public one."""
    login_scope: Annotated[str, Field(pattern=r"^([!-~]+ )*openid( [!-~]+)*$", max_length=1000)] = "openid"
    """Scopes asked for at log in, with blanks between them: `openid`, and those without which the issuer leaves out the
    tenant or the scopes of this gateway."""
    session_seconds: Annotated[int, Field(ge=60, le=86_400)] = 3600
    """How long a log in lasts. What the issuer takes back counts until then."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        if self.issuer is None and changed:
            raise ValueError("issuer: is required with the other settings of tokens")
        if self.issuer is not None and self.audience is None:
            raise ValueError(
                "audience: is required with an issuer; name what its tokens for this gateway have as `aud`"
            )
        if self.client_secret is not None and self.client_id is None:
            raise ValueError("client_id: is required with client_secret")
        return self


def _check_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("must be a network such as 10.20.0.0/16, or fd00:20::/64") from None
    return text


class WebhookSettings(BaseModel):
    """Where webhooks may be sent to. Public addresses by https are always allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    allow_http: bool = False
    """Also to `http://` URLs, whose messages can be read on their way."""
    allowed_networks: Annotated[tuple[Annotated[str, AfterValidator(_check_network)], ...], Field(max_length=100)] = ()
    """Networks that are not public but may be sent to, such as `["10.20.0.0/16"]` for receivers in the cluster. Every
    tenant can send requests into them."""
    key_file: Path | None = None
    """File with the keys that the secrets of endpoints are encrypted with, one a line: the first one encrypts, all of
    them decrypt. Each is 32 random bytes in URL-safe Base64. Absent: the secrets are stored as they are."""

    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The allowed networks."""
        return tuple(map(ipaddress.ip_network, self.allowed_networks))


def _check_postgres(url: SecretStr) -> SecretStr:
    parts = urlsplit(url.get_secret_value())
    if parts.scheme not in {"postgresql", "postgres"} or parts.path.strip("/") == "":
        raise ValueError("must be postgresql://user:password@host:port/database")
    login, at, hosts = parts.netloc.rpartition("@")
    if "," in hosts:
        # As libpq has several hosts; SQLAlchemy takes them as parameters.
        several = "&".join(f"host={host}" for host in hosts.split(","))
        query = f"{several}&{parts.query}" if parts.query else several
        return SecretStr(f"postgresql://{login}{at}{parts.path}?{query}")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError("has a port that is no number; a password with / ? # @ must be percent-encoded") from None
    return SecretStr(f"postgresql{url.get_secret_value().removeprefix(parts.scheme)}")


PostgresUrl = Annotated[SecretCredential, AfterValidator(_check_postgres)]


class GatewaySettings(EnvironmentSettings):
    """Settings of one gateway: of its server and of its projector alike."""

    kafka: KafkaConnection
    storage: StorageSettings
    """Where the workers store images; the gateway reads and deletes."""
    image_endpoint_url: HttpBaseUrl | None = None
    """Address of the S3 service as clients reach it: a request for an image is answered with a redirect to a URL there
    that is signed for 15 minutes. Absent: with the bytes, through the gateway."""
    topics: TopicNames = TopicNames()
    consumer_group: GroupId = DEFAULT_CONSUMER_GROUP
    """The workers' group on the standard topic; a new task is produced to a partition of its least loaded member."""
    lanes: Annotated[tuple[Lane, ...], Field(max_length=8)] = ()
    """The workers' lanes when they differ from a standard one and a vip one; only topics and groups are looked at."""
    qualities: Annotated[tuple[Quality, ...], Field(max_length=len(Quality))] = ()
    """Qualities that the pools allow; a request for another one is refused. Absent: the workers decide, and a task that
    they refuse is dead-lettered."""
    database_url: PostgresUrl | None = None
    """PostgreSQL database of the task store, the API keys and what limits count, for several replicas of the gateway:
    `postgresql://user:password@host:5432/database?sslmode=verify-full`, with the parameters of libpq. PostgreSQL 13 or
    later; a proxy between may pool sessions, not transactions."""
    database_file: Annotated[Path | None, Field(validate_default=True)] = None
    """SQLite file of the task store, for one gateway; required without `database_url`. A projection of Kafka: when it
    is deleted it is built again."""
    listen_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    listen_port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """0 takes any free port; `address_file` then says which."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Server processes that share the listening socket; about one for each core. Past 1 uvicorn supervises them."""
    max_connections: Annotated[int, Field(ge=1, le=65_535)] = 2048
    """Connections that one server process keeps open; further ones are answered 503."""
    event_streams: Annotated[int, Field(ge=0, le=65_535)] = 1024
    """Event streams that one server process sends at once; further ones are answered 429. Fewer than `max_connections`,
    or they leave none for other requests."""
    event_streams_of_tenant: Annotated[int, Field(ge=0, le=65_535)] = 128
    """Of one tenant."""
    produce_deadline_seconds: Annotated[float, Field(ge=0.1, le=60)] = 3.0
    """Longest wait for the broker's acknowledgement; past it the answer is 503 and the outcome unknown."""
    public_url: HttpBaseUrl | None = None
    """Address under which clients reach the gateway; the `Host` header of each request when absent."""
    authentication: Authentication | None = None
    """API keys, or in words that there are none. Absent: `none-on-loopback` where the gateway listens on a loopback
    address and has neither a bootstrap key nor an issuer, else `keys`."""
    bootstrap_key_file: Path | None = None
    """File with the first key, which has every scope; added when the gateway starts, unless the keys have it already.
    Without it the gateway starts only where another key or an issuer's token is accepted."""
    oidc: OidcSettings = OidcSettings()
    keys_file: Path | None = None
    """SQLite file of the API keys, hashed. Nothing builds it again: back it up. Absent: `api-keys.db` beside the
    database file."""
    webhooks: WebhookSettings = WebhookSettings()
    webhooks_file: Path | None = None
    """SQLite file of the endpoints of webhooks, with their secrets, and of their deliveries. Nothing builds it again:
    back it up. Absent: `webhooks.db` beside the database file."""
    foreign_tenant_topics: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    """Topics in which every writer may name the tenant of a task. In others a tenant counts only with the proof of a
    gateway; a task without is of the tenant `default`. Workers have the setting, too."""
    tenant_secret_file: Path | None = None
    """File with the keys that gateways and workers share, one a line; the first proves the tenants of tasks, all are
    accepted. It is read again when it changes. Absent: a secret beside the API keys, which no worker has, so that
    workers store the images of every tenant in the folder of `default`."""
    tenant_limits: Annotated[
        dict[Annotated[str, AfterValidator(_check_limited)], TenantLimits], Field(max_length=1000)
    ] = Field(default_factory=dict)
    """Limits by tenant, each as `{"submit": "50/second", "outstanding": 1000}`; those of `*` are for every tenant that
    is not named. They hold over all processes of the gateway. Without keys every task is of the tenant `default`."""
    presets: Annotated[dict[PresetName, Preset], Field(max_length=MAX_PRESETS)] = Field(default_factory=dict)
    """Parameters that a request names by `preset`, each as `{"steps": 8, "quality": "fast"}`: steps, guidance,
    true_cfg_scale, quality, loras. With `preset: auto` a request gets the one that people are likely to prefer."""
    preset_exploration: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the requests with `preset: auto` that every preset gets at least, so that it goes on being judged."""
    address_file: Path | None = None
    """File that gets the gateway's URL, whole or not at all, once it listens."""

    @field_validator("database_file")
    @classmethod
    def _has_one_database(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        # A URL that was refused is missing here, and has its own error.
        if "database_url" not in info.data:
            return file
        if (file is None) == (info.data["database_url"] is None):
            raise ValueError(
                "set it, or database_url for several replicas"
                if file is None
                else "is not used with database_url; remove one of them"
            )
        return file

    @model_validator(mode="after")
    def _keys_are_somewhere(self) -> Self:
        if self.database_url is not None and self.keys_file is not None:
            raise ValueError("keys_file: is not used with database_url, which has the keys; remove it")
        if self.database_url is not None and self.webhooks_file is not None:
            raise ValueError("webhooks_file: is not used with database_url, which has the webhooks; remove it")
        return self

    @model_validator(mode="after")
    def _lanes_differ(self) -> Self:
        check_lanes(self.lanes, self.topics, groups=list(self.groups()) if self.lanes else [])
        return self

    @model_validator(mode="after")
    def _signs_for_a_service(self) -> Self:
        if self.image_endpoint_url is not None and self.storage.folder is not None:
            raise ValueError("image_endpoint_url: a folder has no signed URLs; remove it, or use s3:// storage")
        return self

    @model_validator(mode="after")
    def _authenticates(self) -> Self:
        if self.authentication is Authentication.NONE_ON_LOOPBACK and not _is_loopback(self.listen_host):
            raise ValueError(
                f"authentication: {self.listen_host} is not a loopback address; use keys, or "
                f"{Authentication.NONE_FOR_ANYONE_WHO_CAN_CONNECT} to let everyone who can connect use the gateway"
            )
        if self.bootstrap_key_file is not None and self.authentication not in {None, Authentication.KEYS}:
            raise ValueError("bootstrap_key_file: is not used without authentication by keys; remove it")
        if self.oidc.issuer is not None and self.authentication not in {None, Authentication.KEYS}:
            raise ValueError(
                "oidc: is not used without authentication by keys; remove it, or set authentication to keys"
            )
        return self

    @model_validator(mode="after")
    def _presets_leave_a_choice(self) -> Self:
        check_presets(self.presets, exploration=self.preset_exploration)
        return self

    @model_validator(mode="after")
    def _trusts_topics_it_reads(self) -> Self:
        topics = self.topics
        read = (topics.tasks, topics.tasks_vip, topics.results, topics.progress, topics.feedback)
        for topic in self.foreign_tenant_topics:
            if topic not in read:
                raise ValueError(f"foreign_tenant_topics: {topic} is not read here; choose from {', '.join(read)}")
        return self

    def needs_keys(self) -> bool:
        """Whether requests need an API key or a token."""
        if self.authentication is not None:
            return self.authentication is Authentication.KEYS
        named = self.bootstrap_key_file is not None or self.oidc.issuer is not None
        return named or not _is_loopback(self.listen_host)

    def task_store_file(self) -> Path:
        """The SQLite file of the task store; only without `database_url`."""
        assert self.database_file is not None  # noqa: S101 - validated
        return self.database_file

    def key_store_file(self) -> Path:
        """The SQLite file of the API keys; only without `database_url`."""
        # Not named after the database file: that one may be deleted with all that begins with its name.
        return self.keys_file or self.task_store_file().with_name("api-keys.db")

    def key_store(self) -> Path | str:
        """Where the API keys are: a file, or the address of a database."""
        return self.key_store_file() if self.database_url is None else self.database_url.get_secret_value()

    def webhook_store_file(self) -> Path:
        """The SQLite file of the webhooks; only without `database_url`."""
        return self.webhooks_file or self.task_store_file().with_name("webhooks.db")

    def webhook_store(self) -> Path | str:
        """Where the webhooks are: a file, or the address of a database."""
        return self.webhook_store_file() if self.database_url is None else self.database_url.get_secret_value()

    def groups(self) -> dict[str, str]:
        """Each consumer group of the workers with the topic it takes tasks from."""
        return serving_groups(self.consumer_group, self.lanes, self.topics)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
