"""The task: one request for images, as it travels through Kafka.

Only `request_id` and `prompt` are required. Readers keep fields they do not know, so that a newer producer can speak to
an older worker; every worker enforces the limits here, whichever producer wrote the record.
"""

import re
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fluxpool_contract.bounds import MAX_OBJECT_KEY_BYTES
from fluxpool_contract.messages.webhook import TaskWebhook

MAX_PROMPT_CHARACTERS = 10_000
"""T5 reads 512 tokens, about 2,500 characters; the rest of the room is for languages with long encodings."""

SIZE_MULTIPLE_PIXELS = 16
"""The VAE halves three times and the transformer packs 2x2 patches: 8 * 2."""

MIN_SIDE_PIXELS = 64
MAX_SIDE_PIXELS = 2048
MAX_STEPS = 100
MAX_IMAGES = 8
MAX_SEED = 2**32 - 1
MAX_METADATA_ENTRIES = 16
MAX_GROUP_CHARACTERS = 64
MAX_LORAS = 4
MAX_LORA_SCALE = 2.0
LORA_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""A file's name without `.safetensors`; it names no other folder."""
PRESET_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
AUTO_PRESET = "auto"
"""In place of a preset's name: the gateway chooses one."""
PRESET_FIELDS = frozenset({"steps", "guidance", "true_cfg_scale", "quality", "loras"})
"""What a preset may set."""
DEFAULT_STRENGTH = 0.6
"""diffusers' own default for image-to-image."""
MAX_TASK_BYTES = 64 * 1024
"""Largest task value; a prompt and a negative prompt of full length in a four-byte script stay below twice this, and
nothing legitimate comes near it."""

_USUAL_WORK = 1024 * 1024 * 28

REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""Ids become object keys and URL segments, hence the unreserved characters of RFC 3986 section 2.3; without `~`, which
marks the folder of a replay."""


class OutputFormat(StrEnum):
    """File format of the images."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def extension(self) -> str:
        """File name extension, without the dot."""
        return "jpg" if self is OutputFormat.JPEG else self.value

    @property
    def content_type(self) -> str:
        """Media type."""
        return f"image/{self.value}"


class Quality(StrEnum):
    """How exactly the images follow the model."""

    EXACT = "exact"
    """Every step is computed in the checkpoint's precision."""
    FAST = "fast"
    """Lossy: 8-bit matrix products, and some steps reuse the one before."""


class EmbedParameters(StrEnum):
    """Parameters of the task that are embedded in its image files, where every recipient can read them."""

    ALL = "all"
    NO_PROMPT = "noPrompt"
    """All but the prompt and the negative prompt."""
    NONE = "none"

    def within(self, limit: "EmbedParameters") -> "EmbedParameters":
        """This, or the limit where that says less."""
        says_most_first = list(EmbedParameters)
        return max(self, limit, key=says_most_first.index)


def check_request_id(value: str) -> str:
    """The id itself; raises `ValueError` with the rule when it does not fit."""
    if not REQUEST_ID.fullmatch(value):
        raise ValueError(
            "must be 1 to 128 characters out of A-Z a-z 0-9 . _ - and begin with a letter or digit "
            "(a UUID or req_20250405_flux_001, for example)"
        )
    return value


def check_group_id(value: str) -> str:
    """The id itself; raises `ValueError` with the rule when it does not fit."""
    if len(value) > MAX_GROUP_CHARACTERS or not REQUEST_ID.fullmatch(value):
        raise ValueError(
            f"must be 1 to {MAX_GROUP_CHARACTERS} characters out of A-Z a-z 0-9 . _ - and begin with a letter or digit"
        )
    return value


def _check_side(value: int) -> int:
    if value % SIZE_MULTIPLE_PIXELS:
        lower = value - value % SIZE_MULTIPLE_PIXELS
        choices = [side for side in (lower, lower + SIZE_MULTIPLE_PIXELS) if MIN_SIDE_PIXELS <= side <= MAX_SIDE_PIXELS]
        nearest = " or ".join(map(str, choices))
        raise ValueError(f"{value} is not a multiple of {SIZE_MULTIPLE_PIXELS}; the nearest legal sizes are {nearest}")
    return value


