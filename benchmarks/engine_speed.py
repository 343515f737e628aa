"""The engine on a full-size FLUX.1-dev with random weights: seconds per image, beside one plain pipeline call.

How fast the card multiplies large matrices is measured in the same run, hot, because that is the ceiling: an H200 is
limited by its power, and its clock falls by a quarter within seconds of work.

Latency does not depend on what the weights are, so nothing is downloaded; the pictures are noise. The checkpoint (about
34 GB) is written once into a folder and read by the engine process exactly like a real one. The plain way is what a
first script does: the whole pipeline in bfloat16, one call, Pillow's PNG. Needs one GPU with 40 GB or more:

    python benchmarks/engine_speed.py --folder /somewhere/with/40GB [--json]
"""

import argparse
import asyncio
import gc
import io
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from report import Cell, print_report
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxpool_worker.agent.engine.client import EngineClient, EngineLimits
from fluxpool_worker.engine.protocol import Device, EngineSpec, Generated, GenerationInputs
from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint

SIDE_PIXELS: Final = 1024
TFLOP_PER_FORWARD: Final = 74.38
"""Counted with torch's FlopCounterMode on the real configuration at 1024x1024 with 512 text tokens."""
CEILING_SECONDS: Final = 4.0
CEILING_SIDE: Final = 8192
PLAIN: Final = "plain pipeline bfloat16"
PROMPT: Final = "a lighthouse in the fog, oil on canvas"


def write_full_size_checkpoint(folder: Path) -> None:
    """FLUX.1-dev's architecture with random weights in a worker's dtypes, and the tiny checkpoint's tokenizers."""
    if (folder / "model_index.json").exists():
        return
    tiny = folder.with_name(folder.name + "-tiny")
    write_tiny_checkpoint(tiny)
    pipeline = FluxPipeline.from_pretrained(str(tiny))
    pipeline.transformer = _random(
        lambda: FluxTransformer2DModel(
            in_channels=64,
            num_layers=19,
            num_single_layers=38,
            attention_head_dim=128,
            num_attention_heads=24,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=True,
        ),
        torch.float16,
    )
    pipeline.text_encoder_2 = _random(
        lambda: T5EncoderModel(
            T5Config(
                vocab_size=32128,
                d_model=4096,
                d_kv=64,
                d_ff=10240,
                num_layers=24,
                num_heads=64,
                feed_forward_proj="gated-gelu",
                is_encoder_decoder=False,
            )
        ),
        torch.bfloat16,
    )
    pipeline.text_encoder = _random(
        lambda: CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                projection_dim=768,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
                bos_token_id=pipeline.tokenizer.bos_token_id,
                eos_token_id=pipeline.tokenizer.eos_token_id,
            )
        ),
        torch.bfloat16,
    )
    pipeline.vae = _random(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        torch.bfloat16,
    )
    pipeline.save_pretrained(str(folder))


