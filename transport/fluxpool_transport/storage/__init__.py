"""The object store, and what a task leaves in it."""

from fluxpool_transport.storage.input_objects import read_input
from fluxpool_transport.storage.object_store import (
    ConditionalWritesError,
    ObjectStore,
    SignedMethod,
    StorageCredentialsError,
    StorageUnavailableError,
    open_object_store,
)
from fluxpool_transport.storage.task_objects import (
    Claim,
    Claimed,
    CorruptObjectError,
    IdConflictError,
    Manifest,
    claim_task,
    delete_task_objects,
    discard_if_deleted,
    is_deleted,
    read_manifest,
    store_image,
    store_manifest,
)

__all__ = [
    "Claim",
    "Claimed",
    "ConditionalWritesError",
    "CorruptObjectError",
    "IdConflictError",
    "Manifest",
    "ObjectStore",
    "SignedMethod",
    "StorageCredentialsError",
    "StorageUnavailableError",
    "claim_task",
    "delete_task_objects",
    "discard_if_deleted",
    "is_deleted",
    "open_object_store",
    "read_input",
    "read_manifest",
    "store_image",
    "store_manifest",
]
