"""The ledger: which tasks of a partition are in flight, as text committed beside the partition's offset.

The worker that owns the partition writes it. The next owner reads it after a crash; operator and gateway read it to
observe the group. An empty ledger is written too: it tells that a worker committed the offset, which the broker then
keeps for long. Earlier releases wrote `drawn` for `generated`; both are read.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from fluxpool_contract.bounds import clamped_milliseconds
from fluxpool_contract.messages.headers import MAX_HEADER_COUNT

MAX_METADATA_BYTES: Final = 4096
"""The broker's default `offset.metadata.max.bytes`."""


MAX_FAMILY_CHARACTERS: Final = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One task in flight; the next owner of the partition reads it after a crash."""

    task: str
    worker: str
    started_at: int
    """Seconds since 1970, UTC."""
    crashes: int = 0
    released: bool = False
    """Given up in good order (drain, rebalance): a later owner must not count it as a crash."""
    generated: bool = False
    """Its images exist and are being stored or published: what kills the worker now is not this task."""


def encode_ledger(
    entries: dict[int, LedgerEntry], *, topic_id: str | None = None, model_family: str | None = None
) -> str:
    """The ledger as compact JSON; `topic_id` says which topic the offsets are of, should another get its name.

    `model_family` is that of the checkpoint which the worker has loaded: so the operator knows it.

    Entries that do not fit into the broker's limit are left out from the highest offset on: the lowest is the one that
    a crash would hand out first.
    """
    kept = sorted(entries.items())
    while True:
        text = json.dumps(
            {
                "v": 1,
                **({} if topic_id is None else {"topic": topic_id}),
                **({} if model_family is None else {"family": model_family}),
                "tasks": {
                    str(offset): {
                        "task": entry.task,
                        "crashes": entry.crashes,
                        "pod": entry.worker,
                        "started_at": entry.started_at,
                        **({"released": True} if entry.released else {}),
                        **({"generated": True} if entry.generated else {}),
                    }
                    for offset, entry in kept
                },
            },
            separators=(",", ":"),
        )
        if len(text.encode()) <= MAX_METADATA_BYTES:
            return text
        kept.pop()


def is_ledger(metadata: str | None) -> bool:
    """Whether a worker committed this, rather than another client."""
    return _tasks(metadata) is not None


def decode_ledger(metadata: str | None) -> dict[int, LedgerEntry]:
    """The entries of committed metadata, by offset; empty, and no error, when another client wrote the text."""
    try:
        return {
            int(offset): LedgerEntry(
                task=str(entry["task"]),
                worker=str(entry["pod"]),
                started_at=clamped_milliseconds(int(entry["started_at"]) * 1000) // 1000,
                crashes=min(max(0, int(entry["crashes"])), MAX_HEADER_COUNT),
                released=bool(entry.get("released", False)),
                generated=bool(entry.get("generated", entry.get("drawn", False))),
            )
            for offset, entry in (_tasks(metadata) or {}).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return {}


def committed_topic_id(metadata: str | None) -> str | None:
    """The id of the topic that committed metadata, of a lane or a retry topic, are about; None without one."""
    topic_id = offset_metadata(metadata).get("topic")
    return topic_id if isinstance(topic_id, str) else None


def committed_model_family(metadata: str | None) -> str | None:
    """The family of the model that the worker had loaded; None when it is not told, or no family can have the name."""
    family = offset_metadata(metadata).get("family")
    return family if isinstance(family, str) and 0 < len(family) <= MAX_FAMILY_CHARACTERS else None


def _tasks(metadata: str | None) -> dict[str, Any] | None:
    """The value of `tasks`; None when another client wrote the text."""
    tasks = offset_metadata(metadata).get("tasks")
    return tasks if isinstance(tasks, dict) else None


def offset_metadata(metadata: str | None) -> dict[str, Any]:
    """The fields of committed metadata; empty, and no error, when another client wrote the text."""
    if not metadata:
        # What most other clients write, decoded for each partition at each reading: too often for an exception.
        return {}
    try:
        ledger = json.loads(metadata)
    except (ValueError, RecursionError):
        return {}
    return ledger if isinstance(ledger, dict) else {}
