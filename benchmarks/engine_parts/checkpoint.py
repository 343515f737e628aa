"""The checkpoints that `engine.py` uses: FLUX.1-dev's architecture in full size, or the tiny one of the tests.

Speed and memory do not depend on what the weights are, so nothing is downloaded. They are the same on every machine of
one kind: normal with a deviation of 0.02, norms near 1, modulation of a size that moves every norm.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxpool_worker.engine.kernel_cache import flux_vae
from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint

__all__ = ["write_full_size_checkpoint", "write_tiny_checkpoint"]

DEVIATION: Final = 0.02
NORM_DEVIATION: Final = 0.1
MODULATION_DEVIATION: Final = 0.3
"""Of the biases from which shifts, scales and gates come: near zero, no block would change anything."""


def write_full_size_checkpoint(folder: Path) -> None:
    """FLUX.1-dev's architecture in bfloat16 (34 GB) with the tiny checkpoint's tokenizers; needs a GPU.

    A folder that holds one already is left alone.
    """
    if (folder / "model_index.json").exists():
        return
    tiny = folder.with_name(folder.name + "-tiny")
    write_tiny_checkpoint(tiny)
    pipeline: Any = FluxPipeline.from_pretrained(str(tiny))
    pipeline.transformer = _random(_transformer, seed=1)
    pipeline.text_encoder_2 = _random(_t5, seed=2)
    pipeline.text_encoder = _random(lambda: _clip(pipeline.tokenizer), seed=3)
    pipeline.vae = _random(flux_vae, seed=4)
    pipeline.save_pretrained(str(folder))


def _random(build: Callable[[], Any], *, seed: int) -> Any:
    """A module in bfloat16 with random weights, made on the GPU: on the CPU the numbers alone take minutes."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            module = build()
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator("cuda").manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            mean, deviation = _distribution(name, parameter.ndim)
            parameter.normal_(mean, deviation, generator=generator)
    return module.eval().cpu()


def _distribution(name: str, dimensions: int) -> tuple[float, float]:
    if dimensions >= 2:
        return 0.0, DEVIATION
    if name.endswith("weight"):
        return 1.0, NORM_DEVIATION
    is_modulation = ".norm" in name or name.startswith("norm_out")
    return 0.0, MODULATION_DEVIATION if is_modulation else DEVIATION


def _transformer() -> Any:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=True,
    )


def _t5() -> Any:
    return T5EncoderModel(
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
    )


def _clip(tokenizer: Any) -> Any:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
