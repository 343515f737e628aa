"""A pod's volumes as folders of this machine, and the mounts of its containers on them.

Owns the volumes folder of one pod. Content of Secrets, ConfigMaps and tokens is written once, when the pod starts:
it is not renewed while the pod runs.
"""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from kit.cluster.kubernetes_api import Body
from kit.process_node.container import Mount
from kit.process_node.pod_references import MissingReferenceError, PodReferences

_FILE_MODE = 0o644
_TOKEN_MODE = 0o644
_TOKEN_SECONDS = 3600
_Files = dict[str, tuple[bytes, int]]


class PodVolumes:
    """The volumes of one pod, shared by its containers and kept over their restarts."""

    def __init__(self, folder: Path, references: PodReferences) -> None:
        """Take the folder of the volumes; creates nothing yet."""
        self._folder = folder
        self._references = references
        self._sources: dict[str, Path] = {}

    async def prepare(self) -> None:
        """Create every volume; those of an earlier agent are kept. Raises `MissingReferenceError`."""
        for volume in self._references.pod["spec"].get("volumes", []):
            self._sources[volume["name"]] = await self._prepare(volume)

    def mounts(self, container: Body) -> list[Mount]:
        """Return a container's mounts; raises `MissingReferenceError` for a sub-path that does not exist."""
        return [self._mount(entry) for entry in container.get("volumeMounts", [])]

    async def remove(self) -> None:
        """Remove the pod's own folder; host paths are kept."""
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    def _mount(self, entry: Body) -> Mount:
        source = self._sources[str(entry["name"])]
        if entry.get("subPath"):
            parts = PurePosixPath(entry["subPath"]).parts
            if ".." in parts or entry["subPath"].startswith("/"):
                raise MissingReferenceError(f"subPath {entry['subPath']!r} must stay inside its volume")
            source = source.joinpath(*parts)
            if not source.exists():
                source.mkdir(parents=True)
        return Mount(source=str(source), target=entry["mountPath"], read_only=bool(entry.get("readOnly")))

    async def _prepare(self, volume: Body) -> Path:
        if "hostPath" in volume:
            return _host_path(volume["hostPath"])
        target = self._folder / str(volume["name"])
        if target.exists():
            return target
        files: _Files = {}
        if "secret" in volume:
            source = volume["secret"]
            found = await self._references.secret(source["secretName"], optional=bool(source.get("optional")))
            files = _selected(found, source)
        elif "configMap" in volume:
            source = volume["configMap"]
            found = await self._references.config_map(source["name"], optional=bool(source.get("optional")))
            files = _selected(found, source)
        elif "downwardAPI" in volume:
            files = self._downward(volume["downwardAPI"])
        elif "projected" in volume:
            for source in volume["projected"].get("sources", []):
                files |= await self._projected(source, default_mode=volume["projected"].get("defaultMode", _FILE_MODE))
        _write_all(target, files, world_writable="emptyDir" in volume)
        return target

    async def _projected(self, source: Body, *, default_mode: int) -> _Files:
        if (token := source.get("serviceAccountToken")) is not None:
            text = await self._references.service_account_token(
                audience=token.get("audience"), expiration_seconds=int(token.get("expirationSeconds", _TOKEN_SECONDS))
            )
            return {token["path"]: (text.encode(), _TOKEN_MODE)}
        if (secret := source.get("secret")) is not None:
            found = await self._references.secret(secret["name"], optional=bool(secret.get("optional")))
            return _selected(found, {"defaultMode": default_mode, **secret})
        if (config_map := source.get("configMap")) is not None:
            found = await self._references.config_map(config_map["name"], optional=bool(config_map.get("optional")))
            return _selected(found, {"defaultMode": default_mode, **config_map})
        return self._downward({"defaultMode": default_mode, **source["downwardAPI"]})

    def _downward(self, source: Body) -> _Files:
        mode = source.get("defaultMode", _FILE_MODE)
        return {item["path"]: (self._downward_item(item), item.get("mode", mode)) for item in source.get("items", [])}

    def _downward_item(self, item: Body) -> bytes:
        if "fieldRef" in item:
            return self._references.field(item["fieldRef"]["fieldPath"]).encode()
        reference = item["resourceFieldRef"]
        containers = self._references.pod["spec"]["containers"]
        container = next(one for one in containers if one["name"] == reference["containerName"])
        return self._references.resource_field(reference, container=container).encode()


def _host_path(source: Body) -> Path:
    path, kind = Path(source["path"]), source.get("type", "")
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    fits = {"Directory": path.is_dir, "File": path.is_file, "Socket": path.is_socket}.get(kind, path.exists)
    if not fits():
        raise MissingReferenceError(f"hostPath type check failed: {path} is not a {kind or 'file or folder'}")
    return path


def _selected(found: Mapping[str, bytes] | None, source: Body) -> _Files:
    """Return path -> (content, mode): all keys, or those that `items` names."""
    mode = source.get("defaultMode", _FILE_MODE)
    if not source.get("items"):
        return {key: (content, mode) for key, content in (found or {}).items()}
    files: _Files = {}
    for item in source["items"]:
        content = (found or {}).get(item["key"])
        if content is not None:
            files[item["path"]] = (content, item.get("mode", mode))
        elif not source.get("optional"):
            raise MissingReferenceError(f"references non-existent key: {item['key']}")
    return files


def _write_all(target: Path, files: _Files, *, world_writable: bool) -> None:
    """Create the volume atomically, so that a killed agent leaves a complete one or none."""
    draft = target.with_name(f".{target.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    for name, (content, mode) in files.items():
        path = draft / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    draft.chmod(0o777 if world_writable else 0o755)
    draft.rename(target)
