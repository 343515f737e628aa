"""What image files say of themselves in XMP and leave out of their parameters, read back by Pillow and byte by byte."""

import importlib.metadata
import io
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxpool_contract.messages.task import EmbedParameters
from fluxpool_worker.engine.files.images import encode_image
from fluxpool_worker.engine.protocol import EncodedImage, GenerationInputs
from fluxpool_worker.image_parameters import ImageParametersError, read_parameters
from fluxpool_worker.marks import DigitalSourceType

PROMPT = "a lighthouse that only its keeper may know of, bei Nacht über der Küste"
NEGATIVE_PROMPT = "verschwommene Möwen"
REQUEST_ID = "req_known_to_few"
VERSION = importlib.metadata.version("fluxpool")
FORMATS = pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])


def encode(*, model: str = "flux-tiny", source_type: DigitalSourceType | None = None, **changes: Any) -> EncodedImage:
    inputs = GenerationInputs(
        **{
            "prompt": PROMPT,
            "negative_prompt": NEGATIVE_PROMPT,
            "width": 48,
            "height": 32,
            "steps": 4,
            "seed": 1_234_567_890,
            "embedded": {"request_id": REQUEST_ID},
            **changes,
        }
    )
    pixels = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    of_type = {} if source_type is None else {"source_type": source_type}
    return encode_image(pixels, inputs=inputs, index=0, model=model, **of_type)


def xmp_of(payload: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(payload)) as image:
        described: dict[str, Any] = image.getxmp()["xmpmeta"]["RDF"]["Description"]
    return described


def readings(payload: bytes) -> Iterator[bytes]:
    """The file as it is, and every chunk that may be compressed, inflated."""
    yield payload
    if not payload.startswith(b"\x89PNG"):
        return
    offset = 8
    while offset < len(payload):
        length = int.from_bytes(payload[offset : offset + 4], "big")
        kind, body = payload[offset + 4 : offset + 8], payload[offset + 8 : offset + 8 + length]
        offset += 12 + length
        if kind in {b"zTXt", b"iTXt", b"iCCP"}:
            for start in range(len(body)):
                inflating = zlib.decompressobj()
                try:
                    yield inflating.decompress(body[start:])
                except zlib.error:
                    continue


def spellings(text: str) -> Iterator[bytes]:
    """How a file may write the text: in the encodings of PNG, XMP and EXIF, and as JSON."""
    yield from (text.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be", "latin-1"))
    yield text.encode("ascii", "backslashreplace")
    yield text.encode("ascii", "xmlcharrefreplace")


def says(payload: bytes, text: str) -> bool:
    return any(spelling in reading for reading in readings(payload) for spelling in spellings(text))


@FORMATS
@pytest.mark.parametrize("source_type", list(DigitalSourceType))
def test_every_file_says_in_xmp_that_a_model_made_it(output_format: str, source_type: DigitalSourceType) -> None:
    encoded = encode(output_format=output_format, source_type=source_type)

    xmp = xmp_of(encoded.payload)
    assert xmp["DigitalSourceType"] == source_type.value
    assert xmp["CreatorTool"] == f"Fluxpool {VERSION} (flux-tiny)"
    assert encoded.source_type is source_type


@FORMATS
def test_a_picture_from_a_text_alone_is_trained_algorithmic_media(output_format: str) -> None:
    assert xmp_of(encode(output_format=output_format).payload)["DigitalSourceType"] == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )


@FORMATS
@pytest.mark.parametrize("embed", list(EmbedParameters))
def test_the_source_type_is_there_however_little_else_is(output_format: str, embed: EmbedParameters) -> None:
    xmp = xmp_of(encode(output_format=output_format, embed_parameters=embed).payload)

    assert xmp["DigitalSourceType"] == DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA.value


@FORMATS
def test_the_namespace_is_the_one_that_readers_look_for(output_format: str) -> None:
    payload = encode(output_format=output_format).payload

    assert b'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"' in payload
    assert b"<Iptc4xmpExt:DigitalSourceType>http://" in payload


@FORMATS
def test_a_model_s_name_cannot_break_the_packet(output_format: str) -> None:
    named = encode(output_format=output_format, model='</rdf:RDF> & "Füchse" \x07\ud800')

    assert xmp_of(named.payload)["CreatorTool"] == f'Fluxpool {VERSION} (</rdf:RDF> & "Füchse" ??)'


@FORMATS
def test_no_byte_holds_a_prompt_unless_the_pool_says_so(output_format: str) -> None:
    whole = encode(output_format=output_format, embed_parameters=EmbedParameters.ALL).payload
    without = encode(output_format=output_format, embed_parameters=EmbedParameters.NO_PROMPT).payload

    assert says(whole, PROMPT), "the search finds what is there"
    assert says(whole, NEGATIVE_PROMPT)
    assert not says(without, PROMPT)
    assert not says(without, NEGATIVE_PROMPT)
    assert not any(says(without, word) for word in (*PROMPT.split(), *NEGATIVE_PROMPT.split()) if len(word) > 4)
    assert read_parameters(without) == {
        "width": 48,
        "height": 32,
        "steps": 4,
        "seed": 1_234_567_890,
        "guidance": 3.5,
        "true_cfg_scale": 1.0,
        "model": "flux-tiny",
        "quality": "exact",
        "request_id": REQUEST_ID,
    }


@FORMATS
def test_none_leaves_out_all_that_belongs_to_the_task(output_format: str) -> None:
    payload = encode(output_format=output_format, embed_parameters=EmbedParameters.NONE).payload

    for text in (PROMPT, NEGATIVE_PROMPT, REQUEST_ID, "flux-tiny", "1234567890"):
        assert not says(payload, text)
    with pytest.raises(ImageParametersError, match="carries no generation parameters"):
        read_parameters(payload)
    assert xmp_of(payload)["CreatorTool"] == f"Fluxpool {VERSION}"


def test_no_prompt_is_embedded_unless_something_asks_for_it() -> None:
    assert not says(encode().payload, PROMPT)
    assert not says(encode().payload, NEGATIVE_PROMPT)


@FORMATS
def test_the_picture_is_the_same_with_and_without_parameters(output_format: str) -> None:
    pictures = []
    for embed in EmbedParameters:
        payload = encode(output_format=output_format, embed_parameters=embed).payload
        with Image.open(io.BytesIO(payload)) as image:
            pictures.append(image.convert("RGB").tobytes())

    assert len(set(pictures)) == 1
