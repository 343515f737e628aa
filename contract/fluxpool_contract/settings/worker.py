"""The settings of the worker, and those parts that the gateway and the command line share."""

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fluxpool_contract.folder_address import SCHEME, folder_of
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.retries import DELAY_PATTERN, retry_delays_seconds, retry_group
from fluxpool_contract.kafka.topics import TopicName, TopicNames
from fluxpool_contract.messages.task import MAX_STEPS, EmbedParameters, Quality
from fluxpool_contract.settings.environment import EnvironmentSettings
from fluxpool_contract.text_rules import (
    S3_URL_PATTERN,
    Credential,
    HttpUrl,
    LineText,
    SecretCredential,
    check_line,
)

DEFAULT_CONSUMER_GROUP: Final = "flux-worker-group"

EXIT_MODEL_LOAD_FAILED: Final = 4
"""Exit code: the model cannot be loaded; the termination message says why. Another start would fail alike."""

MAX_SECONDS: Final = 365 * 86_400
"""No wait is meant to be longer, and clients' milliseconds still fit into 64 bits."""

MAX_INPUT_BYTES: Final = 64 * 1024 * 1024
"""Of a picture on its way from an agent to its engine."""

INPUT_PREFIX_PATTERN: Final = r"_inputs/([A-Za-z0-9][A-Za-z0-9._-]*/)*"
"""Begins as no tenant's name can, so that no prefix of pictures is where images of a tenant are stored."""

GroupId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,255}$")]
Delay = Annotated[str, Field(pattern=DELAY_PATTERN)]


def _with_slash(url: str) -> str:
    return url if url.endswith("/") else url + "/"


def _check_storage(url: str) -> str:
    check_line(url)
    if url.startswith(f"{SCHEME}/"):
        folder_of(url)
    elif not re.fullmatch(S3_URL_PATTERN, url) or ".." in url.split("/"):
        raise ValueError(f"{url!r} must be s3://bucket/prefix/ or file:///absolute/folder/, without ..")
    return _with_slash(url)


HttpBaseUrl = Annotated[HttpUrl, AfterValidator(_with_slash)]


class DType(StrEnum):
    """Number formats a checkpoint can be loaded in."""

    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class ModelDevice(StrEnum):
    """Where the model runs; `auto` takes CUDA when there is one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class ModelOffload(StrEnum):
    """Whether weights are kept in host memory; `auto`: when the GPU has no room for all of them."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class QualitySettings(BaseModel):
    """What tasks get, and what they may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    default: Quality = Quality.EXACT
    """Of tasks that name none: exact or fast."""
    allowed: Annotated[tuple[Quality, ...], Field(min_length=1, max_length=len(Quality))] = (Quality.EXACT,)
    """What tasks may ask for. fast keeps 8-bit copies of the transformer's weights beside the others."""

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Self:
        if self.default not in self.allowed:
            raise ValueError(f"default: {self.default.value} is not in allowed; add it there or choose another")
        return self


class ModelSettings(BaseModel):
    """The checkpoint that a worker serves."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: LineText = "black-forest-labs/FLUX.1-dev"
    """A model id, or the path of a diffusers checkpoint folder."""
    revision: str | None = None
    """Branch, tag or commit of a model id; a commit stays the same."""
    device: ModelDevice = ModelDevice.AUTO
    """auto, cpu or cuda."""
    transformer_dtype: DType = DType.FLOAT16
    """float16, bfloat16 or float32."""
    encoder_dtype: DType = DType.BFLOAT16
    """Of T5, CLIP and the VAE; float16 overflows in T5."""
    offline: bool = False
    """Never ask the hub; fail when files are missing."""
    lora_folder: Path | None = None
    """Folder whose safetensors files are the LoRAs that tasks may name; absent: none."""
    offload: ModelOffload = ModelOffload.AUTO
    """auto, never or always: whether weights stay in host memory and are copied to the GPU block by block."""
    quality: QualitySettings = QualitySettings()
    """What tasks get, and what they may ask for."""


class StorageSettings(BaseModel):
    """Object store for images, and the addresses of its objects."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    url: Annotated[str, AfterValidator(_check_storage)]
    """`s3://bucket/prefix/` or `file:///folder/`; blanks and the like of a folder's name may be percent-encoded."""
    public_base_url: HttpBaseUrl | None = None
    """Address under which the objects themselves are public."""
    endpoint_url: HttpBaseUrl | None = None
    """Of an S3-compatible service other than AWS."""
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    """Of the bucket; absent: the environment's, else us-east-1."""
    access_key_id: Credential | None = None
    """Absent: the credentials of the environment, such as a pod's web identity."""
    secret_access_key: SecretCredential | None = None
    """Required with `access_key_id`."""
    ca_file: Path | None = None
    """PEM file of authorities to trust for `endpoint_url`, beside those of the system."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.access_key_id is None) != (self.secret_access_key is None):
            raise ValueError("secret_access_key: access_key_id and secret_access_key go together")
        return self

    @property
    def folder(self) -> Path | None:
        """The local folder of a `file:///` address."""
        return folder_of(self.url) if self.url.startswith(SCHEME) else None


class ImageSettings(BaseModel):
    """What image files say of themselves, beside their pixels, and which pictures tasks may start from."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    embed_parameters: EmbedParameters = EmbedParameters.NO_PROMPT
    """all, noPrompt or none: the most that a file says of its task. Tasks may ask for less."""
    signing_folder: Path | None = None
    """Folder with `tls.crt` and `tls.key` that files are signed with (C2PA). Absent: they are not signed."""
    input_prefix: Annotated[str, Field(max_length=256, pattern=rf"^{INPUT_PREFIX_PATTERN}$")] = "_inputs/"
    """Folder of the storage with the input images of tasks: `_inputs/` or a folder below it, with a subfolder for each
    tenant, such as `_inputs/default/`. Workers read no other object for a task."""
    input_max_bytes: Annotated[int, Field(ge=1, le=MAX_INPUT_BYTES)] = 32 * 1024 * 1024
    """Maximum size of an input image, as a file in bytes."""
    preview_every_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 4
    """Denoising steps between two previews of a task that asks for previews; 0: none for any task."""


