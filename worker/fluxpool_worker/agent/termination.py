"""Why a worker ends, where Kubernetes looks for it: `kubectl describe pod` and the pool's condition show it."""

from pathlib import Path
from typing import Final

import structlog

from fluxpool_contract.bounds import cut_text

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""The default of a container's `terminationMessagePath`; the kubelet mounts it."""
MAX_MESSAGE_BYTES: Final = 4096
"""The kubelet reads no more."""

log = structlog.get_logger(__name__)


def write_termination_message(message: str, *, path: Path = TERMINATION_LOG) -> None:
    """Leave the message for Kubernetes; outside of it there is no such file, and none is made."""
    if not path.is_file():
        return
    try:
        path.write_text(cut_text(message, MAX_MESSAGE_BYTES), encoding="utf-8")
    except OSError as error:
        log.warning("termination_message_lost", path=str(path), error=str(error))
