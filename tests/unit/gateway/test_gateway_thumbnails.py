"""Thumbnails of images: what they are made of, what cannot be one, and the route."""

import asyncio
import io
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from fluxpool_gateway.images.thumbnail import (
    AT_ONCE,
    MAX_PIXELS,
    Thumbnails,
    ThumbnailSize,
    UnreadableImageError,
    thumbnail_of,
)
from fluxpool_worker.marks.xmp import XMP_PNG_KEYWORD, DigitalSourceType, xmp_packet
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings, succeeded

PATH = "/v1/generations/r-1/images/0"
XMP = xmp_packet(source_type=DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA, creator="Fluxpool")


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (640, 320), **options: Any) -> bytes:
    written = io.BytesIO()
    image = Image.linear_gradient("L").resize(size).convert(mode)
    if mode.endswith("A"):
        image.putalpha(100)
    image.save(written, kind, **options)
    return written.getvalue()


def opened(payload: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(payload), formats=("WEBP",))
    image.load()
    return image


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "P"), ("PNG", "1"), ("PNG", "I;16"),
        ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "RGBA"),
    ],
)  # fmt: skip
def test_a_thumbnail_of_any_picture_is_a_small_webp_of_its_shape(kind: str, mode: str) -> None:
    small = opened(thumbnail_of(picture(kind, mode), ThumbnailSize.SMALL))
    assert small.size == (256, 128)
    darkest, lightest = small.convert("L").getextrema()
    assert (int(str(darkest)) < 30, int(str(lightest)) > 220) == (True, True)
    assert small.has_transparency_data == mode.endswith("A")


def test_a_small_picture_is_not_made_larger() -> None:
    assert opened(thumbnail_of(picture(size=(64, 96)), ThumbnailSize.LARGE)).size == (64, 96)


def test_the_mark_that_a_model_made_it_stays_and_the_prompt_does_not() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(XMP_PNG_KEYWORD, XMP)
    texts.add_text("parameters", "a secret prompt")
    small = thumbnail_of(picture(pnginfo=texts), ThumbnailSize.SMALL)
    assert opened(small).info["xmp"].decode() == XMP
    assert b"secret" not in small
    for kind in ("JPEG", "WEBP"):
        marked = picture(kind, xmp=XMP.encode(), exif=b"Exif\0\0secret")
        small = thumbnail_of(marked, ThumbnailSize.SMALL)
        assert XMP.encode() in small
        assert b"secret" not in small
    assert len(thumbnail_of(picture("WEBP", xmp=b"x" * 100_000), ThumbnailSize.SMALL)) < 50_000


def png_of(width: int, height: int) -> bytes:
    """One that says of itself to be so large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("payload", "match"),
    [
        (b"", "is damaged"),
        (b"<html>", "is damaged"),
        (picture("GIF", "P"), "no PNG, JPEG or WebP"),
        (picture("TIFF"), "no PNG, JPEG or WebP"),
        (picture()[:-100], "is damaged"),
        (png_of(4096, MAX_PIXELS // 4096 + 1), "4096 x 4097 pixels"),
        (png_of(12_000, 12_000), "too many"),
        (png_of(60_000, 60_000), "too many"),
        (png_of(64, 64), "is damaged"),
    ],
    ids=["empty", "text", "gif", "tiff", "cut", "large", "larger", "bomb", "hollow"],
)
def test_what_is_no_picture_or_too_large_is_one_error(payload: bytes, match: str) -> None:
    with pytest.raises(UnreadableImageError, match=match):
        thumbnail_of(payload, ThumbnailSize.SMALL)


@pytest.mark.parametrize("chunk", [b"\0\0\0\0sRGB\x10\x1c\xd3\xce", b"\0\0\0\0IHDR\xa8\xa1\xae\x0a"])
def test_a_chunk_that_pillow_does_not_expect_behind_the_pixels_is_one_error(chunk: bytes) -> None:
    """As in python-pillow/Pillow#6430 and #6252, which raise other errors than Pillow documents."""
    head, end, rest = picture().rpartition(b"\0\0\0\0IEND")
    with pytest.raises(UnreadableImageError, match="is damaged"):
        thumbnail_of(head + chunk + end + rest, ThumbnailSize.SMALL)


