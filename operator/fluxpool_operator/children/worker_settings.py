"""A pool as the settings of its workers, and these as the environment of a container.

The settings are validated by the worker's own class, so that a pool that workers would refuse is refused here. Secrets
are placeholders in the settings and `secretKeyRef`s in the environment.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr, ValidationError

from fluxpool_contract.kafka import KafkaConnection, TopicNames
from fluxpool_contract.problems import FieldProblem, explain
from fluxpool_contract.settings import (
    ImageSettings,
    Lane,
    ModelSettings,
    QualitySettings,
    StorageSettings,
    WorkerSettings,
)
from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.api.pool import FluxWorkerPoolSpec
from fluxpool_operator.children.secret_keys import (
    TENANT_KEYS_FILE,
    SecretKey,
    kafka_secret_files,
    secret_variables,
    signing_secret_files,
    storage_secret_files,
    tenant_secret_files,
)

HEALTH_PORT: Final = 8080
DRAIN_MARGIN_SECONDS: Final = 15
"""Between the end of the worker's drain and SIGKILL: to release the task, commit and leave the group."""

MODELS_PATH: Final = "/models"
SCRATCH_PATH: Final = "/var/cache/fluxpool"
KAFKA_FILES_PATH: Final = "/etc/fluxpool/kafka"
STORAGE_FILES_PATH: Final = "/etc/fluxpool/storage"
SIGNING_FILES_PATH: Final = "/etc/fluxpool/signing"
TENANT_FILES_PATH: Final = "/etc/fluxpool/tenants"
OAUTH_TOKEN_FILE: Final = "token"  # noqa: S105 - a file's name

_PLACEHOLDER: Final = "by-reference"
_DRAIN_VARIABLE: Final = "FLUXPOOL_DRAIN_GRACE_SECONDS"
_POD_FIELDS: Final = {"FLUXPOOL_HEALTH_HOST": "status.podIP", "FLUXPOOL_WORKER_NAME": "metadata.name"}


def worker_settings(pool: FluxWorkerPool, *, secrets: Mapping[str, str] | None = None) -> WorkerSettings:
    """The settings of the pool's workers; raises `InvalidPoolError` with the fields that contradict each other.

    `secrets` are values by variable (see `secret_variables`), by default placeholders. The worker's name and the
    address of its probes are left out: they differ by pod.
    """
    spec = pool.spec
    values = dict.fromkeys(secret_variables(spec), _PLACEHOLDER) if secrets is None else dict(secrets)
    kafka = kafka_connection(spec.kafka, values, files=Path(KAFKA_FILES_PATH))
    storage = _storage(spec, values)
    with _refused_as("spec.model.quality"):
        quality = QualitySettings(default=spec.model.quality.default, allowed=spec.model.quality.allowed)
    with _refused_as("spec"):
        return WorkerSettings(
            kafka=kafka,
            storage=storage,
            model=ModelSettings(
                id=spec.model.id,
                revision=spec.model.revision,
                device=spec.model.device,
                transformer_dtype=spec.model.dtype,
                encoder_dtype=spec.model.encoder_dtype,
                offline=spec.model.cache.is_read_only,
                lora_folder=None if spec.model.lora_folder is None else Path(spec.model.lora_folder),
                offload=spec.model.offload,
                quality=quality,
            ),
            image=ImageSettings(
                embed_parameters=spec.image.embed_parameters,
                signing_folder=Path(SIGNING_FILES_PATH) if spec.image.provenance.signing_secret_ref else None,
                input_prefix=spec.image.input_prefix,
                input_max_bytes=spec.image.input_max_bytes,
                preview_every_steps=spec.image.preview_every_steps,
            ),
            topics=topic_names(spec.kafka),
            consumer_group=spec.kafka.consumer_group,
            lanes=tuple(Lane(**lane.model_dump()) for lane in spec.kafka.lanes),
            foreign_tenant_topics=spec.tenants.foreign_topics,
            tenant_secret_file=Path(TENANT_FILES_PATH) / TENANT_KEYS_FILE if spec.tenants.secret_ref else None,
            pool=pool.name,
            gateway_url=spec.storage.gateway_url,
            health_port=HEALTH_PORT,
            max_attempts=spec.retry.max_attempts,
            task_hard_limit_seconds=spec.worker.task_hard_limit_seconds,
            drain_grace_seconds=spec.worker.termination_grace_period_seconds - DRAIN_MARGIN_SECONDS,
            offset_retention_days=spec.kafka.offset_retention_days,
        )


