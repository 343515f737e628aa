"""The Secrets that one pool refers to: read by name, again and again, so that a change is noticed.

Owns the values while they are needed and the files that Kafka clients read them from. Must never log them.
"""

import base64
import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.children import SecretKey, secret_files, secret_variables, secrets_checksum
from fluxpool_operator.cluster import ClusterClient, KindPath


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValues:
    """What was found of the entries that a pool refers to."""

    values: Mapping[SecretKey, bytes]
    missing: tuple[SecretKey, ...]

    @property
    def checksum(self) -> str:
        """A name for the contents that tells nothing about them."""
        return secrets_checksum(self.values)

    def __repr__(self) -> str:
        return f"SecretValues({len(self.values)} values, missing={self.missing})"

    def variables(self, pool: FluxWorkerPool) -> dict[str, str]:
        """The values of the worker's variables that are entries of Secrets, as far as they were found."""
        found = secret_variables(pool.spec).items()
        return {name: self.values[key].decode(errors="replace") for name, key in found if key in self.values}


class SecretsReader:
    """Reads one pool's Secrets, each not more often than told."""

    def __init__(
        self,
        cluster: ClusterClient,
        *,
        namespace: str,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._objects: dict[str, tuple[float, Mapping[str, str] | None]] = {}

    async def read(self, keys: Sequence[SecretKey]) -> SecretValues:
        """The entries; one whose Secret or key is not there is missing. Raises what the cluster client raises."""
        names = {key.name for key in keys}
        self._objects = {name: seen for name, seen in self._objects.items() if name in names}
        for name in names:
            await self._refresh(name)
        values = {}
        for key in keys:
            entries = self._objects[key.name][1]
            if entries is not None and key.key in entries:
                values[key] = base64.b64decode(entries[key.key])
        return SecretValues(values=values, missing=tuple(key for key in keys if key not in values))

    async def _refresh(self, name: str) -> None:
        now = self._clock()
        seen = self._objects.get(name)
        # One that is missing is what somebody is about to create: look again at every turn.
        if seen is not None and seen[1] is not None and now - seen[0] < self._interval_seconds:
            return
        found = await self._cluster.find(KindPath.SECRET.object(self._namespace, name))
        self._objects[name] = (now, None if found is None else found.get("data") or {})


class SecretFiles:
    """Certificates of one pool as files, in a folder whose name changes with their content.

    Clients read them when they connect, so new contents mean a new connection, and the old one keeps its files until
    the pool's next change.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current: Path | None = None

    def write(self, pool: FluxWorkerPool, secrets: SecretValues) -> Path:
        """Write the files that were found; returns their folder, which may be empty."""
        found = {name: secrets.values[key] for name, key in secret_files(pool.spec).items() if key in secrets.values}
        keys = [key for name, key in secret_files(pool.spec).items() if name in found]
        checksum = secrets_checksum({key: secrets.values[key] for key in keys}) or "none"
        folder = self._folder / checksum
        if folder != self._current:
            if found:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name, content in found.items():
                file = folder / name
                file.touch(mode=0o600)
                file.write_bytes(content)
            self._current = folder
        return folder

    def remove(self) -> None:
        """Remove every file that was written."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder)
