"""Deletes a task that has ended: its objects first, then its record, which is what the projection shows it by.

In this order, so that a repeat after a failure finds the task once more. Knows nothing of HTTP.
"""

from dataclasses import dataclass
from typing import Final

from fluxpool_contract import header_names
from fluxpool_contract.messages import DEFAULT_TENANT
from fluxpool_gateway.identity.tenant_proof import prove_tenant
from fluxpool_gateway.store.task_state import TaskState, epoch_of
from fluxpool_gateway.tasks.canceling import ANY_PARTITION
from fluxpool_gateway.tasks.producer import RecordSink
from fluxpool_transport.storage import ObjectStore, delete_task_objects

_MAX_EPOCHS: Final = 100
"""A task is replayed a few times, but any producer may write a result of a millionth replay: each is a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleting:
    """Deletes tasks."""

    producer: RecordSink
    topic: str
    """The results topic: it is kept as long as what the record deletes."""
    objects: ObjectStore
    tenant_secret: bytes | None

    async def delete(self, task: TaskState) -> None:
        """Return once the objects are deleted and the record of that is acknowledged; to repeat it is harmless.

        Raises `StorageUnavailableError`, `CorruptObjectError`, `DeliveryError`.
        """
        request_id, tenant = task.key
        for epoch in range(min(epoch_of(task.version) + 1, _MAX_EPOCHS)):
            await delete_task_objects(self.objects, tenant=tenant, request_id=request_id, epoch=epoch)
        headers = [(header_names.TENANT, tenant.encode())]
        if self.tenant_secret is not None and tenant != DEFAULT_TENANT:
            proof = prove_tenant(self.tenant_secret, tenant=tenant, request_id=request_id)
            headers.append((header_names.TENANT_PROOF, proof.encode()))
        await self.producer.send(
            topic=self.topic, partition=ANY_PARTITION, key=request_id.encode(), value=None, headers=headers
        )
