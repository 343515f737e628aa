"""Fuzzed records from a seed: bytes, headers, times, sizes, codecs and tombstones.

Knows the form of a task only to change it. `fuzz.py` checks the outcome of the records.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from kit.brokers.foreign_producer import ForeignRecord

CODECS: Final = ("none", "none", "gzip", "snappy", "lz4", "zstd")
ROLES: Final = (
    ("tasks",) * 84 + ("tasks_vip",) * 6 + ("progress",) * 4 + ("results",) * 2 + ("control",) * 2 + ("retry",) * 2
)
_HEADER_NAMES: Final = (
    b"fluxpool-attempt",
    b"fluxpool-crashes",
    b"fluxpool-deadline",
    b"fluxpool-epoch",
    b"fluxpool-first-seen",
    b"fluxpool-not-before",
    b"fluxpool-origin-offset",
    b"fluxpool-origin-partition",
    b"fluxpool-origin-topic",
    b"fluxpool-priority",
    b"fluxpool-replay-of",
    b"fluxpool-tenant",
    b"ce_id",
    b"ce_time",
    b"ce_type",
    b"traceparent",
    b"content-type",
    b"x-app",
    b"caf\xe9",
    b"\xff\xfe",
    b"",
)
_VALUES: Final[tuple[Any, ...]] = (
    None,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    -(10**30),
    0.1,
    1e308,
    "",
    "x",
    "\x00",
    "\u202e",
    [],
    {},
    [[]],
    True,
)
_FIELDS: Final = ("prompt", "negative_prompt", "width", "height", "steps", "seed", "guidance", "n", "metadata", "extra")


@dataclass(frozen=True, slots=True, kw_only=True)
class FuzzedRecord:
    """A record, the role of its topic, and the possible id of its result."""

    role: str
    record: ForeignRecord
    request_id: str | None
    """What its value says, after a changed byte too; None without one."""


def fuzzed_records(count: int, *, seed: int, valid_share: float = 0.002) -> Iterator[FuzzedRecord]:
    """`count` records; `valid_share` of those for the task topics are valid tasks."""
    chance = random.Random(seed)  # noqa: S311 - the same seed must give the same records
    for number in range(count):
        role = chance.choice(ROLES)
        request_id = f"fuzz-{seed}-{number}"
        value = _value(chance, request_id, role=role, is_valid=chance.random() < valid_share)
        yield FuzzedRecord(
            role=role,
            record=ForeignRecord(
                key=chance.choice((None, b"", request_id.encode(), chance.randbytes(5))),
                value=value,
                headers=_headers(chance),
                timestamp_ms=_timestamp(chance),
                compression=chance.choice(CODECS),
            ),
            request_id=_named(value),
        )


def _named(value: bytes | None) -> str | None:
    try:
        named = json.loads(value or b"null")["request_id"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return named if isinstance(named, str) else None


def _value(chance: random.Random, request_id: str, *, role: str, is_valid: bool) -> bytes | None:
    task: dict[str, Any] = {"request_id": request_id, "prompt": "a kite", "width": 64, "height": 64, "steps": 1}
    if is_valid and role in {"tasks", "tasks_vip"}:
        return json.dumps(task).encode()
    match chance.randrange(12):
        case 0:
            return None
        case 1:
            return b""
        case 2 | 3:
            return chance.randbytes(chance.randrange(1, 200))
        case 4:
            return chance.choice((b"[", b'{"a":', b'"')) * chance.randrange(1, 2000)
        case 5:
            return bytes(chance.randrange(0, 300_000)) if chance.random() < 0.002 else b" " * chance.randrange(2000)
        case 6 | 7:
            return _mutated(chance, json.dumps(task).encode())
        case 8:
            return json.dumps(task).encode(chance.choice(("utf-16", "utf-32", "cp037", "utf-8-sig")))[
                : chance.randrange(200)
            ]
        case 9:
            return json.dumps(_other_message(chance, request_id)).encode()
        case _:
            # Mostly without an id: with one, each leaves two small files in the store.
            bent = {**task, chance.choice(_FIELDS): chance.choice(_VALUES), "steps": 0}
            if chance.random() < 0.9:
                del bent["request_id"]
            return json.dumps(bent).encode()


def _other_message(chance: random.Random, request_id: str) -> dict[str, Any]:
    return {
        chance.choice(("request_id", "rating_id", "id")): chance.choice((request_id, "..", "a/b", "x" * 300, 7)),
        "type": chance.choice(("step", "started", "retrying", "cancel", "later", 3)),
        "status": chance.choice(("success", "failed", "expired", "later", None)),
        "step": chance.choice(_VALUES),
        "total_steps": chance.choice(_VALUES),
        "attempt": chance.choice(_VALUES),
        "at": chance.choice(("2026-04-05T10:00:00Z", "2026-04-05T10:00:00", "yesterday", 10**18, -1, None)),
        "image_url": chance.choice((None, "javascript:alert(1)", "\x1b[2J")),
        "images": chance.choice(([], [{}], [{"object": "../../etc/passwd"}], "x")),
    }


def _mutated(chance: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(chance.randrange(1, 4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed[: chance.randrange(1, len(changed) + 1)])


def _headers(chance: random.Random) -> list[tuple[bytes, bytes | None]]:
    if chance.random() < 0.7:
        return []
    return [
        (chance.choice(_HEADER_NAMES), chance.choice((None, b"", b"1", b"-1", b"9" * 40, chance.randbytes(8))))
        for _ in range(chance.randrange(1, 5))
    ]


def _timestamp(chance: random.Random) -> int | None:
    if chance.random() < 0.8:
        return None
    return chance.choice((0, 1, 1_764_450_000, 1_764_450_000_000, 2**41, 2**52))
