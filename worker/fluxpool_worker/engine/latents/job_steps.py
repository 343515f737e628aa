"""One job on its way through the steps of all its images: counts, cancellation, previews, and where the time goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from fluxpool_worker.engine.generator import GenerationCanceledError, LatentPreview, Pixels
from fluxpool_worker.engine.latents.previews import ImagePreviews, LatentMap
from fluxpool_worker.engine.latents.schedule import Schedule
from fluxpool_worker.engine.protocol import GenerationInputs


@dataclass(slots=True)
class JobSteps:
    """The steps of one job."""

    on_step: Callable[[int, int], None]
    is_canceled: Callable[[], bool]
    total_steps: int
    on_preview: Callable[[LatentPreview], None] | None = None
    """None: the job has no previews, or its latents cannot be shown."""
    done_steps: int = 0
    timings_ms: dict[str, float] = field(default_factory=lambda: {"text_encode": 0.0, "denoise": 0.0, "vae": 0.0})

    def after_step(self) -> None:
        """Count one step; raising is the only way out that skips the decoding of a half-done picture."""
        self.done_steps += 1
        self.on_step(self.done_steps, self.total_steps)
        self.check_canceled()

    def check_canceled(self) -> None:
        """Raise `GenerationCanceledError` when the job was canceled."""
        if self.is_canceled():
            raise GenerationCanceledError("canceled")

    def previews(
        self, latent_map: LatentMap, inputs: GenerationInputs, *, index: int, schedule: Schedule, patch_pixels: int
    ) -> ImagePreviews | None:
        """Those of image `index`; None when the job has none. `patch_pixels` is the side of a token's square."""
        on_preview = self.on_preview
        if on_preview is None or inputs.preview_every_steps < 1:
            return None

        def show(pixels: Callable[[], Pixels]) -> None:
            # Shown before the step is counted.
            on_preview(LatentPreview(self.done_steps + 1, self.total_steps, index, pixels))

        return ImagePreviews(
            latent_map,
            every=inputs.preview_every_steps,
            sigmas=schedule.sigmas,
            rows=inputs.height // patch_pixels,
            columns=inputs.width // patch_pixels,
            show=show,
        )


@dataclass(slots=True)
class PipelineSteps:
    """The steps of one image as diffusers calls back after them."""

    steps: JobSteps
    previews: ImagePreviews | None
    latents: torch.Tensor
    """(1, tokens, channels) before the next step."""

    def after_step(self, _pipeline: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Diffusers' `callback_on_step_end`; `step` counts from 0."""
        if self.previews is not None:
            latents: torch.Tensor = tensors["latents"]
            self.previews.after_pipeline_step(step + 1, latents, before=self.latents)
            self.latents = latents
        self.steps.after_step()
        return tensors
