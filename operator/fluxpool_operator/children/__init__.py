"""Renders the children of a pool as plain manifests. Pure; `reconcile.apply` applies them."""

from fluxpool_operator.children.identity import (
    FIELD_MANAGER,
    MANAGED_BY,
    POOL_LABEL,
    SECRETS_CHECKSUM_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
    child_name,
    selector_text,
)
from fluxpool_operator.children.render import Children, render_children
from fluxpool_operator.children.secret_keys import (
    CERTIFICATE_FILE,
    SecretKey,
    authorities,
    kafka_secret_files,
    keys_read_at_start,
    required_secret_keys,
    secret_variables,
    secrets_checksum,
    signing_secret_files,
)
from fluxpool_operator.children.worker_settings import kafka_connection, topic_names, worker_settings

__all__ = [
    "CERTIFICATE_FILE",
    "FIELD_MANAGER",
    "MANAGED_BY",
    "POOL_LABEL",
    "SECRETS_CHECKSUM_ANNOTATION",
    "TEMPLATE_HASH_ANNOTATION",
    "Children",
    "SecretKey",
    "authorities",
    "child_name",
    "kafka_connection",
    "kafka_secret_files",
    "keys_read_at_start",
    "render_children",
    "required_secret_keys",
    "secret_variables",
    "secrets_checksum",
    "selector_text",
    "signing_secret_files",
    "topic_names",
    "worker_settings",
]
