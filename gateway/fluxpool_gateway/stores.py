"""Opens what the settings of a gateway name: files of SQLite, or the tables of a PostgreSQL database.

Nothing is connected before it is used.
"""

from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.dead_letters import jobs
from fluxpool_gateway.identity.key_store import KeyStore
from fluxpool_gateway.identity.key_tables import KeyTables
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store import reservations
from fluxpool_gateway.store.postgres.connection import Lock
from fluxpool_gateway.store.postgres.reads import PostgresReads
from fluxpool_gateway.store.postgres.shared_tables import SharedTables
from fluxpool_gateway.store.reading import TaskStoreReader
from fluxpool_gateway.store.shared_file import Shared
from fluxpool_gateway.tasks.limits import QuotasOnDemand, TaskQuotas
from fluxpool_gateway.webhooks.secret_box import open_secret_box
from fluxpool_gateway.webhooks.store import WebhookStore
from fluxpool_transport.storage import ObjectStore, open_object_store
from fluxpool_transport.tenant_secret import tenant_keys_of


class DatabaseProblemError(Exception):
    """A database cannot be migrated or emptied; the message names the setting and says what to do."""

    def __init__(self, message: str, *, is_away: bool = False) -> None:
        super().__init__(message)
        self.is_away = is_away
        """Whether its server does not answer or does not admit the gateway, so that the same may succeed later."""


def open_task_reader(settings: GatewaySettings) -> TaskStoreReader:
    """The task store, for the servers."""
    if settings.database_url is None:
        return TaskStoreReader(settings.task_store_file())
    return TaskStoreReader(PostgresReads(settings.database_url.get_secret_value()))


def open_key_store(settings: GatewaySettings) -> KeyStore:
    """The API keys."""
    database = settings.key_store()
    return KeyStore(KeyTables(database) if isinstance(database, str) else database)


def open_trust(settings: GatewaySettings, own_secret: bytes | None) -> TenantTrust:
    """Who names the tenants of records; `own_secret` is that of the API keys. Raises `SettingsError`."""
    return TenantTrust(
        secret=own_secret,
        shared=tenant_keys_of(settings.tenant_secret_file),
        foreign_topics=frozenset(settings.foreign_tenant_topics),
    )


def open_reservations(settings: GatewaySettings) -> Shared:
    """The idempotency reservations."""
    if settings.database_url is None:
        file = settings.task_store_file()
        return reservations.reservation_file(file.with_name(file.name + reservations.FILE_SUFFIX))
    # What was granted must not be granted again after a crash of the server.
    return SharedTables(settings.database_url.get_secret_value(), Lock.RESERVATIONS, durable=True)


def open_replay_jobs(settings: GatewaySettings) -> jobs.ReplayJobs:
    """The replay jobs of dead letters."""
    if settings.database_url is None:
        file = settings.task_store_file()
        return jobs.ReplayJobs(jobs.replay_file(file.with_name(file.name + jobs.FILE_SUFFIX)))
    return jobs.ReplayJobs(SharedTables(settings.database_url.get_secret_value(), Lock.REPLAYS, durable=True))


def open_limit_counts(settings: GatewaySettings) -> Shared:
    """What the limits of tenants count."""
    if settings.database_url is None:
        # Here alone: its library is large, and most gateways have no limits.
        from fluxpool_gateway.store import quota_file  # noqa: PLC0415

        file = settings.task_store_file()
        return quota_file.quota_file(file.with_name(file.name + quota_file.FILE_SUFFIX))
    return SharedTables(settings.database_url.get_secret_value(), Lock.QUOTAS, durable=False)


def open_webhooks(settings: GatewaySettings, *, durable: bool = True) -> WebhookStore:
    """The endpoints of webhooks and their deliveries; what is written is on disk at once where it is `durable`.

    Raises `SecretKeysError`.
    """
    box = open_secret_box(settings.webhooks.key_file)
    return WebhookStore(settings.webhook_store(), durable=durable, box=box)


def open_quotas(settings: GatewaySettings, store: TaskStoreReader) -> TaskQuotas:
    """The limits of tenants and keys."""

    def open_now() -> TaskQuotas:
        # Here alone, for the start of gateways without limits: it takes a tenth of it.
        from fluxpool_gateway.identity.quotas import Quotas  # noqa: PLC0415

        return Quotas(settings.tenant_limits, open_limit_counts(settings), store)

    return open_now() if settings.tenant_limits else QuotasOnDemand(open_now)


def open_signer(settings: GatewaySettings) -> ObjectStore | None:
    """What signs addresses of images for clients; None where the settings have no address of that kind."""
    if settings.image_endpoint_url is None:
        return None
    return open_object_store(settings.storage.model_copy(update={"endpoint_url": settings.image_endpoint_url}))
