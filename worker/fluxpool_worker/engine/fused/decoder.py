"""The VAE decoder of FLUX.1 with fused norms: diffusers' modules and weights, another forward in its small blocks.

The image is kept channels_last, which tensor cores want; each convolution's bias is added by the norm or the sum behind
it instead of in a pass of its own. One image a call.
"""

import types
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from fluxpool_worker.engine.fused.decoder_operations import DecoderOperations


class FusedGroupNorm(torch.nn.Module):
    """Takes the place of a `GroupNorm`, and of the SiLU behind it."""

    def __init__(self, norm: torch.nn.GroupNorm, *, silu: bool, operations: DecoderOperations) -> None:
        super().__init__()
        self._norm, self._silu, self._operations = norm, silu, operations

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of one image."""
        return self._operations.group_norm(x, self._norm, silu=self._silu)


def why_not_fused_decoder(vae: Any) -> str | None:
    """The reason to leave the decoder as it is; None when the fused way covers it."""
    for name, module in vae.decoder.named_modules():
        if isinstance(module, ResnetBlock2D):
            if module.time_emb_proj is not None or module.upsample is not None or module.downsample is not None:
                return f"decoder.{name} is not plain"
            if not isinstance(module.nonlinearity, torch.nn.SiLU) or module.output_scale_factor != 1.0:
                return f"decoder.{name} has another activation or scale"
        if isinstance(module, torch.nn.GroupNorm):
            if module.num_channels & (module.num_channels - 1):
                return f"decoder.{name} has {module.num_channels} channels, which is no power of two"
            group = module.num_channels // module.num_groups
            if group & (group - 1):
                return f"decoder.{name} has groups of {group} channels, which is no power of two"
    return None


def fuse_decoder(vae: Any, *, operations: DecoderOperations) -> None:
    """Change the decoder of a diffusers `AutoencoderKL` in place; the weights stay as they are."""
    vae.decoder.to(memory_format=torch.channels_last)
    for module in vae.decoder.modules():
        if isinstance(module, ResnetBlock2D):
            module.forward = types.MethodType(_resnet_forward(operations), module)
    for module in vae.decoder.modules():
        if isinstance(module, Attention) and module.group_norm is not None:
            module.group_norm = FusedGroupNorm(module.group_norm, silu=False, operations=operations)
    vae.decoder.conv_norm_out = FusedGroupNorm(vae.decoder.conv_norm_out, silu=True, operations=operations)
    vae.decoder.conv_act = torch.nn.Identity()


def _resnet_forward(operations: DecoderOperations) -> Any:
    def forward(block: Any, x: torch.Tensor, temb: None = None) -> torch.Tensor:
        """Diffusers' `ResnetBlock2D` without its time embedding (`temb`), dropout and sampling."""
        del temb
        convolve = torch.nn.functional.conv2d
        found = operations.group_norm(x, block.norm1, silu=True)
        found = convolve(found, block.conv1.weight, padding=1)
        found = operations.group_norm(found, block.norm2, silu=True, added=block.conv1.bias)
        found = convolve(found, block.conv2.weight, padding=1)
        if block.conv_shortcut is None:
            return operations.add_residual(found, x, bias=block.conv2.bias, residual_bias=None)
        shortcut = convolve(x, block.conv_shortcut.weight)
        return operations.add_residual(found, shortcut, bias=block.conv2.bias, residual_bias=block.conv_shortcut.bias)

    return forward
