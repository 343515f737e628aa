"""Secrets in the children of a pool: which are required, where they are mounted, and pods that roll with them."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.children import (
    SecretKey,
    render_children,
    required_secret_keys,
    secrets_checksum,
    worker_settings,
)
from kit.scaling.pools import (
    FULL_SPEC,
    MINIMAL_SPEC,
    OAUTH_ENDPOINT,
    OAUTH_PRIVATE_ENDPOINT,
    OAUTH_TOKEN,
    edited,
    pool_body,
)

_TEXT = st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=1, max_size=12)
_SECRETS = st.dictionaries(st.builds(SecretKey, name=_TEXT, key=_TEXT), st.binary(max_size=8), max_size=4)


def _pool(edits: Mapping[str, Any] | None = None, *, spec: Mapping[str, Any] = MINIMAL_SPEC) -> FluxWorkerPool:
    return FluxWorkerPool.parse(edited(pool_body(spec), edits or {}))


def _template_and_mounts(pool: FluxWorkerPool) -> tuple[dict[str, Any], dict[str, str]]:
    """Of the pods, and the path of each mounted volume."""
    template = render_children(pool, replicas=1).deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    return template, {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def test_every_secret_that_a_pod_needs_is_required() -> None:
    assert [str(key) for key in required_secret_keys(_pool(spec=FULL_SPEC).spec)] == [
        "bucket/access-key-id",
        "bucket/secret-access-key",
        "bucket-ca/root.pem",
        "hub/token",
        "image-signer/signer.pem",
        "image-signer/tls.crt",
        "kafka-ca/ca.crt",
        "kafka-client/pass",
        "kafka-client/tls.crt",
        "kafka-client/tls.key",
        "kafka-user/password",
        "kafka-user/user",
        "proxy/password",
        "tenant-keys/all",
    ]
    assert required_secret_keys(_pool().spec) == ()


def _mounted_secrets(pool: FluxWorkerPool) -> dict[str, SecretKey]:
    """Entries of Secrets by the path at which they are mounted."""
    template, places = _template_and_mounts(pool)
    return {
        f"{places[volume['name']]}/{item['path']}": SecretKey(source["secret"]["name"], item["key"])
        for volume in template["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        for item in source["secret"]["items"]
    }


def test_certificates_are_mounted_where_the_settings_look_for_them() -> None:
    pool = _pool(spec=FULL_SPEC)
    settings = worker_settings(pool)
    assert _mounted_secrets(pool) == {
        str(settings.kafka.tls_ca_file): SecretKey("kafka-ca", "ca.crt"),
        str(settings.kafka.tls_certificate_file): SecretKey("kafka-client", "tls.crt"),
        str(settings.kafka.tls_key_file): SecretKey("kafka-client", "tls.key"),
        str(settings.storage.ca_file): SecretKey("bucket-ca", "root.pem"),
        f"{settings.image.signing_folder}/tls.crt": SecretKey("image-signer", "tls.crt"),
        f"{settings.image.signing_folder}/tls.key": SecretKey("image-signer", "signer.pem"),
        str(settings.tenant_secret_file): SecretKey("tenant-keys", "all"),
    }


def test_the_ca_of_the_token_endpoint_is_mounted_beside_that_of_kafka() -> None:
    edits = {
        "kafka.security": OAUTH_PRIVATE_ENDPOINT,
        "kafka.security.protocol": "SASL_SSL",
        "kafka.security.caSecretRef": {"name": "kafka-ca"},
    }
    pool = _pool(edits)
    kafka = worker_settings(pool).kafka
    assert _mounted_secrets(pool) == {
        str(kafka.tls_ca_file): SecretKey("kafka-ca", "ca.crt"),
        str(kafka.oauth_ca_file): SecretKey("oauth-ca", "ca.crt"),
    }
    assert SecretKey("oauth-ca", "ca.crt") in required_secret_keys(pool.spec)


@pytest.mark.parametrize(
    ("edits", "is_encoded"), [({}, True), ({"kafka.security.oauth.encodeCredentials": False}, False)]
)
def test_the_worker_gets_the_encoding_of_its_oauth_credentials(edits: dict[str, Any], is_encoded: bool) -> None:
    settings = worker_settings(_pool({"kafka.security": OAUTH_ENDPOINT, **edits}))
    assert settings.kafka.oauth_encode_credentials is is_encoded


def test_the_token_of_the_service_account_is_mounted_where_the_settings_look_for_it() -> None:
    pool = _pool({"kafka.security": OAUTH_TOKEN})
    template, places = _template_and_mounts(pool)
    (volume,) = (volume for volume in template["spec"]["volumes"] if volume["name"] == "kafka-files")
    assert volume["projected"]["sources"] == [
        {"serviceAccountToken": {"audience": "kafka", "expirationSeconds": 3600, "path": "token"}}
    ]
    assert str(worker_settings(pool).kafka.oauth_token_file) == f"{places['kafka-files']}/token"


@given(_SECRETS, _SECRETS)
def test_other_secrets_have_another_checksum(one: dict[SecretKey, bytes], other: dict[SecretKey, bytes]) -> None:
    assert (secrets_checksum(one) == secrets_checksum(other)) == (one == other)
    assert secrets_checksum(dict(reversed(one.items()))) == secrets_checksum(one)


def test_other_secrets_make_other_pods() -> None:
    before, after = (render_children(_pool(), replicas=1, secrets_checksum=checksum) for checksum in ("a", "b"))
    assert before.template_hash != after.template_hash
    annotations = after.deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"fluxpool.dev/secrets-checksum": "b"}