def _check_text(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the NUL character")
    return value


def _check_prompt(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return _check_text(value)


SidePixels = Annotated[int, Field(ge=MIN_SIDE_PIXELS, le=MAX_SIDE_PIXELS), AfterValidator(_check_side)]
MetadataKey = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_check_text)]
MetadataValue = Annotated[str, Field(max_length=512), AfterValidator(_check_text)]
RequestId = Annotated[
    str, Field(min_length=1, max_length=128, description="Identity of the task."), AfterValidator(check_request_id)
]


def _check_entry_count(value: object) -> object:
    """Before the entries themselves: each of 11,000 bad ones would be a problem to explain, half a second of work."""
    if isinstance(value, dict) and len(value) > MAX_METADATA_ENTRIES:
        raise ValueError(f"must have at most {MAX_METADATA_ENTRIES} entries")
    return value


def _check_image(address: str) -> str:
    """The form alone; which store and which folder of it is the pool's choice (`fluxpool_transport.storage`)."""
    scheme, separator, path = address.rpartition("://")
    if separator and scheme not in {"s3", "file"}:
        raise ValueError(
            f"{scheme[:16]!r} is no scheme of the pool's storage, which alone is read; put the picture there and give "
            "its key, such as _inputs/default/cat.png"
        )
    if scheme == "file":
        path = path.removeprefix("/")
    if not path.isprintable() or any(part in {"", ".", ".."} for part in path.split("/")):
        raise ValueError(
            "must be the key of an object in the pool's storage, such as _inputs/default/cat.png, or its address, "
            "without empty, . or .. segments and without control characters"
        )
    return address


def steps_to_run(steps: int, *, strength: float) -> int:
    """How many of `steps` are run from a picture: diffusers' own arithmetic, and at least one."""
    skipped = int(max(steps - min(steps * strength, steps), 0))
    return max(steps - skipped, 1)


class TaskLora(BaseModel):
    """A LoRA of the pool, and how strongly it acts."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    name: Annotated[str, Field(pattern=LORA_NAME_PATTERN)]
    """Of a file in the pool's LoRA folder, without `.safetensors`."""
    scale: Annotated[float, Field(ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE)] = 1.0
    """Factor of its effect."""


def _check_loras(loras: tuple[TaskLora, ...]) -> tuple[TaskLora, ...]:
    names = [lora.name for lora in loras]
    if len(set(names)) != len(names):
        raise ValueError("must not name a LoRA twice; give it one scale")
    return loras


