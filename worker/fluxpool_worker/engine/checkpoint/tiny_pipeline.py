"""The architecture of the tiny model. Imports torch and diffusers; `engine.tiny_checkpoint` owns the folder on disk.

Everything that shapes behaviour is as in FLUX.1-dev (four VAE blocks and so sizes in multiples of 16, 512 T5 and 77
CLIP tokens, dynamic shift of the schedule, the guidance embedding); only widths and depths are small.
"""

import string
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

HIDDEN_SIZE = 32
"""Width of both text encoders."""


def build_tiny_pipeline(*, seed: int, guidance_embeds: bool) -> Any:
    """The pipeline with random weights; the same arguments give the same weights on every machine."""
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
