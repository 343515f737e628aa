"""The latents before the first step, as diffusers' `FluxPipeline` and `FluxImg2ImgPipeline` (0.42) make them."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from fluxpool_worker.engine.latents.schedule import schedule_of
from fluxpool_worker.engine.protocol import GenerationInputs


class StartingLatents:
    """Noise and encoded pictures for one loaded pipeline; not thread-safe."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        """`device` is where the transformer computes."""
        self._pipeline, self._device = pipeline, device

    def encode(self, picture: Image.Image, *, low_memory: bool) -> Any:
        """The VAE's distribution of a picture's latents, which each image of a job samples from; in tiles if asked."""
        vae = self._pipeline.vae
        pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None] * 2 - 1
        if low_memory:
            vae.enable_tiling()
        try:
            return vae.encode(pixels.to(self._device, vae.dtype)).latent_dist
        finally:
            vae.disable_tiling()

    def of(
        self, inputs: GenerationInputs, *, index: int, dtype: torch.dtype, picture: Any | None = None
    ) -> torch.Tensor:
        """Packed latents (1, tokens, channels) of image `index`; in `dtype`, from a picture in float32.

        Random numbers are generated on the CPU, so that every kind of GPU starts from the same; those for the picture
        come first.
        """
        generator = torch.Generator("cpu").manual_seed(inputs.seed + index)
        sample = None if picture is None else picture.sample(generator)
        noise, _ = self._pipeline.prepare_latents(
            1,
            self._pipeline.transformer.config.in_channels // 4,
            inputs.height,
            inputs.width,
            dtype,
            self._device,
            generator,
        )
        if sample is None:
            return torch.as_tensor(noise)
        config = self._pipeline.vae.config
        latents = (sample.to(self._device).float() - config.shift_factor) * config.scaling_factor
        packed = self._pipeline._pack_latents(latents, *latents.shape)  # noqa: SLF001 - it has no public name
        schedule = schedule_of(
            self._pipeline.scheduler, steps=inputs.steps, tokens=noise.shape[1], run=inputs.steps_to_run
        )
        share = schedule.sigmas[0]
        return torch.as_tensor(share * noise.float() + (1 - share) * packed)
