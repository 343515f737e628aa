"""What agent and engine say to each other over their socket pair.

Plain frozen values and their framing; it knows neither torch nor asyncio, so both processes import it. A frame is a
4-byte big-endian length and a pickle: both ends are the same program started from the same files, and nobody else
holds an end of the socket.
"""

import pickle
import struct
from dataclasses import dataclass, field
from enum import StrEnum

FRAME_HEADER = struct.Struct("!I")


class Device(StrEnum):
    """Where the model runs; `auto` takes CUDA when torch sees it, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


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
    output_format: str = "png"
    """png, jpeg or webp."""
    embedded: dict[str, str] = field(default_factory=dict)
    """Further text entries for the image file, such as request_id."""
    low_memory: bool = False
    """Draw in the way that needs the least memory, at the cost of time; for a job that ran out of it before."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """One finished image file."""

    index: int
    seed: int
    width: int
    height: int
    format: str
    content_type: str
    payload: bytes


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

    model: str
    """Name and revision as results report it."""
    device: str
    load_seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """The model could not be loaded; the engine exits after this."""

    message: str
    stack: str


@dataclass(frozen=True, slots=True)
class Started:
    """The device begins this job."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step is done; also the sign of life that a watchdog waits for."""

    job_id: int
    step: int
    total_steps: int


@dataclass(frozen=True, slots=True)
class DeviceFree:
    """The device is done with this job; its images are still being encoded."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Generated:
    """The job's images, encoded, and where the time went."""

    job_id: int
    images: tuple[EncodedImage, ...]
    timings_ms: dict[str, float]
    """text_encode, denoise, vae, image_encode; milliseconds."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without images; the engine itself goes on."""

    job_id: int
    kind: FailureKind
    message: str
    stack: str = ""


ToEngine = EngineSpec | Generate | Cancel | Shutdown
FromEngine = Ready | LoadFailed | Started | Step | DeviceFree | Generated | Failed


def encode_frame(message: ToEngine | FromEngine) -> bytes:
    """The bytes of one message on the socket."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return FRAME_HEADER.pack(len(body)) + body


def decode_body(body: bytes) -> ToEngine | FromEngine:
    """The message in a frame's body (without its length)."""
    message: ToEngine | FromEngine = pickle.loads(body)  # noqa: S301 - written by our own other half, see the module's docstring
    return message