class Lane(BaseModel):
    """A topic that a pool serves in a consumer group of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
    topic: TopicName
    consumer_group: GroupId | None = None
    preference: Annotated[int, Field(ge=0, le=100)] = 0
    """Lanes with a higher preference are served first; the others keep a share."""


STANDARD_LANE: Final = Lane(name="standard", topic=TopicNames().tasks)
VIP_LANE: Final = Lane(name="vip", topic=TopicNames().tasks_vip, preference=10)


def lane_groups(consumer_group: str, lanes: Sequence[Lane]) -> tuple[str, ...]:
    """The consumer group of each lane of a pool: its own, else `consumer_group`, with the name of any further lane.

    The rules of `FluxWorkerPool` say the same in CEL (`fluxpool_operator.api.kafka`).
    """
    return tuple(
        lane.consumer_group or (consumer_group if place == 0 else f"{consumer_group}-{lane.name}")
        for place, lane in enumerate(lanes)
    )


def serving_groups(consumer_group: str, lanes: tuple[Lane, ...], topics: TopicNames) -> dict[str, str]:
    """Each consumer group that takes tasks, with its topic; without `lanes` those of a pool that serves both."""
    served = lanes or (
        STANDARD_LANE.model_copy(update={"topic": topics.tasks}),
        VIP_LANE.model_copy(update={"topic": topics.tasks_vip}),
    )
    return dict(zip(lane_groups(consumer_group, served), (lane.topic for lane in served), strict=True))


def check_lanes(lanes: tuple[Lane, ...], topics: TopicNames, *, groups: Sequence[str]) -> None:
    """Raise `ValueError` when two lanes share a name, a group or a topic, or a lane reads what workers write."""
    for what, values in (
        ("name", [lane.name for lane in lanes]),
        ("consumer_group", groups),
        ("topic", [lane.topic for lane in lanes]),
    ):
        if len(set(values)) != len(values):
            raise ValueError(f"lanes: every lane needs a {what} of its own, got {', '.join(values)}")
    written = topics.written_by_workers
    for lane in lanes:
        if lane.topic in written:
            raise ValueError(
                f"lanes: {lane.topic} is the topic of lane {lane.name} and topics.{written[lane.topic]} as well, "
                "so that workers would take what they write for tasks; choose another topic"
            )


class WorkerSettings(EnvironmentSettings):
    """All settings of a worker, as `FLUXPOOL_*` variables."""

    kafka: KafkaConnection
    storage: StorageSettings
    model: ModelSettings = ModelSettings()
    image: ImageSettings = ImageSettings()
    topics: TopicNames = TopicNames()
    consumer_group: GroupId = DEFAULT_CONSUMER_GROUP
    """Group of the first lane; every further lane adds its name: `flux-worker-group-vip`."""
    lanes: Annotated[tuple[Lane, ...], Field(min_length=1, max_length=8)] = (STANDARD_LANE,)
    """The topics to serve."""
    foreign_tenant_topics: Annotated[tuple[TopicName, ...], Field(max_length=8)] = ()
    """Topics of lanes in which every writer may name the tenant of a task. In others a tenant counts only with the
    proof of a gateway; a task without is of the tenant `default`, in whose folder its images are stored."""
    tenant_secret_file: Path | None = None
    """File with the keys by which gateways prove tenants, one a line; it is read again when it changes. Absent: nothing
    is proven."""
    pool: Annotated[LineText, Field(max_length=253)] = "default"
    """Name of the worker's pool in results and events."""
    worker_name: Annotated[LineText, Field(max_length=253)] | None = None
    """Name in results, events and the ledger; the host name when absent."""
    gateway_url: HttpBaseUrl | None = None
    """When set, image addresses point to the gateway's stable image route."""
    health_host: str = "0.0.0.0"  # noqa: S104 - probes reach a pod by its own address
    """Address that the probes' server listens on."""
    health_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """0 takes any free port."""
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """How often a task is tried before it is dead-lettered; between two attempts it waits on a retry topic."""
    max_crashes: Annotated[int, Field(ge=1, le=10)] = 3
    """How many times an engine or worker may die of a task before it is dead-lettered as `crash-loop`."""
    retry_delays: Annotated[tuple[Delay, ...], Field(max_length=8)] = ()
    """One for each of `topics.retry`, such as `15s,2m`; absent: as the topics' names end, else 15s, 2m, 15m."""
    lane_wait_limit_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 300.0
    """After this wait a lane with a lower preference gets every second task; it gets every fifth anyway."""
    infra_hold_limit_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 3600.0
    """How long a task waits for an object store or broker that is down before the worker exits, its tasks released."""
    task_hard_limit_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 900.0
    """Longest time one generation may take; its engine is killed then, and the task tried again."""
    step_soft_limit_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 60.0
    """After how long without a denoising step a running generation is reported as stalled."""
    step_hard_limit_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 300.0
    """After how long without a denoising step the engine counts as hung and is killed."""
    engine_load_limit_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 3600.0
    """How long loading the model may take, its download from a hub included; the engine is killed then, and the worker
    exits after the second time in a row."""
    session_timeout_seconds: Annotated[float, Field(ge=1, le=MAX_SECONDS)] = 45.0
    """Consumer `session.timeout.ms`; a worker whose event loop is blocked exits before that."""
    rebalance_timeout_seconds: Annotated[float, Field(ge=1, le=MAX_SECONDS)] = 30.0
    """How long a rebalance waits for a member to rejoin; above `revoke_wait_seconds` and the time of a commit."""
    revoke_wait_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 3.0
    """How long a rebalance waits for tasks that are nearly done."""
    drain_grace_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 270.0
    """Time from SIGTERM until the running task is stopped at its next step; keep it 15 s below the pod's own grace."""
    offset_retention_days: Annotated[float, Field(gt=0, le=3650)] = 365.0
    """How long the broker keeps a committed offset; a pool may sleep at zero longer than the broker's own default."""
    engine_command: tuple[str, ...] = ()
    """Program of the engine process; absent: this package's own."""

    @model_validator(mode="after")
    def _lanes_differ(self) -> Self:
        check_lanes(self.lanes, self.topics, groups=[*self._lane_groups, self.retry_group])
        return self

    @model_validator(mode="after")
    def _trusts_lanes(self) -> Self:
        lanes = [lane.topic for lane in self.lanes]
        for topic in self.foreign_tenant_topics:
            if topic not in lanes:
                raise ValueError(
                    f"foreign_tenant_topics: {topic} is not the topic of a lane; choose from {', '.join(lanes)}"
                )
        return self

    @model_validator(mode="after")
    def _retries_fit(self) -> Self:
        delays, topics = self.retry_delays, self.topics.retry
        if delays and len(delays) != len(topics):
            raise ValueError(
                f"retry_delays: needs one delay for each of the {len(topics)} retry topics, got {len(delays)}; "
                "leave it out to take them from the topics' names"
            )
        return self

    @property
    def retry_delays_seconds(self) -> tuple[float, ...]:
        """The delay of each of `topics.retry`."""
        return retry_delays_seconds(self.topics.retry, self.retry_delays)

    def group_of(self, lane: Lane) -> str:
        """The consumer group of one of the lanes."""
        return self._lane_groups[self.lanes.index(lane)]

    @property
    def retry_group(self) -> str:
        """The consumer group in which the pool keeps its offsets of the retry topics."""
        return retry_group(self._lane_groups[0])

    @property
    def _lane_groups(self) -> tuple[str, ...]:
        return lane_groups(self.consumer_group, self.lanes)
