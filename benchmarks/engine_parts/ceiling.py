"""How fast the card multiplies large matrices for seconds on end: what any forward on it is to be compared with.

An H200 is limited by its power: within seconds of work its clock falls by a quarter, so a short run flatters.
"""

import time
from collections.abc import Callable
from typing import Final

import torch
from report import Cell

from engine_parts.ground import Ground, free_device_memory, median
from engine_parts.readings import Readings

SIDE: Final = 8192
SECONDS: Final = 4.0
CALLS: Final = 50
"""Between two looks at the clock."""
FP8_MIN_CAPABILITY: Final = (8, 9)


def measure(ground: Ground) -> list[dict[str, Cell]]:
    """A row for each dtype: TFLOP/s in the first instants and over the last half of the run."""
    side, seconds = (128, 0.05) if ground.is_tiny else (SIDE, SECONDS)
    rows = []
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    products = {name: _product(ground, dtype, side=side) for name, dtype in dtypes.items()}
    if not ground.is_tiny and torch.cuda.get_device_capability() >= FP8_MIN_CAPABILITY:
        products["float8 rowwise"] = _fp8_product(side)
    for name, product in products.items():
        with Readings() as readings:
            rates, half_way = _rates(product, side=side, seconds=seconds, is_cuda=not ground.is_tiny)
            measured = readings.since(half_way)
        rows.append(
            {
                "dtype": name,
                "first_tflops": rates[0],
                "sustained_tflops": median(rates[len(rates) // 2 :]),
                **{key: measured[key] for key in ("watts", "sm_mhz", "celsius", "at_power_limit")},
            }
        )
    products.clear()
    free_device_memory()
    return rows


def _product(ground: Ground, dtype: torch.dtype, *, side: int) -> Callable[[], object]:
    left, right = torch.randn(2, side, side, device=ground.device).to(dtype)
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def _fp8_product(side: int) -> Callable[[], object]:
    left, right = torch.randn(2, side, side, device="cuda").to(torch.float8_e4m3fn)
    rows, columns = torch.ones(side, 1, device="cuda"), torch.ones(1, side, device="cuda")

    def product() -> object:
        return torch._scaled_mm(  # noqa: SLF001 - torch's only way to its fp8 product
            left, right.t(), rows, columns, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return product


def _rates(product: Callable[[], object], *, side: int, seconds: float, is_cuda: bool) -> tuple[list[float], float]:
    """TFLOP/s of each batch of calls, and when half of the time was over."""
    rates: list[float] = []
    product()
    began = time.perf_counter()
    while (start := time.perf_counter()) - began < seconds or not rates:
        for _ in range(CALLS):
            product()
        if is_cuda:
            torch.cuda.synchronize()
        rates.append(CALLS * 2 * side**3 / (time.perf_counter() - start) / 1e12)
    return rates, began + seconds / 2
