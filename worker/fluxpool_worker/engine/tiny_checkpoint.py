"""A tiny FLUX checkpoint with random weights: 1 MB on disk, built offline, read by the very code that reads a real one.

It owns the tiny model's architecture and the folder on disk; it must not know who generates with it. Everything that
shapes behaviour is as in FLUX.1-dev (four VAE blocks and so sizes in multiples of 16, 512 T5 and 77 CLIP tokens,
dynamic shift of the schedule, the guidance embedding); only widths and depths are small. Its pictures are colourful
noise that depends on prompt and seed.

`python -m fluxpool_worker.engine.tiny_checkpoint FOLDER` writes one.
"""

import argparse
import json
import shutil
import string
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from fluxpool_worker.engine.checkpoint.families import TINY_MARKER

RECIPE_VERSION = 1
"""Raised with every change that makes the same seed give other pictures."""

HIDDEN_SIZE = 32
"""Width of both text encoders."""


def write_tiny_checkpoint(folder: Path, *, seed: int = 0, guidance_embeds: bool = True) -> None:
    """Write the checkpoint into `folder`; the same arguments give the same pictures on every machine.

    `guidance_embeds=False` builds the shape of FLUX.1-schnell instead of FLUX.1-dev. The folder appears whole or not
    at all, and one that already holds this very checkpoint is left alone. Raises `FileExistsError` when it holds
    anything else.
    """
    marker = {"recipe_version": RECIPE_VERSION, "seed": seed, "guidance_embeds": guidance_embeds}
    if _holds(folder, marker):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _build_pipeline(seed=seed, guidance_embeds=guidance_embeds).save_pretrained(staging)
        (staging / TINY_MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        staging.chmod(0o755)  # mkdtemp's 0700 would hide the model from a worker that runs as another user
        _publish(staging, folder, marker)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, folder: Path, marker: dict[str, Any]) -> None:
    try:
        staging.rename(folder)
    except OSError:
        # Another process that wrote the same checkpoint meanwhile has done our work.
        if not _holds(folder, marker):
            raise


def _holds(folder: Path, marker: dict[str, Any]) -> bool:
    """Whether the folder is this checkpoint already; raises `FileExistsError` when it is something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a new or empty folder for the tiny checkpoint")
    marker_file = folder / TINY_MARKER
    if marker_file.is_file() and json.loads(marker_file.read_text(encoding="utf-8")) == marker:
        return True
    if any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and not the tiny checkpoint {marker}; name a new or empty folder, "
            "or delete this one yourself"
        )
    return False


def _build_pipeline(*, seed: int, guidance_embeds: bool) -> Any:
    clip_tokenizer = _clip_tokenizer()
    t5_tokenizer = _t5_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FluxPipeline(
            scheduler=_scheduler(),
            vae=_vae(),
            text_encoder=_clip(clip_tokenizer),
            tokenizer=clip_tokenizer,
            text_encoder_2=_t5(t5_tokenizer),
            tokenizer_2=t5_tokenizer,
            transformer=_transformer(guidance_embeds=guidance_embeds),
        )


def _byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes in CLIP's vocabulary (GPT-2's byte-to-unicode table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    shifted = [256 + index for index in range(256 - len(printable))]
    return [chr(code) for code in printable + shifted]


def _clip_tokenizer() -> Any:
    symbols = _byte_symbols()
    pieces = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], model_max_length=77)


def _t5_tokenizer() -> Any:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *string.ascii_letters, *string.digits, *string.punctuation]
    vocabulary = [(piece, -float(rank)) for rank, piece in enumerate(pieces)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _clip(tokenizer: Any) -> Any:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN_SIZE,
            intermediate_size=64,
            projection_dim=HIDDEN_SIZE,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,  # the pooled output is read at this token
            pad_token_id=tokenizer.pad_token_id,
        )
    ).eval()


def _t5(tokenizer: Any) -> Any:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=HIDDEN_SIZE,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
        )
    ).eval()


def _transformer(*, guidance_embeds: bool) -> Any:
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=HIDDEN_SIZE,
        pooled_projection_dim=HIDDEN_SIZE,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),  # must sum to attention_head_dim
    ).eval()


def _vae() -> Any:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()


def _scheduler() -> Any:
    """FLUX.1-dev's schedule, with its real values."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def main() -> None:
    """Write the checkpoint into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="fluxpool_worker.engine.tiny_checkpoint", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_tiny_checkpoint(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
