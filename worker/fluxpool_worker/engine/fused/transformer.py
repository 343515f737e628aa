"""The forward of FLUX.1's transformer for one picture, on packed weights and fixed buffers.

The arithmetic is that of diffusers' `FluxTransformer2DModel` (0.42); what differs is how it is cut into launches:
modulation vectors come from outside, the residual stream of text and image is one buffer, GELU belongs to its matrix
product, and the output layer of a single block is two products that accumulate instead of one over a concatenation.
Knows nothing of steps, schedules or prompts.
"""

from collections.abc import Callable

import torch

from fluxpool_worker.engine.fused.modulation import BlockVectors, ModulationLayout, NormVectors
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.fused.weights import DoubleBlock, HeadNorms, Linear, PackedWeights, SingleBlock, Streams

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""From queries, keys and values (rows, heads, head width) with any stride between rows to (query rows, width)."""


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attend by torch's own function. On sm_90 it takes cuDNN's kernel, which reads strided rows without copies."""
    asked, known, told = (heads.transpose(0, 1)[None] for heads in (query, key, value))
    found = torch.nn.functional.scaled_dot_product_attention(asked, known, told)
    return found[0].transpose(0, 1).reshape(query.shape[0], -1)


class FusedTransformer:
    """One token count: buffers of about 0.4 GB at 1024x1024; the weights are shared by all."""

    def __init__(
        self,
        weights: PackedWeights,
        *,
        text_rows: int,
        image_rows: int,
        operations: Operations,
        attend: Attention = attention,
    ) -> None:
        """Allocate the buffers for `text_rows` + `image_rows` tokens."""
        self._weights, self._operations, self._attend = weights, operations, attend
        self._text_rows = text_rows
        self._layout = ModulationLayout(
            width=weights.width,
            double_blocks=len(weights.double_blocks),
            single_blocks=len(weights.single_blocks),
        )
        rows, width = text_rows + image_rows, weights.width
        output = weights.transformer.proj_out
        self._stream = self._empty(rows, width)
        self._normed = self._empty(rows, width)
        self._heads = self._empty(rows, 3 * width)
        self._update = self._empty(rows, width)
        self._hidden = self._empty(rows, 4 * width)
        # The last block's image rows ask, all rows answer: text rows are not needed any more.
        self._last_query = self._empty(image_rows, width)
        self._last_key_value = self._empty(rows, 2 * width)
        self._velocity = self._empty(image_rows, output.out_features)
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
        transformer, text_rows = self._weights.transformer, self._text_rows
        self._vectors.copy_(vectors)
        self._stream[:text_rows] = context
        _linear(latents.to(self._weights.dtype), _layer(transformer.x_embedder), out=self._stream[text_rows:])
        self._first_norm()
        for index, double in enumerate(self._weights.double_blocks):
            self._double(index, double)
        *singles, last = self._weights.single_blocks
        for index, single in enumerate(singles):
            self._single(index, single)
        self._last_single(len(singles), last)
        _linear(self._normed[text_rows:], _layer(transformer.proj_out), out=self._velocity)
        return self._velocity

    # Norms

    def _norm(
        self, *, update: torch.Tensor | None, text: NormVectors, image: NormVectors, rows: slice = slice(None)
    ) -> None:
        self._operations.add_and_norm(
            stream=self._stream[rows],
            update=update[rows] if update is not None else None,
            out=self._normed[rows],
            vectors=self._vectors,
            text_rows=max(0, self._text_rows - (rows.start or 0)),
            text=text,
            image=image,
        )

    def _first_norm(self) -> None:
        text, image = self._layout.double_text(0).attention, self._layout.double_image(0).attention
        self._norm(update=None, text=_behind(text.gate, text), image=_behind(image.gate, image))

    # Blocks

    def _double(self, index: int, block: DoubleBlock) -> None:
        text, image = self._layout.double_text(index), self._layout.double_image(index)
        self._both(self._normed, block.query_key_value, out=self._heads)
        self._both(self._attention(block.norms), block.output, out=self._update)
        self._norm(
            update=self._update,
            text=_behind(text.attention.gate, text.feed_forward),
            image=_behind(image.attention.gate, image.feed_forward),
        )
        rows = self._text_rows
        self._operations.linear_gelu(self._normed[rows:], block.up.image, out=self._hidden[rows:])
        self._operations.linear_gelu(self._normed[:rows], block.up.text, out=self._hidden[:rows])
        self._both(self._hidden, block.down, out=self._update)
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
        _linear(self._normed, block.query_key_value, out=self._heads)
        found = self._attention(block.norms)
        self._operations.linear_gelu(self._normed, block.up, out=self._hidden)
        _output(block, attended=found, hidden=self._hidden, out=self._update)
        following = _behind(self._layout.single(index).gate, self._layout.single(index + 1))
        self._norm(update=self._update, text=following, image=following)

    def _last_single(self, index: int, block: SingleBlock) -> None:
        image, width, layer = slice(self._text_rows, None), self._weights.width, block.query_key_value
        query_layer = Linear(layer.weight[:width], layer.bias[:width])
        _linear(self._normed[image], query_layer, out=self._last_query)
        _linear(self._normed, Linear(layer.weight[width:], layer.bias[width:]), out=self._last_key_value)
        heads = self._weights.heads
        query, (key, value) = self._split(self._last_query, 1)[0], self._split(self._last_key_value, 2)
        self._rotate(query, HeadNorms(block.norms.text[:heads], block.norms.image[:heads]), first_row=self._text_rows)
        self._rotate(key, HeadNorms(block.norms.text[heads:], block.norms.image[heads:]))
        found = self._attend(query, key, value)
        self._operations.linear_gelu(self._normed[image], block.up, out=self._hidden[image])
        _output(block, attended=found, hidden=self._hidden[image], out=self._update[image])
        last = NormVectors(
            gate=self._layout.single(index).gate, scale=self._layout.last_scale, shift=self._layout.last_shift
        )
        self._norm(update=self._update, text=last, image=last, rows=image)

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
            text_rows=self._text_rows,
        )

    def _split(self, columns: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """Views (rows, heads, head width) of the parts that lie side by side."""
        return columns.view(columns.shape[0], parts, self._weights.heads, -1).unbind(1)

    def _both(self, rows: torch.Tensor, layers: Streams, *, out: torch.Tensor) -> None:
        """Image rows by the image's layer, text rows by the text's."""
        split = self._text_rows
        _linear(rows[split:], layers.image, out=out[split:])
        _linear(rows[:split], layers.text, out=out[:split])


def _behind(gate: int, norm: BlockVectors) -> NormVectors:
    return NormVectors(gate=gate, scale=norm.scale, shift=norm.shift)


def _layer(module: torch.nn.Module) -> Linear:
    return Linear(weight=torch.as_tensor(module.weight), bias=torch.as_tensor(module.bias))


def _linear(rows: torch.Tensor, layer: Linear, *, out: torch.Tensor) -> None:
    # `out` must be contiguous, as slices of rows are: torch leaves cuBLASLt's epilogue otherwise.
    torch.addmm(layer.bias, rows, layer.weight.t(), out=out)


def _output(block: SingleBlock, *, attended: torch.Tensor, hidden: torch.Tensor, out: torch.Tensor) -> None:
    # The larger product first: 0.5 to 1 ms a forward faster than the other order.
    torch.addmm(block.output_bias, hidden, block.output_of_feed_forward.t(), out=out)
    out.addmm_(attended, block.output_of_attention.t())
