"""`fluxpool verify`: what it says of files that workers wrote, of others' files, and of what is no image at all."""

import hashlib
import http.server
import io
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fluxpool_cli.main import run
from fluxpool_worker.engine.files.images import encode_image
from fluxpool_worker.engine.protocol import GenerationInputs
from fluxpool_worker.image_parameters import png_with_text
from fluxpool_worker.marks import XMP_PNG_KEYWORD, DigitalSourceType, xmp_packet
from fluxpool_worker.marks.signing import FileSigner
from kit.waiting import PATIENCE, wait_until
from kit.workers.signing_keys import SigningKey, make_signing_key

FORMATS = pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
TRAINED = DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return make_signing_key()


def encoded(output_format: str = "png") -> bytes:
    inputs = GenerationInputs(
        prompt="a fox",
        width=48,
        height=32,
        steps=4,
        seed=7,
        output_format=output_format,
        embedded={"request_id": "req_1"},
    )
    pixels = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return encode_image(pixels, inputs=inputs, index=0, model="flux-tiny").payload


def foreign(image_format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, image_format)
    return file.getvalue()


def sign(payload: bytes, key: SigningKey, folder: Path, *, output_format: str = "png") -> bytes:
    signer = FileSigner(key.write(folder / "key"))
    return signer.sign(payload, content_type=f"image/{output_format}", source_type=TRAINED)


class Verified:
    """The end of one command."""

    def __init__(self, code: int, document: dict[str, Any], complaints: str) -> None:
        self.code, self.complaints = code, complaints
        self.files = document["files"]

    @property
    def file(self) -> dict[str, Any]:
        [file] = self.files
        return dict(file)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., Verified]:
    """Runs the command with `--json`."""

    def verify(*arguments: str | Path) -> Verified:
        code = run(["verify", *map(str, arguments), "--json"])
        printed = capsys.readouterr()
        return Verified(code, json.loads(printed.out), printed.err)

    return verify


def save(folder: Path, payload: bytes, name: str = "0.img") -> Path:
    file = folder / name
    file.write_bytes(payload)
    return file


@FORMATS
def test_a_file_with_xmp_alone_is_marked(verify: Callable[..., Verified], tmp_path: Path, output_format: str) -> None:
    ended = verify(save(tmp_path, encoded(output_format)))

    assert ended.code == 0
    assert (ended.file["verdict"], ended.file["marks"], ended.file["ours"]) == ("marked", ["xmp"], None)
    assert ended.file["source_type"] == TRAINED.value
    assert ended.file["parameters"]["request_id"] == "req_1"


@FORMATS
def test_a_signed_file_is_ours_below_the_given_root(
    verify: Callable[..., Verified], key: SigningKey, tmp_path: Path, output_format: str
) -> None:
    file = save(tmp_path, sign(encoded(output_format), key, tmp_path, output_format=output_format))
    root = save(tmp_path, key.anchor.encode(), "root.pem")

    unknown, trusted = verify(file), verify("--trust", root, file)

    assert (unknown.code, unknown.file["verdict"], unknown.file["ours"]) == (0, "marked", None)
    assert unknown.file["credentials"]["state"] == "valid"
    assert (trusted.code, trusted.file["verdict"], trusted.file["ours"]) == (0, "marked", True)
    assert trusted.file["marks"] == ["xmp", "c2pa"]
    credentials = trusted.file["credentials"]
    assert (credentials["state"], credentials["signer"], credentials["issuer"], credentials["signed_at"]) == (
        "trusted",
        "Acme Signer",
        "Acme Pictures",
        None,
    )


def test_a_signer_of_another_root_is_not_trusted(
    verify: Callable[..., Verified], key: SigningKey, tmp_path: Path
) -> None:
    file = save(tmp_path, sign(encoded(), key, tmp_path))
    other = save(tmp_path, make_signing_key().anchor.encode(), "root.pem")

    ended = verify("--trust", other, file)

    assert (ended.code, ended.file["verdict"], ended.file["ours"]) == (1, "untrusted", None)
    assert verify("--trust", other, save(tmp_path, encoded(), "unsigned.png")).file["problem"] == "it is not signed"


