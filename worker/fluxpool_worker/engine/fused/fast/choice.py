"""Whether the fast way can be used on a device, and if not, why. Decided once, when an engine starts."""

from typing import Final

import torch

from fluxpool_worker.engine.fused.fast.operations import scaled
from fluxpool_worker.engine.fused.fast.products import FEWEST_ROWS
from fluxpool_worker.engine.fused.fast.triton_operations import TritonScaledOperations
from fluxpool_worker.engine.fused.fast.weights import ROWS_DTYPE
from fluxpool_worker.engine.fused.weights import Linear

MIN_CAPABILITY: Final = (8, 9)
"""The first with 8-bit floating point in tensor cores (Ada)."""
TOLERANCE: Final = 0.02
"""Of the difference to the product of the same 8-bit numbers in float32, relative; rounding to bfloat16 makes 0.002."""


def why_not_fast(device: torch.device) -> str | None:
    """Why this device cannot compute fast images, given that it computes exact ones the fused way; None when it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, and 8-bit products need 8.9"
    try:
        difference = _difference_of_products(device)
    except (RuntimeError, AttributeError, TypeError) as error:
        return f"torch {torch.__version__} computes no row-wise scaled products here ({type(error).__name__}: {error})"
    return None if difference < TOLERANCE else f"row-wise scaled products are wrong here, by {difference:.3f}"


def _difference_of_products(device: torch.device) -> float:
    generator = torch.Generator(device).manual_seed(0)
    # A layer of FLUX.1: cuBLASLt refuses many columns with few rows or outputs, here 15,360 with 64 outputs.
    count, columns, outputs = FEWEST_ROWS, 12_288, 3_072
    values = torch.randn(count, columns, device=device, generator=generator)
    weights = torch.randn(outputs, columns, device=device, generator=generator)
    # Scales that differ from row to row: a product that took one scale for all would be noticed.
    rows = scaled(values * torch.arange(1, count + 1, device=device)[:, None])
    layer = scaled(weights * torch.arange(1, outputs + 1, device=device)[:, None])
    bias = torch.zeros(outputs, device=device, dtype=ROWS_DTYPE)
    out = torch.empty(count, outputs, device=device, dtype=ROWS_DTYPE)
    TritonScaledOperations().linear(rows, Linear(layer.values, bias, layer.scales), out=out)
    wanted = (rows.values.float() * rows.scales[:, None]) @ (layer.values.float() * layer.scales[:, None]).t()
    return float((out.float() - wanted).norm() / wanted.norm())
