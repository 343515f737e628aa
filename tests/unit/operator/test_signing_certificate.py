"""What the operator reads out of the Secret that image files are signed with, from certificates made here."""

from datetime import timedelta

import pytest

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.assessment import SigningCertificate
from fluxpool_operator.children import SecretKey
from fluxpool_operator.reconcile.kafka.pool_secrets import SecretValues, signing_certificate
from kit.scaling.pools import edited, pool_body
from kit.workers.signing_keys import HOUR, make_signing_key, pem

ENTRY = SecretKey("image-signer", "tls.crt")
POOL = FluxWorkerPool.parse(edited(pool_body(), {"image.provenance.signingSecretRef": {"name": "image-signer"}}))


def found_in(content: bytes) -> SigningCertificate | None:
    return signing_certificate(POOL, SecretValues(values={ENTRY: content}, missing=()))


def test_the_validity_is_that_of_the_whole_chain() -> None:
    key = make_signing_key(valid_until=timedelta(days=1000))
    signer, issuer = key.chain

    found = found_in(pem(key.chain).encode())

    assert found == SigningCertificate(
        entry="image-signer/tls.crt",
        valid_from=signer.not_valid_before_utc,
        valid_until=issuer.not_valid_after_utc,
    )


def test_an_expired_signer_is_expired_whatever_its_issuer_is() -> None:
    key = make_signing_key(valid_from=-2 * HOUR, valid_until=-HOUR)

    found = found_in(pem(key.chain).encode())

    assert found is not None
    assert found.valid_until == key.chain[0].not_valid_after_utc


@pytest.mark.parametrize("content", [b"", b"\xff\0", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_told_from_a_missing_entry(content: bytes) -> None:
    assert found_in(content) == SigningCertificate(entry="image-signer/tls.crt", valid_from=None, valid_until=None)


def test_a_missing_entry_and_a_pool_without_a_key_have_none() -> None:
    assert signing_certificate(POOL, SecretValues(values={}, missing=(ENTRY,))) is None
    without = FluxWorkerPool.parse(pool_body())
    assert signing_certificate(without, SecretValues(values={ENTRY: b""}, missing=())) is None
