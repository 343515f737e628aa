"""Parameters inside image files: written by the engine's encoders, read back with Pillow alone."""

import io
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from fluxpool_contract.messages.task import EmbedParameters
from fluxpool_worker.engine.files.images import encode_image
from fluxpool_worker.engine.generator import InputsError, Pixels
from fluxpool_worker.engine.protocol import GenerationInputs
from fluxpool_worker.image_parameters import ImageParametersError, read_parameters

UNICODE_PROMPT = 'Nachtmärkte in 東京, "neon" 🦊\nsecond line \\ slash'


def make_inputs(**changes: Any) -> GenerationInputs:
    return GenerationInputs(
        **{
            "prompt": UNICODE_PROMPT,
            "negative_prompt": "unscharf",
            "width": 48,
            "height": 32,
            "steps": 4,
            "seed": 7,
            "embed_parameters": EmbedParameters.ALL,
            "embedded": {"request_id": "req_1", "title": "Füchse"},
            **changes,
        }
    )


@pytest.fixture
def pixels() -> Pixels:
    """48 wide, 32 high; red on the left, blue on the right."""
    image = np.zeros((32, 48, 3), dtype=np.uint8)
    image[:, :24, 0] = 255
    image[:, 24:, 2] = 255
    return image


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", [UNICODE_PROMPT, "plain ascii"])
def test_parameters_survive_every_format(pixels: Pixels, output_format: str, prompt: str) -> None:
    encoded = encode_image(
        pixels, inputs=make_inputs(output_format=output_format, prompt=prompt), index=2, model="flux-tiny"
    )

    assert read_parameters(encoded.payload) == {
        "prompt": prompt,
        "negative_prompt": "unscharf",
        "width": 48,
        "height": 32,
        "steps": 4,
        "seed": 9,
        "guidance": 3.5,
        "true_cfg_scale": 1.0,
        "model": "flux-tiny",
        "quality": "exact",
        "request_id": "req_1",
        "title": "Füchse",
    }
    assert (encoded.index, encoded.seed, encoded.width, encoded.height) == (2, 9, 48, 32)
    assert (encoded.format, encoded.content_type) == (output_format, f"image/{output_format}")


@pytest.mark.parametrize(("output_format", "tolerance"), [("png", 0), ("jpeg", 8), ("webp", 8)])
def test_pixels_keep_their_colours_and_places(pixels: Pixels, output_format: str, tolerance: int) -> None:
    encoded = encode_image(pixels, inputs=make_inputs(output_format=output_format), index=0, model="m")

    with Image.open(io.BytesIO(encoded.payload)) as image:
        assert image.format == output_format.upper()
        decoded = np.asarray(image.convert("RGB")).astype(int)
    away_from_the_edge = np.r_[0:16, 32:48]
    difference = np.abs(decoded - pixels.astype(int))[:, away_from_the_edge]
    assert difference.max() <= tolerance


def test_png_text_has_the_keys_of_other_tools(pixels: Pixels) -> None:
    encoded = encode_image(pixels, inputs=make_inputs(), index=0, model="m")

    with Image.open(io.BytesIO(encoded.payload)) as image:
        image.verify()  # checks every chunk's checksum
    with Image.open(io.BytesIO(encoded.payload)) as image:
        assert isinstance(image, PngImageFile)
        text = dict(image.text)
    assert json.loads(text["parameters"])["prompt"] == UNICODE_PROMPT
    assert text["request_id"] == "req_1"
    assert text["Software"] == "Fluxpool"


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_prompts_too_long_for_exif_are_truncated_and_marked(pixels: Pixels, output_format: str) -> None:
    long_prompt = "🦊" * 10_000
    inputs = make_inputs(output_format=output_format, prompt=long_prompt, negative_prompt=long_prompt)

    found = read_parameters(encode_image(pixels, inputs=inputs, index=0, model="m").payload)

    assert found["prompt"] == found["negative_prompt"] == "🦊" * 2_000
    assert found["prompts_shortened"] is True
    assert found["request_id"] == "req_1"


def test_png_keeps_prompts_of_any_length(pixels: Pixels) -> None:
    long_prompt = "🦊" * 10_000

    found = read_parameters(encode_image(pixels, inputs=make_inputs(prompt=long_prompt), index=0, model="m").payload)

    assert found["prompt"] == long_prompt


@pytest.mark.parametrize("output_format", ["png", "jpeg"])
@pytest.mark.parametrize(
    ("embedded", "part"),
    [
        ({"seed": "1"}, "'seed' is a parameter's own name"),
        ({"parameters": "x"}, "'parameters' is a parameter's own name"),
        ({"": "x"}, "must be 1 to 79 printable"),
        ({" padded": "x"}, "must be 1 to 79 printable"),
        ({"ключ": "x"}, "must be 1 to 79 printable"),
        ({"k" * 80: "x"}, "must be 1 to 79 printable"),
        ({"note": "a\0b"}, "NUL"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    pixels: Pixels, output_format: str, embedded: dict[str, str], part: str
) -> None:
    with pytest.raises(InputsError, match=part):
        encode_image(pixels, inputs=make_inputs(output_format=output_format, embedded=embedded), index=0, model="m")


def test_an_unknown_format_names_the_known_ones(pixels: Pixels) -> None:
    with pytest.raises(InputsError, match="output_format: 'gif' is unknown; use one of png, jpeg, webp"):
        encode_image(pixels, inputs=make_inputs(output_format="gif"), index=0, model="m")


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_an_image_without_parameters_has_its_own_error(image_format: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, image_format)

    with pytest.raises(ImageParametersError, match="carries no generation parameters"):
        read_parameters(file.getvalue())


@pytest.mark.parametrize("payload", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_a_file_that_is_no_image_has_its_own_error(payload: bytes) -> None:
    with pytest.raises(ImageParametersError, match="not a readable image"):
        read_parameters(payload)


def test_the_reader_needs_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, fluxpool_worker.image_parameters; "
        "sys.exit(str([name for name in ('torch', 'numpy', 'diffusers') if name in sys.modules]))"
    )

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.stderr.strip() == "[]"
