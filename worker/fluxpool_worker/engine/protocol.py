"""What agent and engine say to each other over their socket pair.

Plain frozen values and their framing; it knows neither torch nor asyncio, so both processes import it. A frame is a
4-byte big-endian length, a head of that many bytes in JSON, and the image files that the head announces, as they are:
those of a job's images, or the one that a job starts from.

The engine parses models and prompts of others, and the agent holds the credentials: what arrives is only ever data,
checked field by field, and never larger than the limits below.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError

from fluxpool_contract.messages import DEFAULT_STRENGTH, EmbedParameters, Quality, steps_to_run
from fluxpool_worker.marks import DigitalSourceType

FRAME_HEADER: Final = struct.Struct("!I")
MAX_HEAD_BYTES: Final = 4 * 1024 * 1024
"""Two prompts of 10,000 characters, or a failure's stack, are well below."""
MAX_IMAGE_BYTES: Final = 64 * 1024 * 1024
"""An uncompressed image of the largest size takes 12 MiB."""
MAX_IMAGES: Final = 64

Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ShortText = Annotated[str, Field(max_length=1_000)]
LongText = Annotated[str, Field(max_length=100_000)]


class ProtocolError(Exception):
    """The other end sent something that is no message for this one."""


class Device(StrEnum):
    """Where the model runs; `auto` takes CUDA when torch sees it, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class EnginePath(StrEnum):
    """How images are computed; chosen by what the device and the checkpoint allow."""

    FUSED = "fused"
    """The fused forward, in the checkpoint's precision."""
    FUSED_FAST = "fused-fast"
    """The fused forward, with 8-bit products and a schedule of steps that are left out."""
    DIFFUSERS = "diffusers"
    """diffusers' own modules, which cover everything."""
    DIFFUSERS_OFFLOADED = "diffusers-offloaded"
    """The same with weights in host memory."""


class Offload(StrEnum):
    """Whether weights are kept in host memory; `auto`: when the GPU has no room for all of them."""

    AUTO = "auto"
    NEVER = "never"
    ALWAYS = "always"


class FailureKind(StrEnum):
    """Why a job ended without images."""

    INVALID = "invalid"
    REJECTED = "rejected"
    OUT_OF_MEMORY = "out-of-memory"
    NOT_FINITE = "not-finite"
    DEVICE_LOST = "device-lost"
    """The device answers no more; the engine exits after this, and its process's end is what frees the device."""
    CANCELED = "canceled"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Which checkpoint to load and how; the first message an engine receives."""

    model: str
    """A diffusers checkpoint folder, or a model id."""
    revision: str | None = None
    device: Device = Device.AUTO
    transformer_dtype: str = "float16"
    encoder_dtype: str = "bfloat16"
    """dtype of T5, CLIP and the VAE."""
    offline: bool = False
    """Never ask a hub; fail at once when files are missing."""
    lora_folder: str | None = None
    """Its safetensors files are the LoRAs that jobs may name."""
    offload: Offload = Offload.AUTO
    qualities: tuple[Quality, ...] = (Quality.EXACT,)
    """What jobs may ask for."""
    default_quality: Quality = Quality.EXACT
    """Quality of jobs whose task names none; an engine that cannot compute it does not start."""


@dataclass(frozen=True, slots=True)
class AppliedLora:
    """A LoRA of the pool's folder, by name, and how strongly it acts."""

    name: str
    scale: float


@dataclass(frozen=True, slots=True)
class GenerationInputs:
    """The parameters of one task after validation, with every default filled in."""

    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    n: int = 1
    """How many images; image i uses seed + i."""
    negative_prompt: str | None = None
    guidance: float = 3.5
    true_cfg_scale: float = 1.0
    loras: tuple[AppliedLora, ...] = ()
    output_format: str = "png"
    """png, jpeg or webp."""
    quality: Quality = Quality.EXACT
    embed_parameters: EmbedParameters = EmbedParameters.NO_PROMPT
    """What the image file says of these parameters."""
    embedded: dict[str, str] = field(default_factory=dict)
    """Further text entries for the image file, such as request_id; those, too, only as `embed_parameters` allows."""
    low_memory: bool = False
    """Generate in the way that needs the least memory, at the cost of time; for a job that ran out of it before."""
    image: bytes | None = field(default=None, repr=False)
    """The file to start from instead of noise alone, as a stranger wrote it."""
    strength: float = DEFAULT_STRENGTH
    """How much of `image` changes."""
    preview_every_steps: int = 0
    """Steps between two previews; 0: none."""

    @property
    def steps_to_run(self) -> int:
        """Steps of each image that are computed."""
        return self.steps if self.image is None else steps_to_run(self.steps, strength=self.strength)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One finished image file."""

    index: Count
    seed: Count
    width: Count
    height: Count
    format: ShortText
    content_type: ShortText
    payload: bytes
    source_type: DigitalSourceType | None = None
    """What the file's XMP says of the picture; None when it has none."""


# agent -> engine


@dataclass(frozen=True, slots=True)
class Generate:
    """Queue one job; jobs run in the order they were sent."""

    job_id: int
    inputs: GenerationInputs


@dataclass(frozen=True, slots=True)
class Cancel:
    """Drop a queued job, or stop a running one at its next step; it then ends as `Failed(CANCELED)`."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Finish nothing more and exit 0."""


# engine -> agent


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and warm."""

    model: ShortText
    """Name and revision as results report it."""
    device: ShortText
    load_seconds: Seconds
    family: ShortText = ""
    """A name of `FAMILIES`."""
    phase_seconds: Annotated[dict[ShortText, Seconds], Field(max_length=16)] = field(default_factory=dict)
    """How long each phase of the start took, by the names of `StartPhases`."""


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model could not be loaded; the engine exits after this."""

    message: LongText
    stack: LongText


