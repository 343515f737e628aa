"""Content credentials in image files: written with keys made here, judged by the c2pa library's own reader."""

import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ObjectIdentifier
from cryptography.x509.oid import ExtendedKeyUsageOID
from PIL import Image

from fluxpool_contract.messages.task import EmbedParameters
from fluxpool_worker.engine.files.images import encode_image
from fluxpool_worker.engine.protocol import GenerationInputs
from fluxpool_worker.image_marks import SignatureState, read_marks
from fluxpool_worker.image_parameters import read_parameters
from fluxpool_worker.marks import DigitalSourceType
from fluxpool_worker.marks.signing import SIGNING_USAGES, FileSigner, SigningError
from kit.waiting import wait_until
from kit.workers.signing_keys import SigningKey, key_pem, make_signing_key

PROMPT = "a lighthouse that only its keeper may know of"
FORMATS = pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])


def encoded(output_format: str, *, embed: EmbedParameters = EmbedParameters.NO_PROMPT) -> bytes:
    inputs = GenerationInputs(
        prompt=PROMPT,
        width=96,
        height=64,
        steps=4,
        seed=7,
        output_format=output_format,
        embed_parameters=embed,
        embedded={"request_id": "req_1"},
    )
    pixels = np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    return encode_image(pixels, inputs=inputs, index=0, model="flux-tiny").payload


def sign(
    folder: Path,
    payload: bytes,
    *,
    output_format: str = "png",
    source_type: DigitalSourceType = DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA,
) -> bytes:
    return FileSigner(folder).sign(payload, content_type=f"image/{output_format}", source_type=source_type)


def judged(payload: bytes, *, output_format: str = "png", anchor: str | None = None) -> dict[str, Any]:
    """What the library's reader says, as JSON."""
    settings: dict[str, Any] = {} if anchor is None else {"trust": {"user_anchors": anchor}}
    with c2pa.Reader(f"image/{output_format}", io.BytesIO(payload), context=c2pa.Context.from_dict(settings)) as reader:
        found: dict[str, Any] = json.loads(reader.json())
    return found


@FORMATS
@pytest.mark.parametrize("source_type", list(DigitalSourceType))
def test_a_signed_file_says_that_a_model_made_it(
    tmp_path: Path, output_format: str, source_type: DigitalSourceType
) -> None:
    key = make_signing_key()
    folder = key.write(tmp_path / "key")

    signed = sign(folder, encoded(output_format), output_format=output_format, source_type=source_type)

    found = judged(signed, output_format=output_format, anchor=key.anchor)
    assert found["validation_state"] == "Trusted"
    manifest = found["manifests"][found["active_manifest"]]
    assert manifest["claim_generator_info"][0]["name"] == "Fluxpool"
    assert (manifest["signature_info"]["alg"], manifest["signature_info"]["common_name"]) == ("Es256", "Acme Signer")
    [assertion] = manifest["assertions"]
    [action] = assertion["data"]["actions"]
    assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", source_type.value)


@FORMATS
def test_a_signer_of_another_root_is_valid_and_not_trusted(tmp_path: Path, output_format: str) -> None:
    folder = make_signing_key().write(tmp_path / "key")

    signed = sign(folder, encoded(output_format), output_format=output_format)

    assert judged(signed, output_format=output_format, anchor=make_signing_key().anchor)["validation_state"] == "Valid"


@FORMATS
def test_a_changed_byte_ends_the_signature(tmp_path: Path, output_format: str) -> None:
    folder = make_signing_key().write(tmp_path / "key")
    signed = bytearray(sign(folder, encoded(output_format), output_format=output_format))
    signed[signed.index(b"req_1" if output_format == "png" else b"req") + 2] ^= 1

    found = judged(bytes(signed), output_format=output_format)

    assert found["validation_state"] == "Invalid"
    assert "assertion.dataHash.mismatch" in {item["code"] for item in found["validation_status"]}


@FORMATS
def test_a_signature_leaves_the_rest_of_the_file_as_it_was(tmp_path: Path, output_format: str) -> None:
    folder = make_signing_key().write(tmp_path / "key")
    payload = encoded(output_format)

    signed = sign(folder, payload, output_format=output_format)

    assert read_parameters(signed) == read_parameters(payload)
    with Image.open(io.BytesIO(payload)) as before, Image.open(io.BytesIO(signed)) as after:
        assert after.getxmp() == before.getxmp()
        assert after.tobytes() == before.tobytes()
    assert len(signed) - len(payload) < 8_000, "no thumbnail"


