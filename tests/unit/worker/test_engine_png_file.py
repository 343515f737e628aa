"""The PNG encoder, read back by Pillow, which shares no code with it."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fluxpool_worker.engine.files.png_file import encode_png


def _noise(*, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _image_data(png: bytes) -> bytes:
    """The body of the only IDAT chunk."""
    length = struct.unpack("!I", png[33:37])[0]
    assert png[37:41] == b"IDAT"
    return png[41 : 41 + length]


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (16, 16), (127, 40), (128, 40), (129, 40), (256, 2048), (1040, 208), (2048, 16)]
)
def test_pillow_reads_the_same_pixels(height: int, width: int) -> None:
    pixels = _noise(height=height, width=width)

    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (width, height))
        assert np.array_equal(np.asarray(image), pixels)


def test_the_strips_are_one_stream_with_the_checksum_of_all_rows() -> None:
    height, width = 300, 64

    stream = zlib.decompressobj()
    rows = stream.decompress(_image_data(encode_png(_noise(height=height, width=width))))

    # zlib compares the checksum before it calls a stream ended.
    assert stream.eof
    assert stream.unused_data == b""
    assert len(rows) == height * (1 + 3 * width)


def test_equal_pixels_give_equal_files() -> None:
    assert len({encode_png(_noise(height=512, width=48)) for _ in range(5)}) == 1


def test_smooth_pictures_are_no_larger_than_pillow_makes_them_by_a_quarter() -> None:
    down, across = np.mgrid[0:512, 0:512]
    grain = np.random.default_rng(3).normal(0, 2, (512, 512, 3))
    waves = 128 + 90 * np.sin(down / 70)[..., None] * np.cos(across / 90)[..., None]
    pixels = np.clip(waves + grain, 0, 255).astype(np.uint8)
    pillow = io.BytesIO()
    Image.fromarray(pixels).save(pillow, "PNG")

    assert len(encode_png(pixels)) <= 1.25 * len(pillow.getvalue())


def test_pixels_that_are_a_view_are_encoded_as_they_look() -> None:
    pixels = _noise(height=200, width=100)[::2, ::-1]

    with Image.open(io.BytesIO(encode_png(pixels))) as image:
        assert np.array_equal(np.asarray(image), pixels)