@dataclass(frozen=True, slots=True)
class Started:
    """The device begins this job."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step is done; also the sign of life that a watchdog waits for."""

    job_id: int
    step: Count
    total_steps: Count


@dataclass(frozen=True, slots=True)
class Preview:
    """What an image looks like after a step; may come later than the job's end, or not at all."""

    job_id: int
    step: Count
    """Of all images, as in `Step`."""
    total_steps: Count
    index: Count
    """Number of the image, from 0."""
    payload: bytes = field(repr=False)
    """A WebP file."""


@dataclass(frozen=True, slots=True)
class DeviceFree:
    """The device is done with this job; its images are still being encoded."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Generated:
    """The job's images, encoded, and where the time went."""

    job_id: int
    images: tuple[EncodedImage, ...]
    timings_ms: Annotated[dict[ShortText, Milliseconds], Field(max_length=32)]
    """text_encode, denoise, vae, image_encode; milliseconds."""
    warnings: Annotated[tuple[ShortText, ...], Field(max_length=32)] = ()
    path: EnginePath | None = None
    """How they were computed; None when the generator does not say."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without images; the engine continues."""

    job_id: int
    kind: FailureKind
    message: LongText
    stack: LongText = ""


ToEngine = EngineSpec | Generate | Cancel | Shutdown
FromEngine = Ready | LoadFailed | Started | Step | Preview | DeviceFree | Generated | Failed


_TO_ENGINE: Final = (EngineSpec, Generate, Cancel, Shutdown)
_FROM_ENGINE: Final = (Ready, LoadFailed, Started, Step, Preview, DeviceFree, Generated, Failed)
_ADAPTERS: Final[dict[str, TypeAdapter[Any]]] = {
    kind.__name__: TypeAdapter(kind) for kind in (*_TO_ENGINE, *_FROM_ENGINE)
}


@dataclass(frozen=True, slots=True)
class Head:
    """A message whose image files are still to come."""

    message: ToEngine | FromEngine
    payload_bytes: tuple[int, ...] = ()
    """Size of each file, in the order in which they follow."""

    def complete(self, payloads: Sequence[bytes]) -> ToEngine | FromEngine:
        """The message with its files."""
        match self.message:
            case Generated() as generated:
                images = zip(generated.images, payloads, strict=True)
                return replace(generated, images=tuple(replace(image, payload=payload) for image, payload in images))
            case Preview() as preview:
                (file,) = payloads
                return replace(preview, payload=file)
            case Generate(inputs=inputs) as generate if inputs.image is not None:
                (image,) = payloads
                return replace(generate, inputs=replace(inputs, image=image))
            case _:
                return self.message


def encode_frame(message: ToEngine | FromEngine) -> list[bytes]:
    """The bytes of one message on the socket, in pieces: image files are not copied."""
    payloads = _payloads(message)
    head = {"type": type(message).__name__, "payload_bytes": list(map(len, payloads)), "message": _plain(message)}
    # A path or an error may hold bytes that were no UTF-8; they are not worth a message.
    encoded = json.dumps(head, ensure_ascii=False).encode("utf-8", "replace")
    return [FRAME_HEADER.pack(len(encoded)) + encoded, *payloads]


def _payloads(message: ToEngine | FromEngine) -> list[bytes]:
    match message:
        case Generated(images=images):
            return [image.payload for image in images]
        case Preview(payload=payload):
            return [payload]
        case Generate(inputs=GenerationInputs(image=bytes() as image)):
            return [image]
        case _:
            return []


def head_bytes(header: bytes) -> int:
    """Length of the head that a frame's first bytes announce; raises `ProtocolError` when it is too large."""
    (length,) = FRAME_HEADER.unpack(header)
    if length > MAX_HEAD_BYTES:
        raise ProtocolError(f"a head of {length} bytes was announced; at most {MAX_HEAD_BYTES} are allowed")
    return int(length)


def head_for_agent(encoded: bytes) -> Head:
    """The head of a frame that an engine sent; raises `ProtocolError`."""
    return _decode_head(encoded, _FROM_ENGINE)


def head_for_engine(encoded: bytes) -> Head:
    """The head of a frame that an agent sent; raises `ProtocolError`."""
    return _decode_head(encoded, _TO_ENGINE)


def _decode_head(encoded: bytes, kinds: tuple[type, ...]) -> Head:
    try:
        head = json.loads(encoded)
        kind, sizes, body = head["type"], head["payload_bytes"], head["message"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ProtocolError(f"a head that is no message: {error!r}") from error
    if kind not in [known.__name__ for known in kinds]:
        raise ProtocolError(f"{str(kind)[:100]!r} is no message for this end of the socket")
    try:
        message = _ADAPTERS[kind].validate_python(body)
    except ValidationError as error:
        raise ProtocolError(f"{kind}: {error.errors(include_input=False, include_url=False)[:3]}") from error
    images = len(_payloads(message))
    is_sound = isinstance(sizes, list) and len(sizes) == images <= MAX_IMAGES
    if not is_sound or not all(isinstance(size, int) and 0 <= size <= MAX_IMAGE_BYTES for size in sizes):
        raise ProtocolError(f"{kind}: announces {str(sizes)[:100]} bytes for {images} images")
    return Head(message, tuple(sizes))


def _plain(value: Any) -> Any:
    """A message as JSON's own kinds of values; bytes are left out."""
    match value:
        case bytes():
            return ""
        case tuple() | list():
            return [_plain(item) for item in value]
        case _ if hasattr(value, "__dataclass_fields__"):
            return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
        case _:
            return value
