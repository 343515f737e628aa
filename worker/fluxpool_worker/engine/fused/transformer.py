"""The forward of FLUX.1's transformer for one picture, on packed weights and fixed buffers.

The arithmetic is that of diffusers' `FluxTransformer2DModel` (0.42); what differs is how it is cut into launches:
modulation vectors come from outside, the residual stream of text and image is one buffer, and GELU belongs to its
matrix product. Knows nothing of steps, schedules or prompts, nor of how products are computed.
"""

import torch

from fluxpool_worker.engine.fused.attention import Attention
from fluxpool_worker.engine.fused.modulation import BlockVectors, Modulation, ModulationLayout, NormVectors
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.products import ProductsOf, linear
from fluxpool_worker.engine.fused.weights import DoubleBlock, HeadNorms, PackedWeights, SingleBlock, Streams


class FusedTransformer:
    """One token count: buffers of about 0.4 GB at 1024x1024; the weights are shared by all."""

    def __init__(
        self,
        weights: PackedWeights,
        *,
        text_rows: int,
        image_rows: int,
        operations: Operations,
        products: ProductsOf,
        attend: Attention,
    ) -> None:
        """Allocate the buffers for `text_rows` + `image_rows` tokens."""
        self._weights, self._operations, self._attend = weights, operations, attend
        self._products = products(weights, text_rows, image_rows)
        self._layout = ModulationLayout(
            width=weights.width,
            double_blocks=len(weights.double_blocks),
            single_blocks=len(weights.single_blocks),
        )
        rows, width = text_rows + image_rows, weights.width
        self._text, self._image, self._all = slice(0, text_rows), slice(text_rows, rows), slice(0, rows)
        self._stream = self._empty(rows, width)
        self._heads = self._empty(rows, 3 * width)
        self._update = self._empty(rows, width)
        # The last block's image rows ask, all rows answer: text rows are not needed any more.
        self._last_query = self._empty(image_rows, width)
        self._last_key_value = self._empty(rows, 2 * width)
        self._velocity = self._empty(image_rows, weights.last.weight.shape[0])
        self._vectors = self._empty(self._layout.length)
        self._cosine = self._sine = torch.empty(0)

    def _empty(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, device=self._weights.device, dtype=self._weights.dtype)

    def set_positions(self, positions: torch.Tensor) -> None:
        """Take the rotary angles of all rows; `positions` is (rows, axes), text rows first."""
        cosine, sine = self._weights.transformer.pos_embed(positions)
        # diffusers repeats each angle for both members of a pair.
        self._cosine, self._sine = cosine[:, ::2].float().contiguous(), sine[:, ::2].float().contiguous()

    def velocity(self, latents: torch.Tensor, *, context: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        """The velocity (image rows, channels) at packed latents of that shape.

        `context` is the embedded text (text rows, width), `vectors` one step's modulation. The answer is a buffer that
        the next call overwrites.
        """
        self._vectors.copy_(vectors)
        self._stream[self._text] = context
        linear(latents.to(self._weights.dtype), self._weights.first, out=self._stream[self._image])
        self._first_norm()
        for index, double in enumerate(self._weights.double_blocks):
            self._double(index, double)
        *singles, last = self._weights.single_blocks
        for index, single in enumerate(singles):
            self._single(index, single)
        linear(self._last_single(len(singles), last), self._weights.last, out=self._velocity)
        return self._velocity

    # Norms

    def _norm(self, *, update: torch.Tensor | None, text: NormVectors, image: NormVectors) -> None:
        modulation = Modulation(vectors=self._vectors, text_rows=self._text.stop, text=text, image=image)
        self._products.add_and_norm(stream=self._stream, update=update, modulation=modulation)

    def _first_norm(self) -> None:
        text, image = self._layout.double_text(0).attention, self._layout.double_image(0).attention
        self._norm(update=None, text=_behind(text.gate, text), image=_behind(image.gate, image))

    # Blocks

    def _double(self, index: int, block: DoubleBlock) -> None:
        products, text, image = self._products, self._layout.double_text(index), self._layout.double_image(index)
        self._both_from_norm(block.query_key_value, out=self._heads)
        products.from_attention(self._attention(block.norms), block.output, out=self._update)
        self._norm(
            update=self._update,
            text=_behind(text.attention.gate, text.feed_forward),
            image=_behind(image.attention.gate, image.feed_forward),
        )
        products.expand(block.up.image, rows=self._image)
        products.expand(block.up.text, rows=self._text)
        products.from_hidden(block.down, out=self._update)
        if index + 1 < self._layout.double_blocks:
            next_text = self._layout.double_text(index + 1).attention
            next_image = self._layout.double_image(index + 1).attention
        else:
            next_text = next_image = self._layout.single(0)
        self._norm(
            update=self._update,
            text=_behind(text.feed_forward.gate, next_text),
            image=_behind(image.feed_forward.gate, next_image),
        )

    def _single(self, index: int, block: SingleBlock) -> None:
        products = self._products
        products.from_norm(block.query_key_value, rows=self._all, out=self._heads)
        found = self._attention(block.norms)
        products.expand(block.up, rows=self._all)
        products.from_both(found, block.output, rows=self._all, out=self._update)
        following = _behind(self._layout.single(index).gate, self._layout.single(index + 1))
        self._norm(update=self._update, text=following, image=following)

    def _last_single(self, index: int, block: SingleBlock) -> torch.Tensor:
        """The normed image rows."""
        products, image, width, heads = self._products, self._image, self._weights.width, self._weights.heads
        layer = block.query_key_value
        products.from_norm(layer.outputs(slice(0, width)), rows=image, out=self._last_query)
        products.from_norm(layer.outputs(slice(width, None)), rows=self._all, out=self._last_key_value)
        query, (key, value) = self._split(self._last_query, 1)[0], self._split(self._last_key_value, 2)
        self._rotate(query, HeadNorms(block.norms.text[:heads], block.norms.image[:heads]), first_row=image.start)
        self._rotate(key, HeadNorms(block.norms.text[heads:], block.norms.image[heads:]))
        found = self._attend(query, key, value)
        products.expand(block.up, rows=image)
        products.from_both(found, block.output, rows=image, out=self._update[image])
        last = NormVectors(
            gate=self._layout.single(index).gate, scale=self._layout.last_scale, shift=self._layout.last_shift
        )
        modulation = Modulation(vectors=self._vectors, text_rows=0, text=last, image=last)
        return products.last_norm(stream=self._stream[image], update=self._update[image], modulation=modulation)

    # Attention

    def _attention(self, norms: HeadNorms) -> torch.Tensor:
        both = self._heads[:, : 2 * self._weights.width]
        self._rotate(both.view(both.shape[0], 2 * self._weights.heads, -1), norms)
        query, key, value = self._split(self._heads, 3)
        return self._attend(query, key, value)

    def _rotate(self, heads: torch.Tensor, norms: HeadNorms, *, first_row: int = 0) -> None:
        self._operations.norm_and_rotate(
            heads,
            norms=norms,
            cosine=self._cosine,
            sine=self._sine,
            first_row=first_row,
            text_rows=self._text.stop,
        )

    def _split(self, columns: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """Views (rows, heads, head width) of the parts that lie side by side."""
        return columns.view(columns.shape[0], parts, self._weights.heads, -1).unbind(1)

    def _both_from_norm(self, layers: Streams, *, out: torch.Tensor) -> None:
        """Image rows by the image's layer, text rows by the text's."""
        self._products.from_norm(layers.image, rows=self._image, out=out[self._image])
        self._products.from_norm(layers.text, rows=self._text, out=out[self._text])


def _behind(gate: int, norm: BlockVectors) -> NormVectors:
    return NormVectors(gate=gate, scale=norm.scale, shift=norm.shift)
