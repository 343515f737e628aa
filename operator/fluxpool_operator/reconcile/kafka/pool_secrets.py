"""The Secrets that one pool refers to, read by name at an interval, because Secrets may not be watched.

Owns the values in memory and the files that Kafka clients read. Must never log them.
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

from cryptography import x509

from fluxpool_contract.problems import FieldProblem
from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError
from fluxpool_operator.assessment import SigningCertificate
from fluxpool_operator.children import (
    CERTIFICATE_FILE,
    SecretKey,
    authorities,
    kafka_secret_files,
    keys_read_at_start,
    secret_variables,
    secrets_checksum,
    signing_secret_files,
)
from fluxpool_operator.cluster import ClusterClient, KindPath

MISSING_SECONDS: Final = 4.0
"""Before a missing Secret is read again; the longer it is missing, the rarer, up to the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """The last reading of a Secret."""

    at_seconds: float
    entries: Mapping[str, str] | None
    """None when the Secret does not exist."""
    lacking_since_seconds: float | None
    """Since when the Secret or a required entry is missing; None when complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretValues:
    """The entries that a pool refers to, as far as they exist."""

    values: Mapping[SecretKey, bytes]
    missing: tuple[SecretKey, ...]

    def checksum(self, pool: FluxWorkerPool) -> str:
        """Identifies what pods of the pool read at their start, without revealing it."""
        return secrets_checksum(keys_read_at_start(pool.spec, self.values))

    def __repr__(self) -> str:
        return f"SecretValues({len(self.values)} values, missing={self.missing})"

    def variables(self, pool: FluxWorkerPool) -> dict[str, str]:
        """Values of the worker's variables that come from Secrets, as far as they exist."""
        found = secret_variables(pool.spec).items()
        return {name: self.values[key].decode(errors="replace") for name, key in found if key in self.values}


def check_authorities(pool: FluxWorkerPool, secrets: SecretValues) -> None:
    """Raise `InvalidPoolError` for CA entries that exist and hold no certificates."""
    problems = tuple(
        FieldProblem(field=field, message=f"the entry {key} holds no PEM certificates; put the CA certificates there")
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


def signing_certificate(pool: FluxWorkerPool, secrets: SecretValues) -> SigningCertificate | None:
    """The validity of the certificate chain that image files are signed with; None when it is not named or missing."""
    key = signing_secret_files(pool.spec).get(CERTIFICATE_FILE)
    if key is None or key not in secrets.values:
        return None
    try:
        chain = x509.load_pem_x509_certificates(secrets.values[key])
    except ValueError:
        return SigningCertificate(entry=str(key), valid_from=None, valid_until=None)
    return SigningCertificate(
        entry=str(key),
        valid_from=max(certificate.not_valid_before_utc for certificate in chain),
        valid_until=min(certificate.not_valid_after_utc for certificate in chain),
    )


class SecretsReader:
    """Reads one pool's Secrets, each at most once per interval."""

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
        self._readings: dict[str, _Reading] = {}

    async def read(self, keys: Sequence[SecretKey]) -> SecretValues:
        """Read the entries, as far as they exist. Raises what the cluster client raises."""
        names = {key.name for key in keys}
        self._readings = {name: reading for name, reading in self._readings.items() if name in names}
        for name in sorted(names):
            await self._refresh(name, wanted={key.key for key in keys if key.name == name})
        values = {}
        for key in keys:
            entries = self._readings[key.name].entries
            if entries is not None and key.key in entries:
                values[key] = base64.b64decode(entries[key.key])
        return SecretValues(values=values, missing=tuple(key for key in keys if key not in values))

    def seconds_until_due(self) -> float:
        """Until the next reading of an incomplete Secret; infinite without one."""
        lacking = (reading for reading in self._readings.values() if reading.lacking_since_seconds is not None)
        return min((max(0.0, self._due_at(reading) - self._clock()) for reading in lacking), default=math.inf)

    async def _refresh(self, name: str, *, wanted: set[str]) -> None:
        now = self._clock()
        last = self._readings.get(name)
        if last is not None and now < self._due_at(last):
            return
        found = await self._cluster.find(KindPath.SECRET.object(self._namespace, name))
        entries = None if found is None else found.get("data") or {}
        lacking_since = None
        if entries is None or not wanted <= entries.keys():
            lacking_since = now if last is None or last.lacking_since_seconds is None else last.lacking_since_seconds
        self._readings[name] = _Reading(at_seconds=now, entries=entries, lacking_since_seconds=lacking_since)

    def _due_at(self, reading: _Reading) -> float:
        wait = self._interval_seconds
        if reading.lacking_since_seconds is not None:
            # A missing Secret may be created soon: read it before the interval is over, but not at every reconcile.
            wait = min(wait, max(MISSING_SECONDS, reading.at_seconds - reading.lacking_since_seconds))
        return reading.at_seconds + wait


class SecretFiles:
    """Certificates of one pool as files, in a folder named after their content.

    Clients read them when they connect: new contents make a new connection, and the old one keeps its files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: Path | None = None

    def write(self, pool: FluxWorkerPool, secrets: SecretValues) -> Path:
        """Write the files whose entries exist; returns their folder, which may be empty."""
        keys = {name: key for name, key in kafka_secret_files(pool.spec).items() if key in secrets.values}
        folder = self._folder / (secrets_checksum({key: secrets.values[key] for key in keys.values()}) or "none")
        # A removed pool may come back with the same uid, and the close of its former loop come after the first write.
        if folder != self._written or not all((folder / name).exists() for name in keys):
            for name, key in keys.items():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                file = folder / name
                file.touch(mode=0o600)
                file.write_bytes(secrets.values[key])
            self._written = folder
        return folder

    def remove(self) -> None:
        """Remove every file."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder)