def kafka_connection(kafka: KafkaSpec, secrets: Mapping[str, str], *, files: Path) -> KafkaConnection:
    """The Kafka connection of a pool, with secrets by the worker's variable and certificates in the folder `files`.

    Raises `InvalidPoolError`.
    """

    def plain(name: str) -> str | None:
        return secrets.get(f"FLUXPOOL_KAFKA_{name}")

    def secret(name: str) -> SecretStr | None:
        value = plain(name)
        return None if value is None else SecretStr(value)

    security, oauth = kafka.security, kafka.security.oauth
    with _refused_as("spec.kafka.security"):
        return KafkaConnection(
            bootstrap_servers=kafka.bootstrap_servers,
            security_protocol=security.protocol,
            sasl_mechanism=security.sasl_mechanism,
            sasl_username=plain("SASL_USERNAME"),
            sasl_password=secret("SASL_PASSWORD"),
            oauth_token_endpoint=oauth.token_endpoint if oauth else None,
            oauth_client_id=plain("OAUTH_CLIENT_ID"),
            oauth_client_secret=secret("OAUTH_CLIENT_SECRET"),
            oauth_scope=oauth.scope if oauth else None,
            oauth_encode_credentials=oauth.encode_credentials if oauth else True,
            oauth_ca_file=files / "oauth-ca.crt" if oauth and oauth.ca_secret_ref else None,
            oauth_token_file=files / OAUTH_TOKEN_FILE if oauth and oauth.service_account_token else None,
            tls_ca_file=files / "ca.crt" if security.ca_secret_ref else None,
            tls_certificate_file=files / "tls.crt" if security.client_certificate_secret_ref else None,
            tls_key_file=files / "tls.key" if security.client_certificate_secret_ref else None,
            tls_key_password=secret("TLS_KEY_PASSWORD"),
        )


def topic_names(kafka: KafkaSpec) -> TopicNames:
    """The topics other than those of the lanes."""
    return TopicNames(**kafka.topics.model_dump())


def container_environment(pool: FluxWorkerPool) -> list[dict[str, Any]]:
    """`env` of the worker's container: the operator's variables by name, then the pool's in their order.

    A variable can refer only to those before it. Raises `InvalidPoolError`.
    """
    spec = pool.spec
    settings = worker_settings(pool)
    scratch = {
        "HF_HOME": MODELS_PATH,
        "HOME": SCRATCH_PATH,
        "TMPDIR": "/tmp",  # noqa: S108 - a volume of the pod's own
        "TORCHINDUCTOR_CACHE_DIR": f"{SCRATCH_PATH}/inductor",
        "TRITON_CACHE_DIR": f"{SCRATCH_PATH}/triton",
    }
    # Set even when it equals the worker's default: it must fit the pod's grace period, whatever image runs.
    drain = {_DRAIN_VARIABLE: str(settings.drain_grace_seconds)}
    values = {**settings.to_environment(), **drain, **scratch}
    variables: dict[str, dict[str, Any]] = {
        name: {"name": name, "value": _literal(value)} for name, value in values.items()
    }
    for name, path in _POD_FIELDS.items():
        variables[name] = {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
    for name, key in secret_variables(spec).items():
        variables[name] = {"name": name, "valueFrom": {"secretKeyRef": asdict(key)}}
    for extra in spec.worker.env:
        if extra.name in variables:
            problem = FieldProblem(field="spec.worker.env", message=f"{extra.name} is set by the operator; remove it")
            raise InvalidPoolError((problem,))
    return [variables[name] for name in sorted(variables)] + [extra.to_manifest() for extra in spec.worker.env]


def kafka_files(spec: FluxWorkerPoolSpec) -> list[dict[str, Any]]:
    """Sources of the projected volume with the files of the Kafka connection; may be empty."""
    sources = _projected(kafka_secret_files(spec))
    oauth = spec.kafka.security.oauth
    if oauth and (token := oauth.service_account_token):
        sources.append(
            {
                "serviceAccountToken": {
                    "audience": token.audience,
                    "expirationSeconds": token.expiration_seconds,
                    "path": OAUTH_TOKEN_FILE,
                }
            }
        )
    return sources


def storage_files(spec: FluxWorkerPoolSpec) -> list[dict[str, Any]]:
    """Sources of the projected volume with the files of the object store; may be empty."""
    return _projected(storage_secret_files(spec))


def signing_files(spec: FluxWorkerPoolSpec) -> list[dict[str, Any]]:
    """Sources of the projected volume with the key for image files; may be empty."""
    return _projected(signing_secret_files(spec))


def tenant_files(spec: FluxWorkerPoolSpec) -> list[dict[str, Any]]:
    """Sources of the projected volume with the keys that prove tenants; may be empty."""
    return _projected(tenant_secret_files(spec))


def _projected(files: Mapping[str, SecretKey]) -> list[dict[str, Any]]:
    return [{"secret": {"name": key.name, "items": [{"key": key.key, "path": path}]}} for path, key in files.items()]


def _storage(spec: FluxWorkerPoolSpec, secrets: Mapping[str, str]) -> StorageSettings:
    secret_access_key = secrets.get("FLUXPOOL_STORAGE_SECRET_ACCESS_KEY")
    with _refused_as("spec.storage"):
        return StorageSettings(
            url=spec.storage.url,
            public_base_url=spec.storage.public_base_url,
            endpoint_url=spec.storage.endpoint_url,
            region=spec.storage.region,
            access_key_id=secrets.get("FLUXPOOL_STORAGE_ACCESS_KEY_ID"),
            secret_access_key=None if secret_access_key is None else SecretStr(secret_access_key),
            ca_file=Path(STORAGE_FILES_PATH) / "ca.crt" if spec.storage.ca_secret_ref else None,
        )


@contextmanager
def _refused_as(field: str) -> Iterator[None]:
    """Turn a validation error of the contract into one that names the field of the pool."""
    try:
        yield
    except ValidationError as error:
        problems = (FieldProblem(field=field, message=str(problem)) for problem in explain(error))
        raise InvalidPoolError(tuple(problems)) from error


def _literal(value: str) -> str:
    """The value escaped for the kubelet, which expands `$(NAME)` and reads `$$` as `$`."""
    return value.replace("$", "$$")
