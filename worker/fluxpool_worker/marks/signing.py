"""Signs image files with content credentials (C2PA 2): a manifest that says that a model made the picture.

Owns the key, its checks and the manifest. The manifest never says anything of the task. Blocking: a signature reads the
whole file. c2pa is imported with the first key, 23 MB that workers without one do not need.
"""

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image

from fluxpool_worker.marks.xmp import CLAIM_GENERATOR, DigitalSourceType, program_version

if TYPE_CHECKING:
    from c2pa import Signer

CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"

SIGNING_USAGES: Final = ("1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1")
"""Extended key usages of signers: emailProtection, documentSigning (RFC 9336), and C2PA's own claimSigning."""

# A thumbnail in the manifest takes 60 ms and up to 3 MB; the file itself shows the picture. Nothing is fetched.
_SETTINGS: Final = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"remote_manifest_fetch": False},
    "trust": {"trust_config": "\n".join(SIGNING_USAGES)},
}
_PROFILE: Final = (
    "the certificate must not be self-signed, and needs keyUsage digitalSignature and extendedKeyUsage emailProtection"
)


class SigningError(Exception):
    """A file cannot be signed; the message names the file at fault and the remedy."""


class FileSigner:
    """Signs with the key and the certificates of a folder; for one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds `tls.crt`, the signer's certificate and then those between it and its root, and `tls.key`."""
        self._folder = folder
        self._signer: Signer | None = None

    def probe(self) -> None:
        """Sign a tiny picture; raises `SigningError`."""
        file = io.BytesIO()
        Image.new("RGB", (1, 1)).save(file, "PNG")
        self.sign(file.getvalue(), content_type="image/png", source_type=DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA)

    def sign(self, payload: bytes, *, content_type: str, source_type: DigitalSourceType) -> bytes:
        """The file with its manifest; no byte of it may change afterwards. Raises `SigningError`.

        Files that were renewed since they were read are read again before that.
        """
        if self._signer is not None:
            try:
                return self._sign(self._signer, payload, content_type=content_type, source_type=source_type)
            except SigningError:
                self._signer = None
        signer = _load(self._folder)
        signed = self._sign(signer, payload, content_type=content_type, source_type=source_type)
        self._signer = signer
        return signed

    def _sign(self, signer: "Signer", payload: bytes, *, content_type: str, source_type: DigitalSourceType) -> bytes:
        import c2pa  # noqa: PLC0415 - see above

        manifest = {
            "claim_generator_info": [{"name": CLAIM_GENERATOR, "version": program_version()}],
            "assertions": [
                {
                    "label": "c2pa.actions.v2",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": source_type.value}]},
                }
            ],
        }
        signed = io.BytesIO()
        try:
            with c2pa.Builder(manifest, c2pa.Context.from_dict(_SETTINGS)) as builder:
                builder.sign(signer, content_type, io.BytesIO(payload), signed)
        except c2pa.C2paError as error:
            certificate = self._folder / CERTIFICATE_FILE
            reason = " ".join(str(error).split())
            raise SigningError(f"{certificate}: no image can be signed ({reason}); {_PROFILE}") from error
        return signed.getvalue()


def _load(folder: Path) -> "Signer":
    """A signer from the files, checked as far as can be told without signing; raises `SigningError`."""
    import c2pa  # noqa: PLC0415 - see above

    certificate_file, key_file = folder / CERTIFICATE_FILE, folder / KEY_FILE
    certificates = _certificates(certificate_file)
    key = _key(key_file)
    if key.public_key() != certificates[0].public_key():
        raise SigningError(
            f"{key_file}: is not the key of the first certificate in {certificate_file}; that must be the signer's, "
            "those of its issuers follow"
        )
    chain = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)
    # c2pa reads no other form of a key; cert-manager and openssl write others, too.
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=pkcs8, ta_url=None))
    except c2pa.C2paError as error:
        raise SigningError(f"{certificate_file}: cannot be used for signing ({error}); {_PROFILE}") from error


def _certificates(file: Path) -> list[x509.Certificate]:
    try:
        certificates = x509.load_pem_x509_certificates(_read(file))
    except ValueError as error:
        raise SigningError(
            f"{file}: holds no certificates in PEM form ({error}); put the signer's there, then its issuers'"
        ) from error
    now = datetime.now(UTC)
    for certificate in certificates:
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not first <= now <= last:
            subject = certificate.subject.rfc4514_string()
            raise SigningError(
                f"{file}: the certificate of {subject} is valid from {first:%Y-%m-%dT%H:%M:%SZ} to "
                f"{last:%Y-%m-%dT%H:%M:%SZ}, and not now; renew it"
            )
    return certificates


def _key(file: Path) -> ec.EllipticCurvePrivateKey:
    remedy = "put an ECDSA key on the curve P-256 there, in PEM form and not encrypted"
    try:
        key = serialization.load_pem_private_key(_read(file), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SigningError(
            f"{file}: holds no private key that can be read ({type(error).__name__}); {remedy}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SigningError(f"{file}: is a key of another kind; {remedy}")
    return key


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SigningError(
            f"{file}: cannot be read ({error.strerror}); the folder needs {CERTIFICATE_FILE} and {KEY_FILE}"
        ) from error
