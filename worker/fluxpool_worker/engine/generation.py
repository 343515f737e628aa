"""Generates images with a loaded FLUX pipeline: encode the text, denoise, decode.

It owns the order of the three stages, the dtypes between them, cancellation and the guard against pictures that are
not finite; it must not know about sockets or image files. The split gives the same bits as one call of the
pipeline when all modules have one dtype, and makes mixed dtypes possible, which one call refuses.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, assert_never

import structlog
import torch

from fluxpool_contract.families import Family
from fluxpool_contract.messages import Quality
from fluxpool_worker.engine.checkpoint.loading import LoadedPipeline, load_pipeline
from fluxpool_worker.engine.checkpoint.weight_reader import WeightReader
from fluxpool_worker.engine.fused import FusedDenoiser, add_fast, fuse, why_not_fused
from fluxpool_worker.engine.generator import (
    CheckpointError,
    DeviceLostError,
    DeviceMemoryError,
    InputsError,
    LatentPreview,
    NotFiniteError,
    Pixels,
    Rendering,
    StartPhases,
)
from fluxpool_worker.engine.latents.job_steps import JobSteps, PipelineSteps
from fluxpool_worker.engine.latents.picture_files import read_picture
from fluxpool_worker.engine.latents.previews import CHANNELS, ImagePreviews, LatentMap
from fluxpool_worker.engine.latents.schedule import Schedule, schedule_of
from fluxpool_worker.engine.latents.starting_latents import StartingLatents
from fluxpool_worker.engine.lora.lora_files import LoraFolder
from fluxpool_worker.engine.lora.merging import LoraMerger
from fluxpool_worker.engine.lora.originals import Originals
from fluxpool_worker.engine.protocol import EnginePath, EngineSpec, GenerationInputs
from fluxpool_worker.engine.text_encoding import Text, TextEncoders

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

USUAL_SIDE_PIXELS: Final = 1024
"""Of tasks that name no size."""

MAX_SEED: Final = 2**64 - 1
"""torch's generators take 64 bits."""

RESCUE_WARNING: Final = (
    "float16 overflowed for image {index}: repeated with bfloat16 arithmetic, which has the range but fewer digits"
)
NEGATIVE_PROMPT_IGNORED: Final = "negative_prompt has no effect unless true_cfg_scale is above 1"
CFG_IGNORED: Final = (
    "true_cfg_scale has no effect without negative_prompt; an empty negative_prompt is enough to switch it on"
)
GUIDANCE_IGNORED: Final = "guidance has no effect with {family}, which has no guidance embedding"
LOW_MEMORY_WARNING: Final = (
    "decoded in tiles because the device's memory did not suffice; fine detail may differ slightly"
)
TRUNCATED_WARNING: Final = "{field} has {tokens} tokens; only the first {limit} were read"

_NOT_FINITE_REMEDY: Final = (
    "the checkpoint may be damaged, or the parameters far outside what the model was trained for"
)


@dataclass(frozen=True, slots=True)
class _Conditioning:
    """What steers one job: its text, with classifier-free guidance the text to lead away from, and its picture."""

    positive: Text
    negative: Text | None
    picture: Any | None = None
    """The VAE's distribution of the latents of the picture to start from."""


