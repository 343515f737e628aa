"""Which entries of Secrets a pool needs, and the checksum that reveals their change. Reads no Secret."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fluxpool_operator.api.pool import FluxWorkerPoolSpec
from fluxpool_operator.api.secrets import SigningSecretRef

CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
TENANT_KEYS_FILE: Final = "keys"


@dataclass(frozen=True, slots=True, order=True)
class SecretKey:
    """One entry of a Secret in the pool's namespace."""

    name: str
    key: str

    def __str__(self) -> str:
        return f"{self.name}/{self.key}"


def secret_variables(spec: FluxWorkerPoolSpec) -> dict[str, SecretKey]:
    """The worker's variables whose values come from Secrets."""
    found = {}
    security = spec.kafka.security
    if credentials := security.credentials_secret_ref:
        found["FLUXPOOL_KAFKA_SASL_USERNAME"] = SecretKey(credentials.name, credentials.username_key)
        found["FLUXPOOL_KAFKA_SASL_PASSWORD"] = SecretKey(credentials.name, credentials.password_key)
    if client := security.oauth.client_secret_ref if security.oauth else None:
        found["FLUXPOOL_KAFKA_OAUTH_CLIENT_ID"] = SecretKey(client.name, client.client_id_key)
        found["FLUXPOOL_KAFKA_OAUTH_CLIENT_SECRET"] = SecretKey(client.name, client.client_secret_key)
    if (certificate := security.client_certificate_secret_ref) and certificate.password_key:
        found["FLUXPOOL_KAFKA_TLS_KEY_PASSWORD"] = SecretKey(certificate.name, certificate.password_key)
    if access := spec.storage.credentials_secret_ref:
        found["FLUXPOOL_STORAGE_ACCESS_KEY_ID"] = SecretKey(access.name, access.access_key_id_key)
        found["FLUXPOOL_STORAGE_SECRET_ACCESS_KEY"] = SecretKey(access.name, access.secret_access_key_key)
    if token := spec.model.token_secret_ref:
        found["HF_TOKEN"] = SecretKey(token.name, token.key)
    return found


def kafka_secret_files(spec: FluxWorkerPoolSpec) -> dict[str, SecretKey]:
    """Entries that the Kafka connection reads from files, by file name."""
    security = spec.kafka.security
    files = {}
    if ca := security.ca_secret_ref:
        files["ca.crt"] = SecretKey(ca.name, ca.key)
    if certificate := security.client_certificate_secret_ref:
        files |= _certificate_files(certificate)
    if ca := security.oauth.ca_secret_ref if security.oauth else None:
        files["oauth-ca.crt"] = SecretKey(ca.name, ca.key)
    return files


def storage_secret_files(spec: FluxWorkerPoolSpec) -> dict[str, SecretKey]:
    """Entries that the object store client reads from files, by file name."""
    ca = spec.storage.ca_secret_ref
    return {"ca.crt": SecretKey(ca.name, ca.key)} if ca else {}


def signing_secret_files(spec: FluxWorkerPoolSpec) -> dict[str, SecretKey]:
    """Entries that image files are signed with, by file name."""
    signing = spec.image.provenance.signing_secret_ref
    return _certificate_files(signing) if signing else {}


def tenant_secret_files(spec: FluxWorkerPoolSpec) -> dict[str, SecretKey]:
    """Entries with the keys that prove tenants, by file name."""
    secret = spec.tenants.secret_ref
    return {TENANT_KEYS_FILE: SecretKey(secret.name, secret.key)} if secret else {}


def authorities(spec: FluxWorkerPoolSpec) -> dict[str, SecretKey]:
    """Entries with CA certificates, by the field that refers to them."""
    security = spec.kafka.security
    references = {
        "spec.kafka.security.caSecretRef": security.ca_secret_ref,
        "spec.kafka.security.oauth.caSecretRef": security.oauth.ca_secret_ref if security.oauth else None,
        "spec.storage.caSecretRef": spec.storage.ca_secret_ref,
    }
    return {field: SecretKey(found.name, found.key) for field, found in references.items() if found}


def required_secret_keys(spec: FluxWorkerPoolSpec) -> tuple[SecretKey, ...]:
    """Every entry without which pods cannot start, `worker.env` included; sorted and unique."""
    keys = {
        *secret_variables(spec).values(),
        *kafka_secret_files(spec).values(),
        *storage_secret_files(spec).values(),
        *signing_secret_files(spec).values(),
        *tenant_secret_files(spec).values(),
    }
    for variable in spec.worker.env:
        source = variable.value_from.secret_key_ref if variable.value_from else None
        if source is not None and not source.optional:
            keys.add(SecretKey(source.name, source.key))
    return tuple(sorted(keys))


def keys_read_at_start(spec: FluxWorkerPoolSpec, values: Mapping[SecretKey, bytes]) -> dict[SecretKey, bytes]:
    """The entries whose change reaches workers by new pods alone; they read the others again by themselves."""
    again = set(tenant_secret_files(spec).values())
    return {key: value for key, value in values.items() if key not in again}


def secrets_checksum(values: Mapping[SecretKey, bytes]) -> str:
    """Identifies the contents without revealing them; empty for no entries. As a pod annotation it rolls the pods."""
    if not values:
        return ""
    digest = hashlib.sha256()
    for key in sorted(values):
        # Each part is hashed by itself: the same bytes cut differently must not give the same checksum.
        for part in (key.name.encode(), key.key.encode(), values[key]):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]


def _certificate_files(reference: SigningSecretRef) -> dict[str, SecretKey]:
    return {
        CERTIFICATE_FILE: SecretKey(reference.name, reference.certificate_key),
        KEY_FILE: SecretKey(reference.name, reference.private_key_key),
    }
