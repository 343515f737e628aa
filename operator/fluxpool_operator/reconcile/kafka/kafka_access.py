"""The operator's connection to one pool's Kafka: addresses, credentials, and the problems that prevent it.

Owns the certificate files of the connection. `lag_watch` reads through it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError, Reason
from fluxpool_operator.assessment import PoolProblem
from fluxpool_operator.children import (
    SecretKey,
    kafka_connection,
    kafka_secret_files,
    secret_variables,
    worker_settings,
)
from fluxpool_operator.reconcile.kafka.broker_addresses import (
    BrokerNameError,
    is_endpoint_refused,
    name_exists,
    refused_brokers,
    resolve_servers,
)
from fluxpool_operator.reconcile.kafka.pool_secrets import SecretFiles, SecretValues, check_authorities
from fluxpool_operator.settings import OperatorSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaAccess:
    """The connection to a pool's Kafka, or the problems that prevent it."""

    servers: tuple[str, ...]
    """The bootstrap servers as the pool's pods resolve them."""
    connection: KafkaConnection | None
    problems: tuple[PoolProblem, ...] = ()
    is_final: bool = True
    """Whether the same pool and Secrets give the same result; not while DNS does not answer."""


class KafkaAccessFinder:
    """Finds the connection to one pool's Kafka."""

    def __init__(
        self,
        folder: Path,
        *,
        settings: OperatorSettings,
        exists: Callable[[str], Awaitable[bool]] = name_exists,
    ) -> None:
        """`folder` is for this pool alone; `exists` asks DNS."""
        self._files = SecretFiles(folder)
        self._settings = settings
        self._exists = exists

    async def find(self, pool: FluxWorkerPool, secrets: SecretValues) -> KafkaAccess:
        """The access with these Secrets; its problems name what a person has to correct."""
        servers = written = pool.spec.kafka.bootstrap_servers
        if self._settings.namespace is not None:
            try:
                servers = await resolve_servers(written, namespace=pool.namespace, exists=self._exists)
            except BrokerNameError as error:
                problem = _prevented(Reason.LAG_UNAVAILABLE, f"kafka.bootstrapServers: {error}")
                return KafkaAccess(servers=written, connection=None, problems=(problem,), is_final=False)
        if problems := self._refused(pool, servers):
            return KafkaAccess(servers=servers, connection=None, problems=problems)
        # In its own namespace the operator resolves as the pods do, and certificates may know the short name alone.
        dialled = written if pool.namespace == self._settings.namespace else servers
        connection, problems = self._connect(pool, secrets, dialled)
        return KafkaAccess(servers=servers, connection=connection, problems=problems)

    def close(self) -> None:
        """Remove the files."""
        self._files.remove()

    def _refused(self, pool: FluxWorkerPool, servers: tuple[str, ...]) -> tuple[PoolProblem, ...]:
        """Addresses that the operator's settings do not allow."""
        problems = []
        if refused := refused_brokers(servers, allowed=self._settings.allowed_brokers):
            problems.append(_not_allowed("kafka.bootstrapServers", ", ".join(refused), "allowedBrokers"))
        oauth = pool.spec.kafka.security.oauth
        endpoint = oauth.token_endpoint if oauth else None
        if endpoint and is_endpoint_refused(endpoint, allowed=self._settings.allowed_token_endpoints):
            problems.append(_not_allowed("kafka.security.oauth.tokenEndpoint", endpoint, "allowedTokenEndpoints"))
        return tuple(problems)

    def _connect(
        self, pool: FluxWorkerPool, secrets: SecretValues, servers: tuple[str, ...]
    ) -> tuple[KafkaConnection | None, tuple[PoolProblem, ...]]:
        variables = secrets.variables(pool)
        connection = None
        try:
            if not kafka_keys(pool) & set(secrets.missing):
                files = self._files.write(pool, secrets)
                kafka = pool.spec.kafka.model_copy(update={"bootstrap_servers": servers})
                connection = kafka_connection(kafka, variables, files=files)
            if not secrets.missing:
                worker_settings(pool, secrets=variables)
            check_authorities(pool, secrets)
        except InvalidPoolError as error:
            message = f"the content of a Secret cannot be used, workers will not start: {error}"
            problem = PoolProblem(
                reason=Reason.SECRET_INVALID,
                message=message,
                stops_scaling=False,
                stops_reading=connection is None,
            )
            return connection, (problem,)
        return connection, ()


def kafka_keys(pool: FluxWorkerPool) -> set[SecretKey]:
    """Entries of Secrets that the connection to the pool's Kafka needs."""
    variables = secret_variables(pool.spec).items()
    return {key for name, key in variables if name.startswith("FLUXPOOL_KAFKA_")} | set(
        kafka_secret_files(pool.spec).values()
    )


def _not_allowed(field: str, address: str, value: str) -> PoolProblem:
    return _prevented(
        Reason.ADDRESS_NOT_ALLOWED,
        f"{field}: this operator may not connect to {address}; use an allowed address, or have the "
        f"operator's administrator add it to the chart's {value}",
    )


def _prevented(reason: Reason, message: str) -> PoolProblem:
    return PoolProblem(reason=reason, message=message, stops_scaling=False, stops_reading=True)