class FluxGenerator:
    """A `Generator` over a diffusers `FluxPipeline`; not thread-safe, for the pipeline is not."""

    def __init__(
        self,
        loaded: LoadedPipeline,
        *,
        fused: FusedDenoiser | None = None,
        why_not_fast: str = "",
        lora_folder: Path | None = None,
    ) -> None:
        """Take a loaded pipeline over; no other code may call it from now on. Without `fused` diffusers denoises.

        `why_not_fast` is the reason to give when `fused` generates no fast images. `lora_folder` has the
        LoRAs that jobs may name.
        """
        self._loaded, self._fused, self._why_not_fast = loaded, fused, why_not_fast
        self._pipeline = loaded.pipeline
        self._loras = LoraMerger(
            self._pipeline.transformer,
            folder=LoraFolder(lora_folder),
            originals=Originals(loaded.folder / "transformer"),
        )
        self._texts = TextEncoders(self._pipeline, tokens=loaded.family.text_tokens)
        self._starts = StartingLatents(self._pipeline, loaded.device)
        is_shown = self._pipeline.vae.config.latent_channels == CHANNELS
        self._latent_map = LatentMap(loaded.device) if is_shown else None

    @property
    def model(self) -> str:
        """Name and revision as results report it."""
        return self._loaded.model

    @property
    def family(self) -> Family:
        """Defaults, limits and licence."""
        return self._loaded.family

    @property
    def device(self) -> str:
        """The torch device's name, such as `cuda:0`."""
        return str(self._loaded.device)

    @property
    def size_multiple_pixels(self) -> int:
        """Width and height must be multiples of this; it is also the smallest side."""
        return 2 * int(self._pipeline.vae_scale_factor)

    def generate(
        self,
        inputs: GenerationInputs,
        *,
        on_step: Callable[[int, int], None],
        is_canceled: Callable[[], bool],
        on_preview: Callable[[LatentPreview], None] | None = None,
    ) -> Rendering:
        """Draw `inputs.n` images one by one, sharing the text's embeddings; see `Generator.generate`."""
        self._check(inputs)
        run = JobSteps(
            on_step=on_step,
            is_canceled=is_canceled,
            total_steps=inputs.n * inputs.steps_to_run,
            on_preview=on_preview,
        )
        try:
            with torch.no_grad():
                return self._render(inputs, run)
        except torch.OutOfMemoryError as error:
            message = f"{inputs.width}x{inputs.height} pixels do not fit into the memory of {self.device}: {error}"
        except RuntimeError as error:
            if not self._device_answers():
                raise DeviceLostError(f"{self.device} answers no more: {error}") from error
            raise
        finally:
            # A callback that raises skips this inside diffusers, and stateful hooks would leak into the next job.
            self._pipeline.maybe_free_model_hooks()
        # Outside the handler, whose traceback still holds the tensors that are to be freed.
        torch.cuda.empty_cache()
        raise DeviceMemoryError(message)

    def _device_answers(self) -> bool:
        """Whether the device can still compute: after a sticky CUDA error every later call fails like the first."""
        if self._loaded.device.type != "cuda":
            return True
        try:
            torch.zeros(1, device=self._loaded.device).add_(1)
            torch.cuda.synchronize(self._loaded.device)
        except RuntimeError:
            return False
        return True

    def warm_up(self) -> None:
        """Generate once in every quality before the first job, so that it does not pay for lazy initialisation.

        The smallest picture shows that the model works at all. A GPU generates one of the usual size, too: its
        libraries load the code of large products and plan attention at the first use, which takes a second. Where the
        fast quality fails, fast jobs are refused with the reason from now on.
        """
        # A graph replays kernels and no hooks, which bring offloaded weights.
        is_resident = self._loaded.device.type == "cuda" and self._loaded.why_offloaded is None
        if is_resident:
            with torch.no_grad():
                self._texts.capture()
        self._generate_once(Quality.EXACT, side=self.size_multiple_pixels)
        if is_resident:
            try:
                self._generate_once(Quality.EXACT, side=USUAL_SIDE_PIXELS)
            except DeviceMemoryError as error:
                log.info("usual_size_not_warmed_up", reason=str(error))
        if self._fused is not None and self.supports(Quality.FAST):
            try:
                for side in (self.size_multiple_pixels, *((USUAL_SIDE_PIXELS,) if is_resident else ())):
                    self._generate_once(Quality.FAST, side=side)
            except (RuntimeError, NotFiniteError, DeviceMemoryError) as error:
                self._why_not_fast = f"its warm-up failed ({type(error).__name__}: {error})"
                log.warning("fast_unavailable", device=self.device, reason=self._why_not_fast)
                self._fused.remove_fast()

    def supports(self, quality: Quality) -> bool:
        """Whether jobs may ask for it."""
        return quality is Quality.EXACT or (self._fused is not None and quality in self._fused.qualities)

    def refusal(self, quality: Quality) -> str:
        """Why jobs may not ask for it."""
        return f"quality: {quality.value} is not available on this worker: {self._why_not_fast}"

    def _generate_once(self, quality: Quality, *, side: int) -> None:
        inputs = GenerationInputs(prompt="warm-up", width=side, height=side, steps=1, seed=0, quality=quality)
        self.generate(inputs, on_step=lambda _step, _total: None, is_canceled=lambda: False)

    def _check(self, inputs: GenerationInputs) -> None:
        multiple = self.size_multiple_pixels
        for name, pixels in (("width", inputs.width), ("height", inputs.height)):
            if pixels < multiple or pixels % multiple:
                nearest = max(multiple, round(pixels / multiple) * multiple)
                raise InputsError(f"{name}: {pixels} is not a multiple of {multiple}; use {nearest}")
        for name, count in (("steps", inputs.steps), ("n", inputs.n)):
            if count < 1:
                raise InputsError(f"{name}: {count} is too small; use 1 or more")
        if inputs.steps > self.family.max_steps:
            raise InputsError(
                f"steps: {inputs.steps} is too large for {self.family.name}; use 1 to {self.family.max_steps} "
                f"({self.family.default_steps} by default)"
            )
        if inputs.seed < 0 or inputs.seed + inputs.n - 1 > MAX_SEED:
            raise InputsError(f"seed: {inputs.seed} must be 0 or more and seed + n - 1 at most {MAX_SEED}")
        if inputs.loras and self._loaded.why_offloaded is not None:
            # A block may be on the device between jobs, as a copy that changes in vain.
            raise InputsError(
                f"loras: cannot be merged into weights in host memory, where they are because "
                f"{self._loaded.why_offloaded}"
            )
        if inputs.loras and inputs.quality is Quality.FAST:
            raise InputsError("loras: are merged into 16-bit weights, which quality fast does not use; use exact")
        for name, value in (("guidance", inputs.guidance), ("true_cfg_scale", inputs.true_cfg_scale)):
            if not math.isfinite(value):
                raise InputsError(f"{name}: {value} is not a finite number")
        if not self.supports(inputs.quality):
            raise InputsError(f"{self.refusal(inputs.quality)}; use exact")

    def _render(self, inputs: GenerationInputs, run: JobSteps) -> Rendering:
        run.check_canceled()
        warnings_of_loras = self._switch_loras(inputs, run)
        with self._timed(run, "text_encode"):
            conditioning, notes = self._encode(inputs)
        if inputs.image is not None:
            with self._timed(run, "input_image"):
                picture = read_picture(inputs.image, width=inputs.width, height=inputs.height)
                encoded = self._starts.encode(picture, low_memory=inputs.low_memory)
                conditioning = replace(conditioning, picture=encoded)
        notes += warnings_of_loras
        if inputs.guidance and self.family.default_guidance is None:
            notes.append(GUIDANCE_IGNORED.format(family=self.family.name))
        if inputs.low_memory:
            notes.append(LOW_MEMORY_WARNING)
        images: list[Pixels] = []
        for index in range(inputs.n):
            run.check_canceled()
            with self._timed(run, "denoise"):
                latents, rescued = self._denoise_finite(inputs, conditioning, index=index, run=run)
            if rescued:
                notes.append(RESCUE_WARNING.format(index=index))
            with self._timed(run, "vae"):
                images.append(self._decode(latents, inputs))
        return Rendering(
            images=tuple(images),
            timings_ms=run.timings_ms,
            warnings=tuple(notes),
            path=self._path(inputs.quality),
        )

    def _path(self, quality: Quality) -> EnginePath:
        if self._fused is None:
            return EnginePath.DIFFUSERS if self._loaded.why_offloaded is None else EnginePath.DIFFUSERS_OFFLOADED
        match quality:
            case Quality.EXACT:
                return EnginePath.FUSED
            case Quality.FAST:
                return EnginePath.FUSED_FAST
            case _:
                assert_never(quality)

    def _switch_loras(self, inputs: GenerationInputs, run: JobSteps) -> tuple[str, ...]:
        """Warnings about the job's LoRAs, which are in the weights then; a switch has a timing of its own."""
        began = time.perf_counter()
        switched, notes = self._loras.switch(inputs.loras)
        if switched:
            if self._loaded.device.type == "cuda":
                torch.cuda.synchronize(self._loaded.device)
            run.timings_ms["lora"] = 1000 * (time.perf_counter() - began)
        return notes

    @contextlib.contextmanager
    def _timed(self, run: JobSteps, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if self._loaded.device.type == "cuda":
            torch.cuda.synchronize(self._loaded.device)
        spent_ms = 1000 * (time.perf_counter() - started)
        run.timings_ms[stage] = run.timings_ms.get(stage, 0.0) + spent_ms

    def _encode(self, inputs: GenerationInputs) -> tuple[_Conditioning, list[str]]:
        """Embeddings in the encoders' dtype, and warnings for the result.

        As in diffusers, classifier-free guidance needs both a scale above 1 and a negative prompt, which may be
        empty; one without the other does nothing.
        """
        notes: list[str] = []
        positive = self._encode_text(inputs.prompt, name="prompt", notes=notes)
        negative: Text | None = None
        if inputs.negative_prompt is not None and inputs.true_cfg_scale > 1:
            negative = self._encode_text(inputs.negative_prompt, name="negative_prompt", notes=notes)
        elif inputs.negative_prompt:
            notes.append(NEGATIVE_PROMPT_IGNORED)
        elif inputs.true_cfg_scale > 1:
            notes.append(CFG_IGNORED)
        return _Conditioning(positive=positive, negative=negative), notes

    def _encode_text(self, text: str, *, name: str, notes: list[str]) -> Text:
        tokens = self._texts.count_tokens(text)
        if tokens > self.family.text_tokens:
            notes.append(TRUNCATED_WARNING.format(field=name, tokens=tokens, limit=self.family.text_tokens))
        return self._texts.encode(text)

    def _denoise_finite(
        self, inputs: GenerationInputs, conditioning: _Conditioning, *, index: int, run: JobSteps
    ) -> tuple[torch.Tensor, bool]:
        """Finite latents of image `index`, and whether float16 had to be given up for them.

        The second try runs the float16 weights under autocast, which casts each one to bfloat16 for its own
        multiplication only: no second copy of the 24 GB, and the loaded model is never touched, while converting it
        to bfloat16 and back would lose three bits of every weight permanently. It starts from the same noise.
        """
        dtype = self._loaded.transformer_dtype
        noise = self._starts.of(inputs, index=index, dtype=dtype, picture=conditioning.picture)
        if self._fused is None:
            latents = self._denoise(inputs, conditioning, noise=noise.to(dtype), index=index, run=run)
        else:
            latents = self._denoise_fused(self._fused, inputs, conditioning, noise=noise, index=index, run=run)
        if bool(torch.isfinite(latents).all()):
            return latents, False
        if dtype is not torch.float16 or inputs.quality is not Quality.EXACT:
            raise NotFiniteError(f"image {index}: the latents are not finite in {_name(dtype)}; {_NOT_FINITE_REMEDY}")
        log.warning("float16_overflowed", index=index, width=inputs.width, height=inputs.height, steps=inputs.steps)
        run.total_steps += inputs.steps_to_run
        with torch.autocast(self._loaded.device.type, dtype=torch.bfloat16), warnings.catch_warnings():
            # RMSNorm's weights stay float16 under autocast, and torch says that this is not its fastest way.
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)
            latents = self._denoise(inputs, conditioning, noise=noise.to(torch.bfloat16), index=index, run=run)
        if not bool(torch.isfinite(latents).all()):
            raise NotFiniteError(
                f"image {index}: the latents are not finite, neither in float16 nor in bfloat16; {_NOT_FINITE_REMEDY}"
            )
        return latents, True

    def _previews(
        self, inputs: GenerationInputs, *, index: int, schedule: Schedule, run: JobSteps
    ) -> ImagePreviews | None:
        if self._latent_map is None:
            return None
        return run.previews(
            self._latent_map, inputs, index=index, schedule=schedule, patch_pixels=self.size_multiple_pixels
        )

    def _denoise_fused(
        self,
        fused: FusedDenoiser,
        inputs: GenerationInputs,
        conditioning: _Conditioning,
        *,
        noise: torch.Tensor,
        index: int,
        run: JobSteps,
    ) -> torch.Tensor:
        """Packed latents in float32."""
        schedule = self._schedule(inputs, noise)
        return fused.denoise(
            noise,
            positive=conditioning.positive,
            negative=conditioning.negative,
            width=inputs.width,
            height=inputs.height,
            steps=inputs.steps,
            guidance=inputs.guidance,
            true_cfg_scale=inputs.true_cfg_scale,
            after_step=run.after_step,
            quality=inputs.quality,
            run=inputs.steps_to_run,
            previews=self._previews(inputs, index=index, schedule=schedule, run=run),
        )

    def _schedule(self, inputs: GenerationInputs, noise: torch.Tensor) -> Schedule:
        return schedule_of(self._pipeline.scheduler, steps=inputs.steps, tokens=noise.shape[1], run=inputs.steps_to_run)

    def _denoise(
        self, inputs: GenerationInputs, conditioning: _Conditioning, *, noise: torch.Tensor, index: int, run: JobSteps
    ) -> torch.Tensor:
        """Packed latents in the dtype of the noise, which the embeddings are cast to."""
        positive = conditioning.positive.to(noise.dtype)
        negative = conditioning.negative.to(noise.dtype) if conditioning.negative is not None else None
        schedule = self._schedule(inputs, noise)
        previews = self._previews(inputs, index=index, schedule=schedule, run=run)
        (latents,) = self._pipeline(
            prompt_embeds=positive.sequence,
            pooled_prompt_embeds=positive.pooled,
            negative_prompt_embeds=negative.sequence if negative is not None else None,
            negative_pooled_prompt_embeds=negative.pooled if negative is not None else None,
            true_cfg_scale=inputs.true_cfg_scale,
            guidance_scale=inputs.guidance,
            height=inputs.height,
            width=inputs.width,
            num_inference_steps=inputs.steps_to_run,
            sigmas=schedule.unshifted,
            latents=noise,
            max_sequence_length=self.family.text_tokens,
            callback_on_step_end=PipelineSteps(run, previews, noise).after_step,
            output_type="latent",
            return_dict=False,
        )
        return torch.as_tensor(latents)

    def _decode(self, latents: torch.Tensor, inputs: GenerationInputs) -> Pixels:
        """Pixels, rounded to bytes on the device: a quarter of what floats would move to the host."""
        vae = self._pipeline.vae
        unpacked = self._pipeline._unpack_latents(  # noqa: SLF001 - diffusers' own packing has no public name
            latents, inputs.height, inputs.width, self._pipeline.vae_scale_factor
        )
        scaled = unpacked / vae.config.scaling_factor + vae.config.shift_factor
        # Decoding the whole picture at once is where the memory's peak lies; tiles need a fraction of it.
        if inputs.low_memory:
            vae.enable_tiling()
        try:
            (image,) = vae.decode(scaled.to(vae.dtype), return_dict=False)
        finally:
            vae.disable_tiling()
        if not bool(torch.isfinite(image).all()):
            raise NotFiniteError(f"the VAE's picture is not finite in {_name(vae.dtype)}; {_NOT_FINITE_REMEDY}")
        bounded = (image * 0.5 + 0.5).clamp(0, 1)
        as_bytes = (bounded.float() * 255).round().to(torch.uint8)
        pixels: Pixels = as_bytes[0].permute(1, 2, 0).contiguous().cpu().numpy()
        return pixels


