"""Keys and certificates for signing image files, made for a test: a root, an issuer below it and a signer.

Owns the profile of a signer's certificate that C2PA asks for; what is wrong with one is the test's choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A signer's key and its chain."""

    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...]
    """The signer's certificate and that of its issuer."""
    root: x509.Certificate

    @property
    def anchor(self) -> str:
        """The root in PEM form."""
        return pem([self.root])

    def with_chain(self, *chain: x509.Certificate) -> "SigningKey":
        """The key with other certificates."""
        return replace(self, chain=chain)

    def write(self, folder: Path, *, key: bytes | None = None) -> Path:
        """Write `tls.crt` and `tls.key`, `key` in place of its own."""
        folder.mkdir(exist_ok=True)
        (folder / "tls.crt").write_text(pem(self.chain))
        (folder / "tls.key").write_bytes(key_pem(self.key) if key is None else key)
        return folder


def make_signing_key(
    *,
    valid_from: timedelta = -HOUR,
    valid_until: timedelta = HOUR,
    usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
    organization: str = "Acme Pictures",
) -> SigningKey:
    """A signer whose certificate is valid between two moments, told from now."""
    now = datetime.now(UTC)
    root_key, issuer_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = _authority("Acme Root", root_key, issuer="Acme Root", issuer_key=root_key)
    issuer = _authority("Acme Issuer", issuer_key, issuer="Acme Root", issuer_key=root_key)
    signer = (
        _builder("Acme Signer", key, issuer="Acme Issuer", issuer_key=issuer_key, organization=organization)
        .not_valid_before(now + valid_from)
        .not_valid_after(now + valid_until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return SigningKey(key=key, chain=(signer, issuer), root=root)


def key_pem(
    key: ec.EllipticCurvePrivateKey,
    *,
    form: serialization.PrivateFormat = serialization.PrivateFormat.PKCS8,
    password: bytes | None = None,
) -> bytes:
    """A private key in PEM form."""
    encryption = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, form, encryption)


def pem(certificates: Sequence[x509.Certificate]) -> str:
    """Certificates in PEM form."""
    return "".join(certificate.public_bytes(serialization.Encoding.PEM).decode() for certificate in certificates)


def _authority(
    name: str, key: ec.EllipticCurvePrivateKey, *, issuer: str, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        _builder(name, key, issuer=issuer, issuer_key=issuer_key)
        .not_valid_before(now - timedelta(days=365))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def _builder(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    organization: str = "Acme Pictures",
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name, organization))
        .issuer_name(_name(issuer, "Acme Pictures"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _name(common_name: str, organization: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
