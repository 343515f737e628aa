"""The file with the keys that prove tenants, read again when it changes: a rotation needs no restart.

Kubernetes replaces the files of a mounted Secret within a minute or two, at another time in each pod. The format and
what the keys mean are `fluxpool_contract.tenants`'.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from fluxpool_contract.settings import SettingsError
from fluxpool_contract.tenants import KeySource, TenantKeys

_MAX_BYTES: Final = 4096
"""Eight keys are shorter; the file may be anything."""
LOOK_SECONDS: Final = 1.0
"""How long a process may go on with the former keys: what an overlap has to be longer than."""

log = structlog.get_logger(__name__)


class TenantSecretFile:
    """The keys of one file; may be used by several threads."""

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; raises `SettingsError`."""
        self._file = file
        self._clock = clock
        self._look_at = clock() + LOOK_SECONDS
        self._problem = ""
        self._keys = self._read()

    def keys(self, *, look: bool = False) -> TenantKeys:
        """The keys as the file has them, at most a second late and with `look` at once.

        The former ones while it cannot be read.
        """
        now = self._clock()
        if look or now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return self._keys

    def _look(self) -> None:
        try:
            keys = self._read()
        except SettingsError as error:
            # Once for each reason: it is looked at every second.
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("tenant_secret_unreadable", reason=self._problem)
            return
        self._problem = ""
        if keys != self._keys:
            self._keys = keys
            log.info("tenant_secret_changed", keys=len(keys.values))

    def _read(self) -> TenantKeys:
        # Whole each time: a mounted file may change with its size and times as they were (kubernetes/kubernetes#24215).
        try:
            with self._file.open("rb") as opened:
                content = opened.read(_MAX_BYTES + 1)
        except OSError as error:
            raise SettingsError(
                f"FLUXPOOL_TENANT_SECRET_FILE: {self._file} cannot be read ({error.strerror}); mount the Secret"
            ) from error
        try:
            if len(content) > _MAX_BYTES:
                raise ValueError(f"is larger than {_MAX_BYTES} bytes; write one key a line")
            return TenantKeys.parse(content.decode("utf-8-sig", errors="replace"))
        except ValueError as error:
            raise SettingsError(f"FLUXPOOL_TENANT_SECRET_FILE: {self._file} {error}") from error


def tenant_keys_of(file: Path | None) -> KeySource:
    """The keys of a file as `TenantTrust.shared`; without a file none. Raises `SettingsError`."""
    return TenantKeys() if file is None else TenantSecretFile(file).keys
