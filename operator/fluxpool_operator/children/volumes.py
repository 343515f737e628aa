"""Volumes of a worker pod and their mounts. The root file system is read-only, so these are all it can write to."""

from dataclasses import dataclass
from typing import Any, Final

from fluxpool_contract.problems import FieldProblem
from fluxpool_operator.api import InvalidPoolError
from fluxpool_operator.api.model import CacheSpec
from fluxpool_operator.api.pool import FluxWorkerPoolSpec
from fluxpool_operator.children.worker_settings import (
    KAFKA_FILES_PATH,
    MODELS_PATH,
    SCRATCH_PATH,
    SIGNING_FILES_PATH,
    STORAGE_FILES_PATH,
    TENANT_FILES_PATH,
    kafka_files,
    signing_files,
    storage_files,
    tenant_files,
)

OWNER_AND_GROUP_READ: Final = 0o440


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedVolume:
    """A volume of the pod and its mount in the container."""

    name: str
    source: dict[str, Any]
    path: str
    read_only: bool = False

    def to_volume(self) -> dict[str, Any]:
        """The entry in the pod's `volumes`."""
        return {"name": self.name, **self.source}

    def to_mount(self) -> dict[str, Any]:
        """The entry in the container's `volumeMounts`."""
        return {"name": self.name, "mountPath": self.path, **({"readOnly": True} if self.read_only else {})}


def worker_volumes(spec: FluxWorkerPoolSpec, *, host_path_allowed: bool) -> tuple[MountedVolume, ...]:
    """All volumes of a worker.

    Raises `InvalidPoolError` for a host path that the operator does not allow, and for paths that collide.
    """
    shared_memory = {"medium": "Memory", "sizeLimit": str(spec.worker.shared_memory_size)}
    volumes = [
        MountedVolume(name="tmp", source={"emptyDir": {}}, path="/tmp"),  # noqa: S108 - a volume of the pod's own
        MountedVolume(name="scratch", source={"emptyDir": {}}, path=SCRATCH_PATH),
        MountedVolume(name="shared-memory", source={"emptyDir": shared_memory}, path="/dev/shm"),  # noqa: S108 - likewise
        MountedVolume(
            name="models",
            source=_cache_source(spec.model.cache, host_path_allowed=host_path_allowed),
            path=MODELS_PATH,
            read_only=spec.model.cache.is_read_only,
        ),
    ]
    for name, path, sources in (
        ("kafka-files", KAFKA_FILES_PATH, kafka_files(spec)),
        ("storage-files", STORAGE_FILES_PATH, storage_files(spec)),
        ("signing-files", SIGNING_FILES_PATH, signing_files(spec)),
        ("tenant-files", TENANT_FILES_PATH, tenant_files(spec)),
    ):
        if sources:
            projected = {"projected": {"defaultMode": OWNER_AND_GROUP_READ, "sources": sources}}
            volumes.append(MountedVolume(name=name, source=projected, path=path, read_only=True))
    if claim := spec.storage.persistent_volume_claim:
        folder = "/" + spec.storage.url.removeprefix("file:///").rstrip("/")
        if folder in {volume.path for volume in volumes}:
            message = f"{folder} is a folder of the worker's own; choose another one"
            raise InvalidPoolError((FieldProblem(field="spec.storage.url", message=message),))
        source = {"persistentVolumeClaim": {"claimName": claim.claim_name}}
        volumes.append(MountedVolume(name="images", source=source, path=folder))
    return tuple(volumes)


def _cache_source(cache: CacheSpec, *, host_path_allowed: bool) -> dict[str, Any]:
    if claim := cache.persistent_volume_claim:
        read_only = {"readOnly": True} if claim.read_only else {}
        return {"persistentVolumeClaim": {"claimName": claim.claim_name, **read_only}}
    if image := cache.image:
        return {"image": image.to_manifest()}
    if host_path := cache.host_path:
        if not host_path_allowed:
            message = "this operator does not allow folders of nodes; use another kind of cache, or allow them there"
            raise InvalidPoolError((FieldProblem(field="spec.model.cache.hostPath", message=message),))
        # Not DirectoryOrCreate: the kubelet would create it for root, and the worker could not write to it.
        return {"hostPath": {"path": host_path.path, "type": "Directory"}}
    size_limit = cache.empty_dir.size_limit if cache.empty_dir else None
    return {"emptyDir": {} if size_limit is None else {"sizeLimit": str(size_limit)}}
