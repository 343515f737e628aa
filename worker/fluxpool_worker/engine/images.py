"""From pixels to image files with their parameters inside.

It owns the choice of encoders and their settings; where the parameters are in a file is the knowledge of
`image_parameters`. It must not import torch: it runs beside the next generation.
"""

import io
from typing import Any, Final

import cv2
from PIL import Image

from fluxpool_worker.engine.generator import InputsError, Pixels
from fluxpool_worker.engine.protocol import EncodedImage, GenerationInputs
from fluxpool_worker.image_parameters import ImageParametersError, exif_with_parameters, png_with_parameters

JPEG_QUALITY: Final = 95
"""Visually lossless for generated pictures; 4:4:4 keeps thin coloured lines."""

WEBP_QUALITY: Final = 90
WEBP_METHOD: Final = 4
"""libwebp's own default effort, 81 ms for 1024x1024; 0 would be 38 ms and 12 % larger."""

FORMATS: Final = ("png", "jpeg", "webp")


def encode_image(pixels: Pixels, *, inputs: GenerationInputs, index: int, model: str) -> EncodedImage:
    """Encode image `index` of a job in `inputs.output_format`, its parameters embedded.

    Raises `InputsError` for an unknown format, or for labels that cannot be embedded.
    """
    if inputs.output_format not in FORMATS:
        raise InputsError(f"output_format: {inputs.output_format!r} is unknown; use one of {', '.join(FORMATS)}")
    height, width = pixels.shape[:2]
    seed = inputs.seed + index
    parameters: dict[str, Any] = {
        "prompt": inputs.prompt,
        "negative_prompt": inputs.negative_prompt,
        "width": width,
        "height": height,
        "steps": inputs.steps,
        "seed": seed,
        "guidance": inputs.guidance,
        "true_cfg_scale": inputs.true_cfg_scale,
        "model": model,
        "quality": inputs.quality,
    }
    try:
        payload = _encode(pixels, output_format=inputs.output_format, parameters=parameters, labels=inputs.embedded)
    except ImageParametersError as error:
        raise InputsError(str(error)) from error
    return EncodedImage(
        index=index,
        seed=seed,
        width=width,
        height=height,
        format=inputs.output_format,
        content_type=f"image/{inputs.output_format}",
        payload=payload,
    )


def _encode(pixels: Pixels, *, output_format: str, parameters: dict[str, Any], labels: dict[str, str]) -> bytes:
    if output_format == "png":
        return png_with_parameters(_encode_png(pixels), parameters=parameters, labels=labels)
    exif = exif_with_parameters(parameters=parameters, labels=labels)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if output_format == "jpeg":
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4", exif=exif)
    else:
        image.save(file, "WEBP", quality=WEBP_QUALITY, method=WEBP_METHOD, exif=exif)
    return file.getvalue()


def _encode_png(pixels: Pixels) -> bytes:
    """OpenCV's encoder: 37 ms for 1024x1024, where Pillow's default takes 408 ms for a file 10 % smaller."""
    encoded, payload = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise RuntimeError("OpenCV could not encode the image as PNG")
    return bytes(payload)
