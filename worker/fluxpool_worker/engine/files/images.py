"""From pixels to image files that say what made them, with the parameters that the task allows inside.

It owns the choice of encoders and their settings; where the parameters are in a file is the knowledge of
`image_parameters`. It must not import torch: it runs beside the next generation. Signing is the agent's, which has the
key (`agent.task.task_store`).
"""

import io
from typing import Any, Final, assert_never

from PIL import Image

from fluxpool_contract.messages import EmbedParameters
from fluxpool_worker.engine.files.png_file import encode_png
from fluxpool_worker.engine.generator import InputsError, Pixels
from fluxpool_worker.engine.protocol import EncodedImage, GenerationInputs
from fluxpool_worker.image_parameters import ImageParametersError, exif_with_parameters, png_entries, png_with_text
from fluxpool_worker.marks import XMP_PNG_KEYWORD, DigitalSourceType, creator_tool, xmp_packet

JPEG_QUALITY: Final = 95
"""Visually lossless for generated pictures; 4:4:4 keeps thin coloured lines."""

WEBP_QUALITY: Final = 90
WEBP_METHOD: Final = 4
"""libwebp's own default effort, 81 ms for 1024x1024; 0 would be 38 ms and 12 % larger."""

FORMATS: Final = ("png", "jpeg", "webp")


def encode_image(
    pixels: Pixels,
    *,
    inputs: GenerationInputs,
    index: int,
    model: str,
    source_type: DigitalSourceType = DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA,
) -> EncodedImage:
    """Encode image `index` of a job in `inputs.output_format`, with an XMP packet and what else the job lets it say.

    Raises `InputsError` for an unknown format, or for labels that cannot be embedded.
    """
    if inputs.output_format not in FORMATS:
        raise InputsError(f"output_format: {inputs.output_format!r} is unknown; use one of {', '.join(FORMATS)}")
    height, width = pixels.shape[:2]
    seed = inputs.seed + index
    numbers: dict[str, Any] = {
        "width": width,
        "height": height,
        "steps": inputs.steps,
        "seed": seed,
        "guidance": inputs.guidance,
        "true_cfg_scale": inputs.true_cfg_scale,
        "model": model,
        "quality": inputs.quality,
        **({} if inputs.image is None else {"strength": inputs.strength}),
        **({"loras": [{"name": lora.name, "scale": lora.scale} for lora in inputs.loras]} if inputs.loras else {}),
    }
    parameters: dict[str, Any] | None
    match inputs.embed_parameters:
        case EmbedParameters.ALL:
            parameters = {"prompt": inputs.prompt, "negative_prompt": inputs.negative_prompt, **numbers}
        case EmbedParameters.NO_PROMPT:
            parameters = numbers
        case EmbedParameters.NONE:
            parameters = None
        case _:
            assert_never(inputs.embed_parameters)
    xmp = xmp_packet(source_type=source_type, creator=creator_tool(None if parameters is None else model))
    try:
        payload = _encode(pixels, inputs=inputs, parameters=parameters, xmp=xmp)
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
        source_type=source_type,
    )


def _encode(pixels: Pixels, *, inputs: GenerationInputs, parameters: dict[str, Any] | None, xmp: str) -> bytes:
    labels = inputs.embedded
    if inputs.output_format == "png":
        entries = {} if parameters is None else png_entries(parameters=parameters, labels=labels)
        return png_with_text(encode_png(pixels), {XMP_PNG_KEYWORD: xmp, **entries})
    metadata = {"xmp": xmp.encode()}
    if parameters is not None:
        metadata["exif"] = exif_with_parameters(parameters=parameters, labels=labels)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if inputs.output_format == "jpeg":
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4", **metadata)
    else:
        image.save(file, "WEBP", quality=WEBP_QUALITY, method=WEBP_METHOD, **metadata)
    return file.getvalue()