class GenerationParameters(BaseModel):
    """Prompt and parameters of a generation; shared by the HTTP request and the Kafka task."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS), AfterValidator(_check_prompt)]
    """Description of the image. Text beyond 512 T5 tokens is truncated, with a warning in the result."""
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS), AfterValidator(_check_text)] | None = None
    """What to avoid. Acts only with `true_cfg_scale` above 1; the result warns otherwise."""
    width: SidePixels = 1024
    """Pixels, a multiple of 16."""
    height: SidePixels = 1024
    """Pixels, a multiple of 16."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 28
    """Denoising steps. When absent 4 with FLUX.1-schnell, which takes at most 50."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Seed of the first image; image i uses seed + i. Derived from `request_id` when absent."""
    guidance: Annotated[float, Field(ge=0, le=20)] = 3.5
    """Distilled guidance; costs nothing. When absent 4.5 with FLUX.1-Krea-dev; no effect with FLUX.1-schnell."""
    true_cfg_scale: Annotated[float, Field(ge=1, le=20)] = 1.0
    """Classifier-free guidance; above 1 doubles the cost."""
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] = 1
    """How many images."""
    loras: Annotated[tuple[TaskLora, ...], Field(max_length=MAX_LORAS), AfterValidator(_check_loras)] = ()
    """LoRAs to generate with, each as `{"name": ..., "scale": 1.0}`, -2 to 2; at most 4, of those that the pool has."""
    image: Annotated[str, Field(max_length=MAX_OBJECT_KEY_BYTES), AfterValidator(_check_image)] | None = None
    """Picture to start from (image-to-image): key or address of a PNG, JPEG or WebP file in the pool's storage, such as
    _inputs/default/cat.png. It is cropped at its centre to the shape of the image, and scaled."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """How much of `image` changes: that share of `steps` is run; 1 keeps nothing of it. 0.6 when absent; only with
    `image`."""
    output_format: Annotated[OutputFormat, Field(strict=False)] = OutputFormat.PNG
    """png, jpeg or webp."""
    quality: Annotated[Quality, Field(strict=False)] | None = None
    """exact, or fast (lossy: 8-bit products, fewer computed steps) where the pool allows it. Absent: its default."""
    embed_parameters: Annotated[EmbedParameters, Field(strict=False)] | None = None
    """What the image file says of the task: all, noPrompt or none. Absent, and at most, what the pool is set to."""
    preview: bool = False
    """Show small pictures of the image while it is generated, as progress events, where the pool makes them."""
    group_id: Annotated[str, Field(max_length=MAX_GROUP_CHARACTERS), AfterValidator(check_group_id)] | None = None
    """Tasks of the same group are counted, listed and canceled together; no effect on their images."""
    metadata: Annotated[
        dict[MetadataKey, MetadataValue], Field(max_length=MAX_METADATA_ENTRIES), BeforeValidator(_check_entry_count)
    ] = Field(default_factory=dict, json_schema_extra={"default": {}})
    """The caller's own labels, echoed in every result."""

    @property
    def steps_to_run(self) -> int:
        """Denoising steps of each image that are computed: with `image` those that `strength` leaves."""
        if self.image is None:
            return self.steps
        return steps_to_run(self.steps, strength=self.strength or DEFAULT_STRENGTH)

    @property
    def relative_work(self) -> float:
        """Estimated duration by pixels, steps and images; 1 is one image with the default parameters."""
        steps = self.steps_to_run * self.n
        # A second pass for each step, with the negative prompt.
        passes = 2 * steps if self.true_cfg_scale > 1 and self.negative_prompt is not None else steps
        return self.width * self.height * passes / _USUAL_WORK

    @model_validator(mode="after")
    def _seeds_fit(self) -> Self:
        if self.seed is not None and self.seed + self.n - 1 > MAX_SEED:
            raise ValueError(
                f"seed: {self.seed} leaves no room for {self.n} images; use at most {MAX_SEED - self.n + 1}"
            )
        return self

    @model_validator(mode="after")
    def _strength_has_an_image(self) -> Self:
        if self.image is None and self.strength is not None:
            raise ValueError("strength: has no effect without image; give an image, or leave it out")
        return self


class PresetChoice(BaseModel):
    """How a gateway chose the preset of a task."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: Annotated[str, Field(max_length=63)]
    reason: Annotated[str, Field(max_length=500)]
    """For people."""
    probability: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of this choice; absent when the preset was asked for by its name."""
    sets: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=16)] = ()
    """Fields of the task that the preset has set."""


class GenerationTask(GenerationParameters):
    """One record of a task topic."""

    model_config = ConfigDict(extra="allow", title="GenerationTask")

    request_id: RequestId
    preset: Annotated[str, Field(max_length=63)] | None = None
    """As the client of a gateway asked for it, or auto; the gateway has set its parameters. No effect on workers."""
    preset_choice: PresetChoice | None = None
    """The preset that the gateway chose: name, reason, probability, and the fields that it sets."""
    parent_id: Annotated[str, Field(max_length=128), AfterValidator(check_request_id)] | None = None
    """The task that this one is a retry of."""
    webhook: TaskWebhook | None = None
    """Where a gateway posts the end of the task, as `{"url": ..., "events": [...]}`. No effect on workers."""