def _random(build: Any, dtype: torch.dtype) -> Any:
    """A module with small random weights, made on the GPU: on the CPU the numbers alone take minutes."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            module = build()
    finally:
        torch.set_default_dtype(torch.float32)
    return module.eval().cpu()


def plain_seconds(folder: Path, *, steps: int, runs: int) -> list[float]:
    """One `pipe(...)` call an image in bfloat16, the PNG included; the first run is warm-up and left out."""
    pipe = FluxPipeline.from_pretrained(str(folder), dtype=torch.bfloat16, device_map="cuda", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    seconds = []
    for run in range(runs + 1):
        began = time.perf_counter()
        generator = torch.Generator("cpu").manual_seed(run)
        size = {"width": SIDE_PIXELS, "height": SIDE_PIXELS}
        image = pipe(PROMPT, num_inference_steps=steps, generator=generator, **size).images[0]
        image.save(io.BytesIO(), format="PNG")
        seconds.append(time.perf_counter() - began)
    del pipe
    gc.collect()
    torch.cuda.empty_cache()
    return seconds[1:]


def sustained_tflops(dtype: torch.dtype) -> float:
    """What the card keeps up on a matrix product of 8192 x 8192 x 8192, TFLOP/s over the last half of some seconds."""
    left, right = torch.randn(2, CEILING_SIDE, CEILING_SIDE, device="cuda").to(dtype)
    out = torch.empty_like(left)
    rates, began = [], time.perf_counter()
    while time.perf_counter() - began < CEILING_SECONDS:
        start = time.perf_counter()
        for _ in range(50):
            torch.mm(left, right, out=out)
        torch.cuda.synchronize()
        rates.append(50 * 2 * CEILING_SIDE**3 / (time.perf_counter() - start) / 1e12)
    return statistics.median(rates[len(rates) // 2 :])


async def engine_rows(folder: Path, *, dtype: str, all_steps: Sequence[int], runs: int) -> list[dict[str, Cell]]:
    """The engine process, one job at a time, from sending the job to holding the encoded image."""
    client = EngineClient(
        EngineSpec(model=str(folder), device=Device.CUDA, offline=True, transformer_dtype=dtype),
        limits=EngineLimits(job=600, silence_soft=600, silence_hard=600, load=600),
    )
    rows: list[dict[str, Cell]] = []
    async with asyncio.TaskGroup() as group:
        running = group.create_task(client.run())
        ready = await client.wait_ready()
        for steps in all_steps:
            seconds, denoise = [], []
            for run in range(runs + 1):
                began = time.perf_counter()
                timings_ms = (await _generate(client, steps=steps, seed=run)).timings_ms
                seconds.append(time.perf_counter() - began)
                denoise.append(timings_ms["denoise"] / 1000)
            rows.append(
                {
                    "way": f"engine {dtype}",
                    "steps": steps,
                    "seconds": statistics.median(seconds[1:]),
                    "denoise_seconds": statistics.median(denoise[1:]),
                    "load_seconds": ready.load_seconds,
                }
            )
        await client.stop()
        await running
    return rows


async def _generate(client: EngineClient, *, steps: int, seed: int) -> Generated:
    inputs = GenerationInputs(prompt=PROMPT, width=SIDE_PIXELS, height=SIDE_PIXELS, steps=steps, seed=seed)
    job = await client.submit(
        inputs, on_started=lambda: None, on_step=lambda _step, _total: None, on_device_free=lambda: None
    )
    result: Generated = await job.result
    return result


def _number(cell: Cell) -> float:
    assert isinstance(cell, int | float)
    return float(cell)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint is written and kept")
    parser.add_argument("--steps", type=int, nargs="+", default=[28, 50])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtypes", nargs="+", choices=["float16", "bfloat16"], default=["float16", "bfloat16"])
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no CUDA device; run this on a machine with one GPU of 40 GB or more")
    write_full_size_checkpoint(arguments.folder)
    rows: list[dict[str, Cell]] = [
        {
            "way": PLAIN,
            "steps": steps,
            "seconds": statistics.median(plain_seconds(arguments.folder, steps=steps, runs=arguments.runs)),
            "denoise_seconds": None,
            "load_seconds": None,
        }
        for steps in arguments.steps
    ]
    ratios: dict[str, Cell] = {}
    for dtype in arguments.dtypes:
        ceiling = sustained_tflops(getattr(torch, dtype))
        ratios[f"sustained_tflops_{dtype}"] = ceiling
        found = asyncio.run(engine_rows(arguments.folder, dtype=dtype, all_steps=arguments.steps, runs=arguments.runs))
        for row in found:
            steps, plain = row["steps"], next(plain for plain in rows if plain["steps"] == row["steps"])
            ratios[f"speedup_{dtype}_{steps}_steps"] = _number(plain["seconds"]) / _number(row["seconds"])
            denoised = _number(steps) * TFLOP_PER_FORWARD / _number(row["denoise_seconds"])
            ratios[f"share_of_sustained_{dtype}_{steps}_steps"] = denoised / ceiling
        rows += found
    print_report(ratios=ratios, rows=rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
