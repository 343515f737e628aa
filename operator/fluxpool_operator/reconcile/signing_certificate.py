"""The certificate that a pool's image files are signed with, as its Secret holds it."""

from cryptography import x509

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.assessment import SigningCertificate
from fluxpool_operator.children import CERTIFICATE_FILE, signing_secret_files
from fluxpool_operator.reconcile.kafka.pool_secrets import SecretValues


def signing_certificate(pool: FluxWorkerPool, secrets: SecretValues) -> SigningCertificate | None:
    """Its validity, of the whole chain; None when the pool names none or the entry is missing."""
    key = signing_secret_files(pool.spec).get(CERTIFICATE_FILE)
    if key is None or key not in secrets.values:
        return None
    try:
        chain = x509.load_pem_x509_certificates(secrets.values[key])
    except ValueError:
        return SigningCertificate(entry=str(key), valid_from=None, valid_until=None)
    return SigningCertificate(
        entry=str(key),
        valid_from=max(certificate.not_valid_before_utc for certificate in chain),
        valid_until=min(certificate.not_valid_after_utc for certificate in chain),
    )