@FORMATS
def test_no_byte_of_a_manifest_holds_the_prompt(tmp_path: Path, output_format: str) -> None:
    folder = make_signing_key().write(tmp_path / "key")

    signed = sign(folder, encoded(output_format), output_format=output_format)

    assert PROMPT.encode() not in signed
    assert PROMPT.encode("utf-16-le") not in signed


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_keys_are_read_in_the_forms_that_cert_manager_writes(tmp_path: Path, form: serialization.PrivateFormat) -> None:
    key = make_signing_key()
    folder = key.write(tmp_path / "key", key=key_pem(key.key, form=form))

    assert judged(sign(folder, encoded("png")), anchor=key.anchor)["validation_state"] == "Trusted"


@pytest.mark.parametrize("usage", SIGNING_USAGES)
def test_certificates_are_for_mail_documents_or_claims(tmp_path: Path, usage: str) -> None:
    key = make_signing_key(usage=ObjectIdentifier(usage))

    found = read_marks(sign(key.write(tmp_path / "key"), encoded("png")), anchors=key.anchor)

    assert found.credentials is not None
    assert found.credentials.state is SignatureState.TRUSTED


def _without_certificate(key: SigningKey, folder: Path) -> None:
    (key.write(folder) / "tls.crt").unlink()


def _without_key(key: SigningKey, folder: Path) -> None:
    (key.write(folder) / "tls.key").unlink()


def _root_first(key: SigningKey, folder: Path) -> None:
    key.with_chain(key.root, *key.chain).write(folder)


def _of_another(key: SigningKey, folder: Path) -> None:
    key.write(folder, key=key_pem(make_signing_key().key))


def _on_another_curve(key: SigningKey, folder: Path) -> None:
    key.write(folder, key=key_pem(ec.generate_private_key(ec.SECP384R1())))


def _rsa(key: SigningKey, folder: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    key.write(
        folder,
        key=private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


@pytest.mark.parametrize(
    ("spoil", "file", "message"),
    [
        (_without_certificate, "tls.crt", "cannot be read"),
        (_without_key, "tls.key", "cannot be read"),
        (lambda key, folder: key.with_chain().write(folder), "tls.crt", "no certificates in PEM form"),
        (lambda key, folder: key.write(folder, key=b""), "tls.key", "no private key that can be read"),
        (lambda key, folder: key.write(folder, key=b"\xff\0"), "tls.key", "no private key that can be read"),
        (
            lambda key, folder: key.write(folder, key=key_pem(key.key, password=b"secret")),
            "tls.key",
            "not encrypted",
        ),
        (_rsa, "tls.key", "curve P-256"),
        (_on_another_curve, "tls.key", "curve P-256"),
        (_of_another, "tls.key", "is not the key of the first certificate"),
        (_root_first, "tls.key", "is not the key of the first certificate"),
        (
            lambda _key, folder: make_signing_key(valid_until=timedelta(minutes=-1)).write(folder),
            "tls.crt",
            "and not now; renew it",
        ),
        (
            lambda _key, folder: make_signing_key(valid_from=timedelta(minutes=10)).write(folder),
            "tls.crt",
            "and not now; renew it",
        ),
        (
            lambda _key, folder: make_signing_key(usage=ExtendedKeyUsageOID.SERVER_AUTH).write(folder),
            "tls.crt",
            "extendedKeyUsage emailProtection",
        ),
        (lambda key, folder: key.with_chain(key.root).write(folder), "tls.key", "is not the key"),
    ],
)
def test_a_key_that_cannot_sign_is_named_with_its_file(
    tmp_path: Path, spoil: Callable[[SigningKey, Path], object], file: str, message: str
) -> None:
    folder = tmp_path / "key"
    spoil(make_signing_key(), folder)

    with pytest.raises(SigningError, match=message) as refused:
        FileSigner(folder).probe()

    assert str(refused.value).startswith(f"{folder / file}: ")
    assert "PRIVATE KEY" not in str(refused.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match=r"the folder needs tls\.crt and tls\.key"):
        FileSigner(tmp_path / "missing").probe()


async def test_a_renewed_certificate_is_taken_when_the_old_one_expires(tmp_path: Path) -> None:
    folder = make_signing_key(valid_until=timedelta(seconds=3)).write(tmp_path / "key")
    signer, payload = FileSigner(folder), encoded("webp")

    def signed() -> bytes:
        return signer.sign(payload, content_type="image/webp", source_type=DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA)

    signed()

    def has_expired() -> bool:
        try:
            signed()
        except SigningError as error:
            return "renew it" in str(error)
        return False

    await wait_until(has_expired, deadline_seconds=30, what="the certificate to expire")
    renewed = make_signing_key()
    renewed.write(folder)

    assert judged(signed(), output_format="webp", anchor=renewed.anchor)["validation_state"] == "Trusted"
