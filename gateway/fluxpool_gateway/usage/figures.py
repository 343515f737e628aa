"""What one task used, as its result tells. Pure."""

from dataclasses import dataclass
from typing import Final, Self

from pydantic import ValidationError

from fluxpool_contract.messages import GenerationResult

_GPU_STAGES: Final = ("text_encode_ms", "input_image_ms", "denoise_ms", "vae_ms")
"""Stages of `GenerationResult.timings` that run on the worker's GPU."""
# Far more than any task uses. Sums of 63 bits hold a billion such tasks in one hour; a result may be forged.
MAX_PIXELS: Final = 10**9
MAX_GPU_MS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Figures:
    """Sums over the images of one task, or of several."""

    images: int = 0
    pixels: int = 0
    gpu_ms: int = 0
    """Milliseconds of a worker's GPU."""

    @classmethod
    def of(cls, result: GenerationResult) -> Self:
        """Those of one result."""
        pixels = 0
        for image in result.images:
            pixels += image.width * image.height
        gpu_ms = 0.0
        for stage in _GPU_STAGES:
            gpu_ms += max(0.0, result.timings.get(stage, 0.0))
        return cls(len(result.images), min(pixels, MAX_PIXELS), round(min(gpu_ms, MAX_GPU_MS)))

    @classmethod
    def of_stored(cls, body: str) -> Self:
        """Those that the result had when it was projected; none of a text that is no result."""
        try:
            return cls.of(GenerationResult.model_validate_json(body))
        except ValidationError:
            return cls()


NOTHING: Final = Figures()
