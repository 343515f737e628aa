"""How far plain diffusers and the fused forward are from float32 with the same weights, noise and text.

Error is ||found - reference|| / ||reference||. Weights, noise and text are numbers that float16, bfloat16 and float32
all hold, so that only the arithmetic differs. One forward is at time 1 with guidance 4, which every dtype holds too;
the loop's times are what they are, and diffusers rounds them to the transformer's dtype.
"""

from typing import Any, Final

import torch
from report import Cell

from engine_parts import plain
from engine_parts.ground import PROMPT, Ground, free_device_memory
from fluxpool_worker.engine.fused.decoder import fuse_decoder
from fluxpool_worker.engine.fused.decoder_operations import DecoderOperations, TritonDecoderOperations
from fluxpool_worker.engine.fused.denoising import FusedDenoiser
from fluxpool_worker.engine.fused.operations import Operations
from fluxpool_worker.engine.text_encoding import Text, TextEncoders

TEXT_TOKENS: Final = 512
DTYPES: Final = (torch.bfloat16, torch.float16)
LEAST: Final = 1e-3
"""Smaller numbers of the noise become zero: float16 has fewer digits for them."""


def measure(ground: Ground) -> list[dict[str, Cell]]:
    """A row for each dtype and stage."""
    forward = (ground.side, 1, 4.0)
    loop = (ground.side // 2, ground.steps[0], 3.5)
    pipeline = plain.load(ground, "bfloat16")
    with torch.no_grad():
        text = TextEncoders(pipeline, tokens=TEXT_TOKENS).encode(PROMPT)
        rows = _decoders(ground, pipeline)
        references = {case: _plain(pipeline, text, case, dtype=torch.float32) for case in (forward, loop)}
        for dtype in DTYPES:
            founds = {case: _plain(pipeline, text, case, dtype=dtype) for case in references}
            for case, reference in references.items():
                side, steps, guidance = case
                noise = _noise(pipeline, side)
                denoiser = _fused(ground, pipeline)
                ours, again = (
                    denoiser.denoise(
                        noise.to(dtype),
                        positive=text,
                        negative=None,
                        width=side,
                        height=side,
                        steps=steps,
                        guidance=guidance,
                        true_cfg_scale=1.0,
                        after_step=lambda: None,
                    )
                    for _ in range(2)
                )
                rows.append(
                    {
                        "what": f"transformer, {steps} steps at {side}" if steps > 1 else f"one forward at {side}",
                        "dtype": str(dtype).removeprefix("torch."),
                        "plain": _error(founds[case], reference, start=noise),
                        "ours": _error(ours, reference, start=noise),
                        "repeats_equal": bool(torch.equal(ours, again)),
                    }
                )
                del denoiser
    del pipeline
    free_device_memory()
    return rows


def _fused(ground: Ground, pipeline: Any) -> FusedDenoiser:
    if ground.is_tiny:
        return FusedDenoiser(pipeline, operations=Operations())
    # Triton looks for a driver when it is imported.
    from fluxpool_worker.engine.fused.triton_operations import TritonOperations  # noqa: PLC0415

    return FusedDenoiser(pipeline, operations=TritonOperations())


def _noise(pipeline: Any, side: int) -> torch.Tensor:
    """Packed, (1, tokens, channels), in float32."""
    noise, _ = pipeline.prepare_latents(
        1,
        pipeline.transformer.config.in_channels // 4,
        side,
        side,
        torch.float32,
        pipeline.transformer.device,
        torch.Generator("cpu").manual_seed(7),
    )
    noise[noise.abs() < LEAST] = 0
    return torch.as_tensor(noise.to(torch.bfloat16).float())


def _plain(pipeline: Any, text: Text, case: tuple[int, int, float], *, dtype: torch.dtype) -> torch.Tensor:
    side, steps, guidance = case
    pipeline.transformer.to(dtype)
    free_device_memory()
    (latents,) = pipeline(
        prompt_embeds=text.sequence.to(dtype),
        pooled_prompt_embeds=text.pooled.to(dtype),
        guidance_scale=guidance,
        height=side,
        width=side,
        num_inference_steps=steps,
        latents=_noise(pipeline, side).to(dtype),
        max_sequence_length=TEXT_TOKENS,
        output_type="latent",
        return_dict=False,
    )
    return torch.as_tensor(latents)


def _decoders(ground: Ground, pipeline: Any) -> list[dict[str, Cell]]:
    """The VAE on one picture's latents: the fused way changes it in place, so it comes last."""
    vae = pipeline.vae
    generator = torch.Generator("cpu").manual_seed(8)
    latents = torch.randn(1, vae.config.latent_channels, ground.side // 8, ground.side // 8, generator=generator)
    latents = latents.to(vae.device, torch.bfloat16)

    def decoded() -> torch.Tensor:
        return torch.as_tensor(vae.decode(latents.to(vae.dtype), return_dict=False)[0]).float()

    vae.to(torch.float32)
    reference = decoded()
    vae.to(torch.bfloat16)
    found = decoded()
    fuse_decoder(vae, operations=DecoderOperations() if ground.is_tiny else TritonDecoderOperations())
    ours, again = decoded(), decoded()
    return [
        {
            "what": f"VAE at {ground.side}",
            "dtype": "bfloat16",
            "plain": _error(found, reference),
            "ours": _error(ours, reference),
            "repeats_equal": bool(torch.equal(ours, again)),
        }
    ]


def _error(found: torch.Tensor, reference: torch.Tensor, *, start: torch.Tensor | None = None) -> float:
    """Of the way from `start`, where there is one: of what was added to the noise."""
    begin = torch.zeros_like(reference) if start is None else start
    difference = (found.float() - reference.float()).norm()
    return float(difference / (reference.float() - begin.float()).norm())