def load_generator(
    spec: EngineSpec, *, phases: StartPhases | None = None, reader: WeightReader | None = None
) -> FluxGenerator:
    """Load and warm the model that `spec` names; raises `CheckpointError` with the remedy."""
    phases = phases or StartPhases()
    loaded = load_pipeline(spec, reader=reader)
    phases.end("weights")
    fused, why_not_fast = _choose_ways(spec, loaded)
    generator = FluxGenerator(
        loaded,
        fused=fused,
        why_not_fast=why_not_fast,
        lora_folder=None if spec.lora_folder is None else Path(spec.lora_folder),
    )
    phases.end("kernels")
    try:
        generator.warm_up()
    except (NotFiniteError, DeviceMemoryError) as error:
        raise CheckpointError(f"model {spec.model!r} was loaded but cannot generate: {error}") from error
    if not generator.supports(spec.default_quality):
        raise CheckpointError(f"{generator.refusal(spec.default_quality)}; make exact the default")
    log.info(
        "model_loaded",
        model=loaded.model,
        family=loaded.family.name,
        licence=str(loaded.family.licence),
    )
    phases.end("warm_up")
    return generator


def _choose_ways(spec: EngineSpec, loaded: LoadedPipeline) -> tuple[FusedDenoiser | None, str]:
    """The fused way where it covers the model, and why it generates no fast images, if so; the log has the reasons."""
    offloaded = None if loaded.why_offloaded is None else "the weights are in host memory"
    device, reason = str(loaded.device), offloaded or why_not_fused(loaded.pipeline)
    fused = fuse(loaded.pipeline) if reason is None else None
    if fused is None:
        log.info("denoising_by_diffusers", device=device, reason=reason)
    else:
        log.info("denoising_fused", device=device, dtype=_name(loaded.transformer_dtype))
    if Quality.FAST not in spec.qualities:
        return fused, "the pool does not allow it"
    if fused is not None:
        reason = add_fast(fused, loaded.pipeline)
    if reason is None:
        log.info("fast_added", device=device)
    else:
        log.warning("fast_unavailable", device=device, reason=reason)
    return fused, reason or ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