FILES = [picture(size=(40, 30)), picture("JPEG", size=(40, 30)), picture("WEBP", size=(40, 30)), picture("PNG", "P")]


@settings(max_examples=400, deadline=None)
@given(
    file=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.floats(0.1, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_a_thumbnail_or_one_error(file: bytes, changes: list[tuple[float, int]], kept: float) -> None:
    damaged = bytearray(file)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    try:
        opened(thumbnail_of(bytes(damaged[: int(kept * len(damaged))]), ThumbnailSize.SMALL))
    except UnreadableImageError:
        return


async def test_few_are_in_memory_at_once() -> None:
    thumbnails, reading, most = Thumbnails(), 0, 0
    all_read, may_read = asyncio.Event(), asyncio.Event()

    async def read() -> bytes:
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        if reading == AT_ONCE:
            all_read.set()
        await may_read.wait()
        reading -= 1
        return FILES[0]

    async with asyncio.TaskGroup() as group:
        made = [group.create_task(thumbnails.make(read, ThumbnailSize.SMALL)) for _ in range(6)]
        await all_read.wait()
        may_read.set()
    assert most == AT_ONCE
    assert {opened(task.result()).size for task in made} == {(40, 30)}


def test_a_gateway_starts_without_the_image_library() -> None:
    code = "import sys, fluxpool_gateway.http.app; print('PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


# The route


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        running.project(succeeded("r-1", "default"))
        folder = tmp_path / "images/default/2026/04/05/r-1"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(picture())
        yield running


@pytest.mark.parametrize("size", list(ThumbnailSize))
async def test_a_thumbnail_may_be_kept_by_its_client_and_has_a_tag_of_its_own(gateway: Gateway, size: int) -> None:
    answer = await gateway.one.ask("GET", f"{PATH}?thumb={size}", gateway.admin)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    assert opened(answer.content).size == (size, size // 2)
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"
    tag = answer.headers["etag"]
    whole = await gateway.one.ask("GET", PATH, gateway.admin)
    assert (whole.content, whole.headers["etag"] == tag) == (picture(), False)
    again = await gateway.one.ask("GET", f"{PATH}?thumb={size}", gateway.admin, headers={"if-none-match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = await gateway.one.ask("GET", PATH, gateway.admin, headers={"if-none-match": tag})
    assert other.status_code == 200


@pytest.mark.parametrize("size", ["", "0", "257", "-256", "256px", "1e3", "\uff19", "null"])
async def test_another_size_is_refused_with_the_possible_ones(gateway: Gateway, size: str) -> None:
    answer = await gateway.one.ask("GET", f"{PATH}?thumb={size}", gateway.admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    (problem,) = answer.json()["errors"]
    assert problem == {"pointer": "#/thumb", "detail": "must be 256 or 512"}


async def test_a_damaged_and_an_absent_image_are_told_apart(gateway: Gateway, tmp_path: Path) -> None:
    (file,) = (tmp_path / "images").rglob("0.png")
    file.write_bytes(picture()[:200])
    damaged = await gateway.one.ask("GET", f"{PATH}?thumb=256", gateway.admin)
    assert (damaged.status_code, damaged.json()["error"]["code"]) == (409, "image_unreadable")
    assert damaged.json()["detail"] == (
        "image 0 of task r-1 is damaged, or is no PNG, JPEG or WebP file; fetch it without thumb"
    )
    assert "cache-control" not in damaged.headers
    file.unlink()
    absent = await gateway.one.ask("GET", f"{PATH}?thumb=256", gateway.admin)
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "not_found")


async def test_another_tenant_has_no_thumbnail_of_it(gateway: Gateway) -> None:
    stranger = await gateway.create(tenant="other")
    assert (await gateway.one.ask("GET", f"{PATH}?thumb=256", stranger)).status_code == 404
    gateway.project(succeeded("r-2", "other", object_key="default/2026/04/05/r-1/0.png"))
    assert (await gateway.one.ask("GET", "/v1/generations/r-2/images/0?thumb=256", stranger)).status_code == 404
