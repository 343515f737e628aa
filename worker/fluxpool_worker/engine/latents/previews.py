"""What an image looks like while it is denoised: the clean latents that a step predicts, as 8-bit RGB by a linear map.

Owns the map and the copy to the host. On a CUDA device both run on a stream of their own: the step loop launches a few
small kernels and never waits. Nothing here changes latents.
"""

from collections.abc import Callable
from typing import Any, Final

import torch

from fluxpool_worker.engine.generator import Pixels

CHANNELS: Final = 16
"""Of the latents that the map is for: those of FLUX.1's VAE."""
LEAST_PREVIEWS: Final = 4
"""Of an image with enough steps, so that few-step models have previews, too."""
_FACTORS: Final = (
    (-0.0346, 0.0244, 0.0681),
    (0.0034, 0.0210, 0.0687),
    (0.0275, -0.0668, -0.0433),
    (-0.0174, 0.0160, 0.0617),
    (0.0859, 0.0721, 0.0329),
    (0.0004, 0.0383, 0.0115),
    (0.0405, 0.0861, 0.0915),
    (-0.0236, -0.0185, -0.0259),
    (-0.0245, 0.0250, 0.1180),
    (0.1008, 0.0755, -0.0421),
    (-0.0515, 0.0201, 0.0011),
    (0.0428, -0.0012, -0.0036),
    (0.0817, 0.0765, 0.0749),
    (-0.1264, -0.0522, -0.1103),
    (-0.0280, -0.0881, -0.0499),
    (-0.1262, -0.0982, -0.0778),
)
"""Red, green and blue, -1 to 1, of each channel of scaled latents. Measured by the authors of ComfyUI, which publishes
them as `latent_rgb_factors` of its class `Flux` (comfy/latent_formats.py)."""
_BIAS: Final = (-0.0329, -0.0718, -0.0851)
"""`latent_rgb_factors_bias` of the same class."""


class LatentMap:
    """The map on one device; not thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self._factors = torch.tensor(_FACTORS, device=device)
        self._bias = torch.tensor(_BIAS, device=device)
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def pixels(self, packed: torch.Tensor, *, rows: int, columns: int) -> torch.Tensor:
        """(2 rows, 2 columns, 3) bytes of packed latents (rows * columns, 64), whose dtype may be any."""
        # diffusers' packing: a token has 2x2 latents, channel by channel.
        squares = packed.float().view(rows, columns, CHANNELS, 2, 2).permute(0, 3, 1, 4, 2)
        colours = squares.reshape(2 * rows, 2 * columns, CHANNELS) @ self._factors + self._bias
        # A picture that is not finite fails later, with its reason.
        return ((colours + 1) * 127.5).nan_to_num(0.0).clamp(0, 255).round().to(torch.uint8)

    def begin(self, packed: torch.Tensor, *, rows: int, columns: int) -> Callable[[], Pixels]:
        """The same on the host, once the device has computed it; `packed` must not be changed any more."""
        if self._stream is None:
            made: Pixels = self.pixels(packed, rows=rows, columns=columns).numpy()
            return lambda: made
        # The latents are computed on the current stream. What waits for them is the other stream, not this thread.
        self._stream.wait_stream(torch.cuda.current_stream(packed.device))
        with torch.cuda.stream(self._stream):
            colours = self.pixels(packed, rows=rows, columns=columns)
            # Pinned: a copy to pageable memory would wait for the device.
            host = torch.empty(colours.shape, dtype=torch.uint8, pin_memory=True)
            host.copy_(colours, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        # Else the allocator would give their memory to the next step before the other stream has read it.
        packed.record_stream(self._stream)

        def wait() -> Pixels:
            copied.synchronize()
            found: Pixels = host.numpy()
            return found

        return wait


class ImagePreviews:
    """The previews of one image on its way through its steps."""

    def __init__(
        self,
        latent_map: LatentMap,
        *,
        every: int,
        sigmas: tuple[float, ...],
        rows: int,
        columns: int,
        show: Callable[[Callable[[], Pixels]], None],
    ) -> None:
        """`sigmas` (steps + 1) are the shares of noise before each step and after the last."""
        self._map, self._sigmas, self._show = latent_map, sigmas, show
        self._rows, self._columns = rows, columns
        self._steps = len(sigmas) - 1
        self._every = max(1, min(every, self._steps // LEAST_PREVIEWS))

    def after_step(self, step: int, latents: torch.Tensor, *, velocity: torch.Tensor) -> None:
        """Show what the step, counted from 1, says of the clean picture; latents (tokens, 64) still have noise.

        Along a straight flow the clean latents are those less their share of noise times the velocity (Lipman et al.,
        2023). The last step has no preview: the image follows.
        """
        if step % self._every == 0 and step < self._steps:
            clean = torch.add(latents.float(), velocity.float(), alpha=-self._sigmas[step])
            self._show(self._map.begin(clean, rows=self._rows, columns=self._columns))

    def after_pipeline_step(self, step: int, latents: torch.Tensor, *, before: torch.Tensor) -> None:
        """As `after_step`, where only the latents of before and after it are known, each (1, tokens, 64)."""
        if step % self._every == 0 and step < self._steps:
            change = (latents.float() - before.float()) / (self._sigmas[step] - self._sigmas[step - 1])
            self.after_step(step, latents[0], velocity=change[0])