@FORMATS
def test_a_changed_picture_is_invalid(
    verify: Callable[..., Verified], key: SigningKey, tmp_path: Path, output_format: str
) -> None:
    signed = bytearray(sign(encoded(output_format), key, tmp_path, output_format=output_format))
    pixels = {"png": b"IDAT", "jpeg": b"\xff\xda", "webp": b"VP8 "}[output_format]
    signed[signed.rindex(pixels) + 40] ^= 1

    ended = verify(save(tmp_path, bytes(signed)))

    assert (ended.code, ended.file["verdict"]) == (1, "invalid")
    assert "mismatch" in ended.file["problem"]


async def test_an_expired_certificate_is_told_from_a_change(verify: Callable[..., Verified], tmp_path: Path) -> None:
    short = make_signing_key(valid_until=timedelta(seconds=3 * PATIENCE))
    file = save(tmp_path, sign(encoded(), short, tmp_path))

    await wait_until(
        lambda: verify(file).file["verdict"] == "invalid", deadline_seconds=30, what="the certificate to expire"
    )

    assert "signingCredential.expired" in verify(file).file["problem"]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_a_foreign_picture_is_not_marked(verify: Callable[..., Verified], tmp_path: Path, image_format: str) -> None:
    ended = verify(save(tmp_path, foreign(image_format)))

    assert (ended.code, ended.file["verdict"], ended.file["marks"]) == (1, "not-marked", [])
    assert "1 of 1 files are not marked" in ended.complaints


def test_a_converted_file_has_lost_its_signature_and_says_so(
    verify: Callable[..., Verified], key: SigningKey, tmp_path: Path
) -> None:
    converted = io.BytesIO()
    with Image.open(io.BytesIO(sign(encoded(), key, tmp_path))) as image:
        image.save(converted, "JPEG")

    assert verify(save(tmp_path, converted.getvalue())).file["verdict"] == "not-marked"


def test_marks_that_contradict_each_other_are_invalid(
    verify: Callable[..., Verified], key: SigningKey, tmp_path: Path
) -> None:
    composite = DigitalSourceType.COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA
    packet = xmp_packet(source_type=composite, creator="x")
    payload = sign(png_with_text(foreign(), {XMP_PNG_KEYWORD: packet}), key, tmp_path)

    ended = verify(save(tmp_path, payload))

    assert (ended.code, ended.file["verdict"]) == (1, "invalid")


def _empty(folder: Path) -> Path:
    return save(folder, b"")


def _text(folder: Path) -> Path:
    return save(folder, b"no picture\n" * 100)


def _truncated(folder: Path) -> Path:
    return save(folder, encoded()[:60])


def _sparse(folder: Path) -> Path:
    file = folder / "sparse.png"
    with file.open("wb") as target:
        target.truncate(200 * 1024 * 1024)
    return file


def _loop(folder: Path) -> Path:
    file = folder / "loop.png"
    file.symlink_to(file)
    return file


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.png")
    return folder / "pipe.png"


def _folder(folder: Path) -> Path:
    return folder


def _missing(folder: Path) -> Path:
    return folder / "missing.png"


def _bomb(folder: Path, *, side_pixels: int = 40_000) -> Path:
    header = bytearray(foreign())
    header[16:24] = side_pixels.to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return save(folder, bytes(header))


def _small_bomb(folder: Path) -> Path:
    return _bomb(folder, side_pixels=10_000)


def _entities(folder: Path) -> Path:
    packet = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><x>&c;</x>'
    return save(folder, png_with_text(foreign(), {XMP_PNG_KEYWORD: packet}))


