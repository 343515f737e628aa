"""The Secrets that one pool refers to: read by name, again and again, so that a change is noticed.

Owns the values while they are needed and the files that Kafka clients read them from. Must never log them.
"""

import base64
import codecs
import contextlib
import math
import shutil
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fluxpool_contract.problems import FieldProblem
from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError
from fluxpool_operator.children import SecretKey, authorities, kafka_secret_files, secret_variables, secrets_checksum
from fluxpool_operator.cluster import ClusterClient, KindPath

MISSING_SECONDS: Final = 4.0
"""Before a Secret that is missing is looked for again; the longer it is missing, the rarer, up to the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the last look at a Secret found."""

    at_seconds: float
    entries: Mapping[str, str] | None
    """None when there is no such Secret."""
    lacking_since_seconds: float | None
    """Since when it, or an entry that is needed, is missing; None when all is there."""


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


def check_authorities(pool: FluxWorkerPool, secrets: SecretValues) -> None:
    """Raise `InvalidPoolError` for entries that were found and hold no certificates of authorities."""
    problems = tuple(
        FieldProblem(field=field, message=f"the entry {key} holds no PEM certificates; put the authorities' there")
        for field, key in authorities(pool.spec).items()
        if key in secrets.values and not _are_certificates(secrets.values[key])
    )
    if problems:
        raise InvalidPoolError(problems)


def _are_certificates(content: bytes) -> bool:
    # A file may begin with a byte order mark and have text of any encoding between the certificates, `cadata` may not.
    text = content.removeprefix(codecs.BOM_UTF8).decode("ascii", errors="replace").replace("\ufffd", "?")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        return False
    return True


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
        self._looks: dict[str, _Look] = {}

    async def read(self, keys: Sequence[SecretKey]) -> SecretValues:
        """The entries; one whose Secret or key is not there is missing. Raises what the cluster client raises."""
        names = {key.name for key in keys}
        self._looks = {name: look for name, look in self._looks.items() if name in names}
        for name in sorted(names):
            await self._refresh(name, wanted={key.key for key in keys if key.name == name})
        values = {}
        for key in keys:
            entries = self._looks[key.name].entries
            if entries is not None and key.key in entries:
                values[key] = base64.b64decode(entries[key.key])
        return SecretValues(values=values, missing=tuple(key for key in keys if key not in values))

    def seconds_until_due(self) -> float:
        """Until the next look for something that is missing; infinite when all is there."""
        lacking = (look for look in self._looks.values() if look.lacking_since_seconds is not None)
        return min((max(0.0, self._due_at(look) - self._clock()) for look in lacking), default=math.inf)

    async def _refresh(self, name: str, *, wanted: set[str]) -> None:
        now = self._clock()
        last = self._looks.get(name)
        if last is not None and now < self._due_at(last):
            return
        found = await self._cluster.find(KindPath.SECRET.object(self._namespace, name))
        entries = None if found is None else found.get("data") or {}
        lacking_since = None
        if entries is None or not wanted <= entries.keys():
            lacking_since = now if last is None or last.lacking_since_seconds is None else last.lacking_since_seconds
        self._looks[name] = _Look(at_seconds=now, entries=entries, lacking_since_seconds=lacking_since)

    def _due_at(self, look: _Look) -> float:
        wait = self._interval_seconds
        if look.lacking_since_seconds is not None:
            # What is missing may be created soon: sooner than the interval, but without asking at every turn.
            wait = min(wait, max(MISSING_SECONDS, look.at_seconds - look.lacking_since_seconds))
        return look.at_seconds + wait


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
        found = {
            name: secrets.values[key] for name, key in kafka_secret_files(pool.spec).items() if key in secrets.values
        }
        keys = [key for name, key in kafka_secret_files(pool.spec).items() if name in found]
        checksum = secrets_checksum({key: secrets.values[key] for key in keys}) or "none"
        folder = self._folder / checksum
        # The end of an earlier pool of this name may have taken the files away.
        if folder != self._current or not all((folder / name).exists() for name in found):
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
