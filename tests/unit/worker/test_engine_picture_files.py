"""The file of a stranger becomes the pixels to start from, or is refused before it is decoded."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fluxpool_worker.engine.generator import InputsError
from fluxpool_worker.engine.latents.picture_files import MAX_JPEG_SCANS, MAX_PICTURE_PIXELS, read_picture

WIDTH, HEIGHT = 64, 32
LEFT, RIGHT = (200, 30, 30), (30, 30, 200)
ORIENTATION = 0x0112
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
GREY, RGB, GREY_ALPHA, RGB_ALPHA = 0, 2, 4, 6


def two_halves(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    image = Image.new("RGB", (width, height), LEFT)
    image.paste(RIGHT, (width // 2, 0, width, height))
    return image


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(file: bytes) -> np.ndarray[Any, Any]:
    image = read_picture(file, width=WIDTH, height=HEIGHT)
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    return np.asarray(image).astype(int)


def is_close(pixel: Any, colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    return bool(np.abs(np.asarray(pixel) - np.asarray(colour)).max() <= tolerance)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", zlib.crc32(kind + content))


def png(width: int, height: int, *, bits: int, colours: int, rows: bytes = b"", before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, bits, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_that_states(width: int, height: int) -> bytes:
    return png(width, height, bits=8, colours=RGB)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})])
def test_each_format_is_read(kind: str, options: dict[str, Any]) -> None:
    pixels = read(encoded(two_halves(), kind, **options))
    assert is_close(pixels[16, 8], LEFT)
    assert is_close(pixels[16, 56], RIGHT)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused_whatever_pillow_reads(kind: str) -> None:
    with pytest.raises(InputsError, match=r"^image: is no PNG, JPEG or WebP file"):
        read(encoded(two_halves(), kind))


@pytest.mark.parametrize("size", [(7072, 7072), (100_000, 100_000), (2**31 - 1, 1)])
def test_a_decompression_bomb_is_refused_by_what_it_states(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PICTURE_PIXELS
    with pytest.raises(InputsError, match=r"^image: has .* pixels; at most 50,000,000 pixels are allowed"):
        read(png_that_states(*size))


def with_scans(file: bytes, scans: int) -> bytes:
    """The JPEG with its last scan repeated."""
    last = file.rindex(START_OF_SCAN)
    return file[:-2] + file[last:-2] * (scans - file.count(START_OF_SCAN)) + END_OF_IMAGE


@pytest.mark.parametrize("between", [b"", b"garbage", b"\xff\xff\xff", b"\xff\xd3", b"\xff\xfe\x00\x04\xff\xd9"])
def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(between: bytes) -> None:
    progressive = encoded(two_halves(), "JPEG", progressive=True)
    file = with_scans(progressive, MAX_JPEG_SCANS + 1)
    start = file.index(START_OF_SCAN)
    with pytest.raises(InputsError, match=r"^image: has more than 100 scans; save it with fewer"):
        read(file[:start] + between + file[start:])


def test_scans_up_to_the_limit_are_decoded() -> None:
    progressive = encoded(two_halves(), "JPEG", progressive=True, quality=95)
    assert is_close(read(with_scans(progressive, MAX_JPEG_SCANS))[16, 8], LEFT)


def test_thumbnails_and_what_follows_the_end_of_a_jpeg_are_no_scans_of_it() -> None:
    many = START_OF_SCAN * (MAX_JPEG_SCANS + 1)
    file = encoded(two_halves(), "JPEG", quality=95, comment=many)
    assert is_close(read(file + many)[16, 8], LEFT)


def test_a_camera_s_file_of_several_pictures_is_the_first() -> None:
    further = Image.new("RGB", (WIDTH, HEIGHT), (0, 255, 0))
    file = encoded(two_halves(), "MPO", save_all=True, append_images=[further], quality=95)
    assert is_close(read(file)[16, 8], LEFT)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        png_that_states(64, 32),
        png_that_states(0, 0),
        encoded(two_halves())[:-40],
        encoded(two_halves(), "JPEG")[:400],
        encoded(two_halves(), "WEBP")[:60],
        encoded(two_halves()).replace(b"IDAT", b"IDAX"),
    ],
    ids=["empty", "signature", "no-pixels", "no-size", "cut-png", "cut-jpeg", "cut-webp", "unknown-chunk"],
)
def test_a_damaged_file_is_refused_with_the_remedy(file: bytes) -> None:
    with pytest.raises(InputsError, match=r"^image: .*; send a PNG, JPEG or WebP file"):
        read(file)


@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP"]), place=st.floats(0, 1), noise=st.binary(min_size=1, max_size=40))
def test_any_damage_is_read_or_refused_naming_the_field(kind: str, place: float, noise: bytes) -> None:
    file = bytearray(encoded(two_halves(), kind))
    start = int(place * len(file))
    file[start : start + len(noise)] = noise
    try:
        read(bytes(file))
    except InputsError as error:
        assert str(error).startswith("image: ")  # noqa: PT017 - either end is right


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
        (99, None),
    ],
)
def test_the_orientation_of_a_camera_is_applied(kind: str, orientation: int, turn: Image.Transpose | None) -> None:
    upright = two_halves()
    upright.paste((240, 240, 240), (0, 0, WIDTH // 4, HEIGHT // 2))
    # As a camera stores it: the transformation that undoes what a viewer does.
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    pixels = read(encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {})))
    assert is_close(pixels[4, 4], (240, 240, 240), 30)
    assert is_close(pixels[28, 4], LEFT, 30)
    assert is_close(pixels[16, 56], RIGHT, 30)


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    pixels = read(encoded(two_halves(), "JPEG", quality=95, exif=b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff"))
    assert is_close(pixels[16, 8], LEFT)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode: str) -> None:
    image = two_halves().convert("RGBA")
    image.putalpha(0)
    image.paste((0, 0, 0, 255), (WIDTH // 2, 0, WIDTH, HEIGHT))
    pixels = read(encoded(image.convert(mode)))
    assert is_close(pixels[16, 8], (255, 255, 255))
    assert is_close(pixels[16, 56], (0, 0, 0))


def test_a_colour_that_stands_for_transparency_becomes_white() -> None:
    pixels = read(encoded(two_halves(), transparency=LEFT))
    assert is_close(pixels[16, 8], (255, 255, 255))
    assert is_close(pixels[16, 56], RIGHT)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (WIDTH, HEIGHT), 128),
        Image.fromarray(np.full((HEIGHT, WIDTH), 128 << 8, dtype=np.uint16)),
        Image.new("P", (WIDTH, HEIGHT), 0),
        Image.new("1", (WIDTH, HEIGHT), 1),
    ],
    ids=["grey", "grey-16-bit", "palette", "black-and-white"],
)
def test_other_kinds_of_pixels_keep_their_brightness(image: Image.Image) -> None:
    expected = 128 if image.mode in {"L", "I;16"} else image.convert("L").getpixel((0, 0))
    assert np.abs(read(encoded(image)) - expected).max() <= 1


@pytest.mark.parametrize(
    ("colours", "pixel", "expected"),
    [
        (RGB, (0x8000, 0x4000, 0xFFFF), (128, 64, 255)),
        (GREY_ALPHA, (0x8000, 0xFFFF), (128, 128, 128)),
        (GREY_ALPHA, (0x8000, 0), (255, 255, 255)),
        (RGB_ALPHA, (0x8000, 0x4000, 0xFFFF, 0x8000), (191, 159, 255)),
    ],
    ids=["colours", "opaque", "transparent", "half-transparent"],
)
def test_16_bits_are_read_by_their_upper_half(
    colours: int, pixel: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    row = b"\x00" + struct.pack(f"!{len(pixel)}H", *pixel) * WIDTH
    pixels = read(png(WIDTH, HEIGHT, bits=16, colours=colours, rows=row * HEIGHT))
    assert is_close(pixels[16, 8], expected, tolerance=1)


def test_a_16_bit_level_that_stands_for_transparency_becomes_white() -> None:
    row = b"\x00" + struct.pack("!H", 0x8000) * (WIDTH // 2) + struct.pack("!H", 0x4000) * (WIDTH // 2)
    transparent = chunk(b"tRNS", struct.pack("!H", 0x8000))
    pixels = read(png(WIDTH, HEIGHT, bits=16, colours=GREY, rows=row * HEIGHT, before=transparent))
    assert is_close(pixels[16, 8], (255, 255, 255))
    assert is_close(pixels[16, 56], (64, 64, 64))


def test_cmyk_is_read() -> None:
    pixels = read(encoded(two_halves().convert("CMYK"), "JPEG", quality=95))
    assert is_close(pixels[16, 8], LEFT, 30)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_read(kind: str) -> None:
    file = encoded(two_halves(), kind, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT), (0, 255, 0))])
    assert is_close(read(file)[16, 8], LEFT, 40)


@pytest.mark.parametrize(("size", "edge"), [((256, 32), "sides"), ((64, 256), "top and bottom")])
def test_it_is_cropped_at_its_centre_and_never_distorted(size: tuple[int, int], edge: str) -> None:
    image = Image.new("RGB", size, (0, 255, 0))
    left, top = (size[0] - WIDTH) // 2, (size[1] - HEIGHT) // 2
    image.paste(two_halves(), (left, top))
    pixels = read(encoded(image))
    assert is_close(pixels[16, 8], LEFT), edge
    assert is_close(pixels[16, 56], RIGHT), edge
    assert not (pixels[:, :, 1] > 100).any(), edge


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_any_shape_can_be_read(size: tuple[int, int]) -> None:
    assert is_close(read(encoded(Image.new("RGB", size, LEFT)))[16, 8], LEFT)