@pytest.mark.parametrize(
    ("make", "printed"),
    [
        (_empty, "no readable PNG, JPEG or WebP"),
        (_text, "no readable PNG, JPEG or WebP"),
        (_truncated, "no readable PNG, JPEG or WebP"),
        (_sparse, "files of more than"),
        (_loop, "symbolic links"),
        (_pipe, "is no regular file"),
        (_folder, "is a folder"),
        (_missing, "No such file"),
        (_bomb, "too large"),
        (_small_bomb, "too large"),
        (_entities, "no readable PNG, JPEG or WebP"),
    ],
)
def test_what_cannot_be_read_ends_in_a_sentence_and_with_2(
    verify: Callable[..., Verified], tmp_path: Path, make: Callable[[Path], Path], printed: str
) -> None:
    marked = save(tmp_path, encoded(), "marked.png")

    ended = verify(make(tmp_path), marked)

    assert ended.code == 2
    assert [file["verdict"] for file in ended.files] == ["unreadable", "marked"]
    assert printed in ended.files[0]["problem"]
    assert "Traceback" not in ended.complaints


def test_damaged_exif_leaves_the_marks_and_makes_no_noise(verify: Callable[..., Verified], tmp_path: Path) -> None:
    payload = bytearray(encoded("jpeg"))
    entries = payload.index(b"Exif\0\0") + 14
    payload[entries : entries + 2] = b"\xff\x00"

    ended = verify(save(tmp_path, bytes(payload)))

    assert (ended.code, ended.file["marks"]) == (0, ["xmp"])
    assert ended.complaints == ""


def test_no_text_of_a_file_or_of_its_name_reaches_the_terminal_raw(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    packet = xmp_packet(source_type=TRAINED, creator="x").replace("x</xmp", "evil&#x9b;2J&#10;forged: marked</xmp")
    entries = {XMP_PNG_KEYWORD: packet, "parameters": '{"prompt": "\\u001b[31m\\nforged"}'}
    file = save(tmp_path, png_with_text(foreign(), entries), "a\x1b[2Jb.png")

    assert run(["verify", str(file)]) == 0

    printed = capsys.readouterr()
    assert not {"\x1b", "\x9b"} & set(printed.out + printed.err)
    assert not any(line.startswith("forged") for line in printed.out.splitlines())


@pytest.mark.parametrize("content", [None, b"", b"\xff\0", b"no certificate"])
def test_roots_that_are_none_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes | None
) -> None:
    root = tmp_path / "root.pem" if content is None else save(tmp_path, content, "root.pem")

    assert run(["verify", "--trust", str(root), str(save(tmp_path, encoded()))]) == 2

    assert "name a file with root certificates" in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def gateway() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server that answers every request with a view, which the test fills in."""
    view: dict[str, Any] = {"request_id": "req_1", "status": "succeeded", "status_url": "/", "images": []}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(view).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Nothing is logged."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", view
        server.shutdown()


def test_a_gateway_knows_its_files_by_their_digest_and_the_licence_of_their_model(
    verify: Callable[..., Verified],
    gateway: tuple[str, dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url, view = gateway
    payload = encoded()
    file, foreign_file = save(tmp_path, payload), save(tmp_path, foreign(), "foreign.png")
    unknown = verify("--url", url, file)
    digest = hashlib.sha256(payload).hexdigest()
    image = {"index": 0, "url": "/", "width": 48, "height": 32, "seed": 7, "format": "png", "content_type": "image/png"}
    view["images"] = [{**image, "bytes": len(payload), "sha256": digest}]
    view |= {"model": "/models/schnell", "model_family": "FLUX.1-schnell", "model_license": "Apache-2.0"}

    known = verify("--url", url, file, foreign_file)

    assert unknown.file["ours"] is False
    assert [found["ours"] for found in known.files] == [True, None]
    assert [found["model_license"] for found in (unknown.file, *known.files)] == [None, "Apache-2.0", None]
    assert run(["verify", "--url", url, str(file)]) == 0
    assert (
        "  model       /models/schnell (FLUX.1-schnell; licence of the weights: Apache-2.0)" in capsys.readouterr().out
    )
