"""From noise to latents with the fused forward: schedule, guidance and the loop over steps.

The steps are those of diffusers' `FluxPipeline` (0.42). Latents stay float32 from step to step, and times and guidance
are never rounded to the transformer's dtype, so that half precision ends closer to float32 than in diffusers.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from fluxpool_contract.messages import Quality
from fluxpool_worker.engine.fused.attention import Attention, attention
from fluxpool_worker.engine.fused.fast.operations import ScaledOperations
from fluxpool_worker.engine.fused.fast.products import ScaledProducts
from fluxpool_worker.engine.fused.fast.steps import computed_steps
from fluxpool_worker.engine.fused.fast.weights import scale_weights
from fluxpool_worker.engine.fused.modulation import modulation_vectors
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.products import ExactProducts, ProductsOf
from fluxpool_worker.engine.fused.transformer import FusedTransformer
from fluxpool_worker.engine.fused.weights import PackedWeights, pack_weights
from fluxpool_worker.engine.latents.previews import ImagePreviews
from fluxpool_worker.engine.latents.schedule import schedule_of
from fluxpool_worker.engine.text_encoding import Text

KEPT_SIZES: Final = 2
"""Token counts (of a quality) whose buffers are kept: about 0.5 GB each at 1024x1024, and allocated in no time."""


@dataclass(frozen=True, slots=True)
class _Guide:
    """A text as the steps of one job use it."""

    context: torch.Tensor
    vectors: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Form:
    """A quality's weights, and how their products are computed."""

    weights: PackedWeights
    products: ProductsOf
    attend: Attention


class FusedDenoiser:
    """The fused way of one loaded pipeline; not thread-safe."""

    def __init__(self, pipeline: Any, *, operations: Operations, attend: Attention = attention) -> None:
        """Pack the transformer's weights; the pipeline keeps working on the same memory."""
        self._pipeline, self._operations = pipeline, operations
        self._weights = pack_weights(pipeline.transformer)
        exact = _Form(self._weights, partial(ExactProducts, operations=operations), attend)
        self._forms: dict[Quality, _Form] = {Quality.EXACT: exact}
        self._by_size: OrderedDict[tuple[Quality, int, int], FusedTransformer] = OrderedDict()

    def add_fast(self, operations: ScaledOperations, *, attend: Attention = attention) -> None:
        """Keep 8-bit weights beside the others, for `Quality.FAST`; again, when the others have changed."""
        self.remove_fast()
        products = partial(ScaledProducts, operations=self._operations, scaled_operations=operations)
        self._forms[Quality.FAST] = _Form(scale_weights(self._weights), products, attend)

    def remove_fast(self) -> None:
        """Free what `add_fast` made."""
        self._by_size.clear()
        self._forms.pop(Quality.FAST, None)

    @property
    def qualities(self) -> frozenset[Quality]:
        """Qualities that it can generate."""
        return frozenset(self._forms)

    def denoise(
        self,
        noise: torch.Tensor,
        *,
        positive: Text,
        negative: Text | None,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        true_cfg_scale: float,
        after_step: Callable[[], None],
        quality: Quality = Quality.EXACT,
        run: int | None = None,
        previews: ImagePreviews | None = None,
    ) -> torch.Tensor:
        """Packed latents (1, tokens, channels) in float32, from packed noise of that shape.

        `after_step` is called after every step; raising in it ends the loop. `quality` is one of `qualities`. With
        `run` only so many of the last steps are run, and `noise` has a picture in it (`StartingLatents`).
        `previews` see every step before `after_step`.
        """
        run = steps if run is None else run
        schedule = schedule_of(self._pipeline.scheduler, steps=steps, tokens=noise.shape[1], run=run)
        sigmas = schedule.sigmas
        transformer = self._transformer(positive, width=width, height=height, quality=quality)
        computed = computed_steps(run) if quality is Quality.FAST else frozenset(range(run))
        texts = [positive] if negative is None else [positive, negative]
        guides = [self._guide(text, times=schedule.times, guidance=guidance) for text in texts]
        latents = noise[0].float().clone()
        velocity = torch.empty(0)
        for step in range(run):
            if step in computed:
                velocity = self._velocity(transformer, latents, guides=guides, step=step, scale=true_cfg_scale)
            latents.add_(velocity, alpha=sigmas[step + 1] - sigmas[step])
            if previews is not None:
                previews.after_step(step + 1, latents, velocity=velocity)
            after_step()
        return latents[None]

    def _velocity(
        self,
        transformer: FusedTransformer,
        latents: torch.Tensor,
        *,
        guides: Sequence[_Guide],
        step: int,
        scale: float,
    ) -> torch.Tensor:
        # Copies for float32, too: the buffer is the next text's.
        found = [
            transformer.velocity(latents, context=guide.context, vectors=guide.vectors[step]).to(
                torch.float32, copy=True
            )
            for guide in guides
        ]
        if len(found) == 1:
            return found[0]
        positive, negative = found
        return negative + scale * (positive - negative)

    def _guide(self, text: Text, *, times: torch.Tensor, guidance: float) -> _Guide:
        transformer, dtype = self._weights.transformer, self._weights.dtype
        return _Guide(
            context=transformer.context_embedder(text.sequence[0].to(dtype)),
            vectors=modulation_vectors(
                transformer,
                timesteps=times,
                guidance=guidance if transformer.config.guidance_embeds else None,
                pooled=text.pooled.to(dtype),
            ),
        )

    def _transformer(self, text: Text, *, width: int, height: int, quality: Quality) -> FusedTransformer:
        patch = 2 * self._pipeline.vae_scale_factor
        rows, columns, text_rows = height // patch, width // patch, text.sequence.shape[1]
        size = (quality, text_rows, rows * columns)
        found = self._by_size.get(size)
        if found is None:
            if len(self._by_size) >= KEPT_SIZES:
                self._by_size.popitem(last=False)
            form = self._forms[quality]
            found = self._by_size[size] = FusedTransformer(
                form.weights,
                text_rows=text_rows,
                image_rows=rows * columns,
                operations=self._operations,
                products=form.products,
                attend=form.attend,
            )
        self._by_size.move_to_end(size)
        found.set_positions(self._positions(text_rows, rows=rows, columns=columns))
        return found

    def _positions(self, text_rows: int, *, rows: int, columns: int) -> torch.Tensor:
        """(tokens, 3): zeros for text; for the image its row and column."""
        device = self._weights.device
        image = self._pipeline._prepare_latent_image_ids(1, rows, columns, device, torch.float32)  # noqa: SLF001
        return torch.cat((torch.zeros(text_rows, 3, device=device), image))
