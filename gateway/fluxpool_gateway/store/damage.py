"""A damaged store: the report from a reader to the projector, and moving the file aside.

The store is a projection of Kafka, so what is damaged is never repaired, only built again. The damaged file is kept
beside the new one, for inspection; one such file at most, since rebuilding must not fill the disk.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from fluxpool_gateway.store.database import COMPANIONS, StoreIdentity, identity_of

_REPORT_SUFFIX: Final = ".damage-report"
_ASIDE_INFIX: Final = ".damaged-"

logger = structlog.stdlib.get_logger(__name__)


def report_damage(file: Path, identity: StoreIdentity) -> None:
    """Tell the projector that the file with this identity is damaged; where that cannot be written, only log it."""
    report = _report_of(file)
    partial = report.with_name(f"{report.name}.{os.getpid()}")
    try:
        partial.write_text(_name_of(identity))
        partial.replace(report)
    except OSError as error:
        logger.warning("database_damage_not_reported", database_file=str(file), reason=error.strerror)


def take_damage_report(file: Path) -> bool:
    """Whether a reader found damage in the file that is there now; a report is taken once."""
    report = _report_of(file)
    try:
        reported = report.read_text()
        report.unlink()
    except OSError:
        return False
    identity = identity_of(file)
    return identity is not None and reported == _name_of(identity)


def move_aside(file: Path) -> Path | None:
    """Give a damaged store another name, and remove the one that was moved before; returns the new path.

    None when there is no such file. The write-ahead log is renamed first: if this process dies in between, the next one
    finds a store that is still damaged, never a new one with an old log. Raises `OSError`.
    """
    if not file.parent.exists():
        return None
    aside = file.with_name(f"{file.name}{_ASIDE_INFIX}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    for other in list(file.parent.iterdir()):
        if other.name.startswith(file.name + _ASIDE_INFIX):
            other.unlink(missing_ok=True)
    for suffix in COMPANIONS:
        with suppress(FileNotFoundError):
            file.with_name(file.name + suffix).rename(aside.with_name(aside.name + suffix))
    try:
        file.rename(aside)
    except FileNotFoundError:
        return None
    return aside


def remove_orphans(file: Path) -> None:
    """Delete a write-ahead log whose file is gone: SQLite would read it into the next file of that name.

    Raises `OSError`.
    """
    if not file.exists():
        for suffix in COMPANIONS:
            file.with_name(file.name + suffix).unlink(missing_ok=True)


def _report_of(file: Path) -> Path:
    return file.with_name(file.name + _REPORT_SUFFIX)


def _name_of(identity: StoreIdentity) -> str:
    """The file alone: its companions come and go with those who open it."""
    return repr(identity[:2])
