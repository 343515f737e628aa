"""Deletes a task that has ended: its objects first, then its record, which is what the projection shows it by.

In this order, so that a repeat after a failure finds the task once more. Knows nothing of HTTP.
"""

from dataclasses import dataclass
from typing import Final

from fluxpool_contract import header_names
from fluxpool_contract.messages import DEFAULT_TENANT
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.store.task_state import TaskState, epoch_of
from fluxpool_gateway.tasks.canceling import ANY_PARTITION
from fluxpool_gateway.tasks.producer import RecordSink
from fluxpool_gateway.tasks.view import read_result
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
    trust: TenantTrust

    async def delete(self, task: TaskState) -> None:
        """Return once the objects are deleted and the record of that is acknowledged; to repeat it is harmless.

        Raises `StorageUnavailableError`, `CorruptObjectError`, `DeliveryError`.
        """
        request_id, tenant = task.key
        for epoch in range(min(epoch_of(task.version) + 1, _MAX_EPOCHS)):
            for folder in _folders(task):
                await delete_task_objects(self.objects, tenant=folder, request_id=request_id, epoch=epoch)
        headers = [(header_names.TENANT, tenant.encode())]
        proof = self.trust.prove(tenant=tenant, request_id=request_id)
        if proof is not None:
            headers.append((header_names.TENANT_PROOF, proof.encode()))
        await self.producer.send(
            topic=self.topic, partition=ANY_PARTITION, key=request_id.encode(), value=None, headers=headers
        )


def _folders(task: TaskState) -> tuple[str, ...]:
    """The tenants in whose folders its objects may lie: workers without the tenant's proof stored them in the last."""
    result = None if task.tenant == DEFAULT_TENANT else read_result(task)
    strayed = result is not None and any(image.object.startswith(f"{DEFAULT_TENANT}/") for image in result.images)
    return (task.tenant, DEFAULT_TENANT) if strayed else (task.tenant,)
