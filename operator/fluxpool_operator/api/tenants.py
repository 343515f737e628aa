"""`spec.tenants`: by what workers know whose a task is."""

from typing import Annotated

from pydantic import Field

from fluxpool_operator.api.kafka import TopicField
from fluxpool_operator.api.schema import ATOMIC, ApiModel
from fluxpool_operator.api.secrets import TenantSecretRef


class TenantsSpec(ApiModel):
    """Proof of the tenants of tasks. Without any, every task is of the tenant default."""

    secret_ref: TenantSecretRef | None = None
    """Secret with the keys by which the gateway proves tenants, the same as its gateway.tenantSecretRef. Workers read a
    change without a restart."""
    foreign_topics: Annotated[tuple[TopicField, ...], Field(max_length=8, json_schema_extra=ATOMIC)] = ()
    """Topics of lanes in which every producer may name the tenant of a task."""
