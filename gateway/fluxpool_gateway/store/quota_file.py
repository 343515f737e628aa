"""What the limits of tenants and keys count, in a file that server processes share: submissions, unfinished tasks.

How many submissions fit is decided by the `limits` library (sliding window counter); here is its storage. It has none
for processes that share a disk and no server. Outstanding are the tasks that the task store knows as unfinished, and
those admitted here that it does not know yet: an admission is dropped in the transaction that counts the task store and
finds its task there, so that no task counts twice or not at all. Blocks: callers use a thread.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, floor
from pathlib import Path
from typing import Final, Protocol

import structlog
from limits import RateLimitItem
from limits.storage import SlidingWindowCounterSupport, Storage
from limits.storage.base import TimestampedSlidingWindow
from limits.strategies import SlidingWindowCounterRateLimiter

from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.shared_file import SharedFile, Statements

FILE_SUFFIX: Final = ".quotas"
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS hits (key TEXT PRIMARY KEY, count INTEGER NOT NULL, ends_at_ms INTEGER NOT NULL)
    WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS admission (tenant TEXT, request_id TEXT, at_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, request_id)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS counted (tenant TEXT PRIMARY KEY, unfinished INTEGER NOT NULL, at_ms INTEGER NOT NULL)
    WITHOUT ROWID""",
)
_ADMIT: Final = (
    "INSERT INTO admission VALUES (?, ?, ?) ON CONFLICT (tenant, request_id) DO UPDATE SET at_ms = excluded.at_ms"
)
_SAVE_COUNT: Final = (
    "INSERT INTO counted VALUES (?, ?, ?)"
    " ON CONFLICT (tenant) DO UPDATE SET unfinished = excluded.unfinished, at_ms = excluded.at_ms"
)
_HIT: Final = "INSERT INTO hits VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET count = hits.count + excluded.count"
UNPROJECTED_SECONDS: Final = 300
"""An admission whose task is not in the store after so long counts no longer: its record was never written."""

COUNTED_MS: Final = 1000
"""How long a count of the task store is used, by all processes: it takes a millisecond for two thousand tasks. Until
the next one the tasks that were finished meanwhile count as well, and those admitted meanwhile in any case."""
COUNTED_AGAIN_MS: Final = 100
"""The same where it leaves no room: soon enough for the clients that wait for it."""

logger = structlog.stdlib.get_logger(__name__)


class LimitName(StrEnum):
    """Which limit of a tenant, or of a key."""

    SUBMIT = "submit"
    """Tasks submitted in a time."""
    OUTSTANDING = "outstanding"
    """Tasks that are not finished."""
    KEY_SUBMIT = "key-submit"
    """Tasks submitted with a key, and those that rotations made of it, in a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tasks that may be submitted in a time."""

    name: LimitName
    item: RateLimitItem
    counted_for: tuple[str, ...]
    """What has the limit: a tenant, which never holds a slash, or `key` and a bucket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a submission; None where there is none."""

    rates: tuple[Rate, ...] = ()
    """That of the tenant, then that of the key."""
    outstanding: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remaining:
    """What is left of a limit."""

    limit: LimitName
    count: int
    more_in_seconds: int | None
    """When more is left; None where that depends on other things than time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a request for admission came to."""

    exceeded: LimitName | None
    """The limit that refuses it; None when it is granted."""
    remaining: tuple[Remaining, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Admit tasks of a tenant, all or none."""

    tenant: str
    request_ids: tuple[str, ...]
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Take an admission back: its task certainly was not written. The submission still counts as one."""

    tenant: str
    request_ids: tuple[str, ...]


class UnfinishedTasks(Protocol):
    """The task store, as far as it is asked here; `TaskStoreReader` in service."""

    def count_unfinished(self, tenant: str, *, known: Sequence[str], most: int) -> tuple[int, Collection[str]]:
        """Unfinished tasks of the tenant, counted up to `most`, and which of the ids in `known` are stored."""


def quota_file(file: Path) -> SharedFile:
    """The counts in this file."""
    return SharedFile(file, schema=_SCHEMA, version=_SCHEMA_VERSION)


class Transaction:
    """Admissions and releases of one process, applied together; an operation of a `SharedFile`."""

    def __init__(self, requests: Sequence[Admit | Release], store: UnfinishedTasks) -> None:
        self._requests = requests
        self._store = store
        self._counts: dict[str, _Count] = {}

    def apply(self, connection: Statements, now_ms: int) -> list[Grant]:
        """The outcome of each, in order."""
        # A transaction that is repeated in a new file starts from nothing.
        self._counts.clear()
        connection.execute("DELETE FROM hits WHERE ends_at_ms <= ?", [now_ms])
        windows = SlidingWindowCounterRateLimiter(_Hits(connection, now_ms / 1000))
        grants = []
        for request in self._requests:
            if isinstance(request, Admit):
                grants.append(self._admit(request, connection, windows, now_ms))
                continue
            rows = [(request.tenant, request_id) for request_id in request.request_ids]
            connection.executemany("DELETE FROM admission WHERE tenant = ? AND request_id = ?", rows)
            self._counts.pop(request.tenant, None)
            grants.append(Grant(exceeded=None))
        return grants

    def _admit(
        self, request: Admit, connection: Statements, windows: SlidingWindowCounterRateLimiter, now_ms: int
    ) -> Grant:
        tenant, limits, wanted = request.tenant, request.limits, len(request.request_ids)
        remaining: list[Remaining] = []
        exceeded: LimitName | None = None
        counted = _Count(unfinished=0, admitted=0, age_ms=0)
        if limits.outstanding is not None:
            counted = self._count(connection, request, limits.outstanding, now_ms)
            if counted.outstanding + wanted > limits.outstanding:
                exceeded = LimitName.OUTSTANDING
        # Last, because it cannot be undone: what is refused for another reason, or by one of them, uses up nothing.
        if exceeded is None:
            exceeded = _hit(limits.rates, windows, wanted)
        remaining += [_left(rate, windows) for rate in limits.rates]
        if limits.outstanding is not None:
            if exceeded is None:
                rows = [(tenant, request_id, now_ms) for request_id in request.request_ids]
                connection.executemany(_ADMIT, rows)
                counted = self._counts[tenant] = replace(counted, admitted=counted.admitted + wanted)
            left = max(0, limits.outstanding - counted.outstanding)
            remaining.append(Remaining(limit=LimitName.OUTSTANDING, count=left, more_in_seconds=None))
        return Grant(exceeded=exceeded, remaining=tuple(remaining))

    def _count(self, connection: Statements, request: Admit, most: int, now_ms: int) -> "_Count":
        """As it was a moment ago; counted again before that refuses a task."""
        tenant = request.tenant
        counted = self._counts.get(tenant) or _last_count(connection, tenant, now_ms)
        is_full = counted.outstanding + len(request.request_ids) > most
        # A clock that was set back makes an age negative.
        if not 0 <= counted.age_ms <= (COUNTED_AGAIN_MS if is_full else COUNTED_MS):
            counted = self._recount(connection, tenant, counted, most=most, now_ms=now_ms)
        self._counts[tenant] = counted
        return counted

    def _recount(self, connection: Statements, tenant: str, last: "_Count", *, most: int, now_ms: int) -> "_Count":
        long_ago_ms = now_ms - UNPROJECTED_SECONDS * 1000
        connection.execute("DELETE FROM admission WHERE tenant = ? AND at_ms < ?", [tenant, long_ago_ms])
        rows = connection.execute("SELECT request_id FROM admission WHERE tenant = ?", [tenant])
        admitted = [request_id for (request_id,) in rows]
        try:
            unfinished, projected = self._store.count_unfinished(tenant, known=admitted, most=most)
        except StoreUnavailableError as error:
            # Submissions do not depend on the task store; neither may they with a limit.
            logger.warning("outstanding_tasks_unknown", tenant=tenant, reason=str(error))
            unfinished, projected = last.unfinished, ()
        gone = [(tenant, request_id) for request_id in projected]
        connection.executemany("DELETE FROM admission WHERE tenant = ? AND request_id = ?", gone)
        connection.execute(_SAVE_COUNT, [tenant, unfinished, now_ms])
        return _Count(unfinished=unfinished, admitted=len(admitted) - len(gone), age_ms=0)


def _hit(rates: Sequence[Rate], windows: SlidingWindowCounterRateLimiter, cost: int) -> LimitName | None:
    """Count tasks in all of them, or in none; which refuses them, of several the one that does so longest."""
    full = [rate for rate in rates if not windows.test(rate.item, *rate.counted_for, cost=cost)]
    if not full:
        for rate in rates:
            windows.hit(rate.item, *rate.counted_for, cost=cost)
        return None
    longest = max(full, key=lambda rate: (cost > rate.item.amount, _left(rate, windows).more_in_seconds or 0))
    return longest.name


def _left(rate: Rate, windows: SlidingWindowCounterRateLimiter) -> Remaining:
    state = windows.get_window_stats(rate.item, *rate.counted_for)
    wait_seconds = max(1, ceil(state.reset_time - time.time()))
    return Remaining(limit=rate.name, count=state.remaining, more_in_seconds=wait_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """Outstanding tasks of a tenant."""

    unfinished: int
    """Of those that the task store had when it was asked."""
    admitted: int
    """Since then, or not known to it then."""
    age_ms: int

    @property
    def outstanding(self) -> int:
        """All of them."""
        return self.unfinished + self.admitted


def _last_count(connection: Statements, tenant: str, now_ms: int) -> _Count:
    row = connection.execute("SELECT unfinished, at_ms FROM counted WHERE tenant = ?", [tenant]).fetchone()
    unfinished, at_ms = (0, -COUNTED_MS) if row is None else row
    (admitted,) = connection.execute("SELECT count(*) FROM admission WHERE tenant = ?", [tenant]).fetchone()
    return _Count(unfinished=unfinished, admitted=admitted, age_ms=now_ms - at_ms)


class _Hits(Storage, SlidingWindowCounterSupport, TimestampedSlidingWindow):
    """The storage of `limits` for the length of one transaction, which makes all of it atomic."""

    STORAGE_SCHEME = None

    def __init__(self, connection: Statements, now_seconds: float) -> None:
        super().__init__()
        self._connection = connection
        self._now_seconds = now_seconds

    @property
    def base_exceptions(self) -> type[Exception]:
        """What it raises."""
        return Exception

    def get(self, key: str) -> int:
        """Hits in one window."""
        row = self._connection.execute("SELECT count FROM hits WHERE key = ?", [key]).fetchone()
        return 0 if row is None else int(row[0])

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Add hits to a window, which is forgotten after `expiry` seconds."""
        self._connection.execute(_HIT, [key, amount, int(1000 * (self._now_seconds + expiry))])
        return self.get(key)

    def get_expiry(self, key: str) -> float:
        """When a window is forgotten, in seconds since 1970."""
        row = self._connection.execute("SELECT ends_at_ms FROM hits WHERE key = ?", [key]).fetchone()
        return self._now_seconds if row is None else row[0] / 1000

    def check(self) -> bool:
        """The transaction runs."""
        return True

    def reset(self) -> int | None:
        """Forget everything."""
        return self._connection.execute("DELETE FROM hits").rowcount

    def clear(self, key: str) -> None:
        """Forget one window."""
        self._connection.execute("DELETE FROM hits WHERE key = ?", [key])

    def get_sliding_window(self, key: str, expiry: int) -> tuple[int, float, int, float]:
        """Hits of the window before and how long they count, and the same of this one."""
        before, current = self.sliding_window_keys(key, expiry, self._now_seconds)
        hits_before = self.get(before)
        rest_seconds = expiry - self._now_seconds % expiry
        return hits_before, rest_seconds if hits_before else 0.0, self.get(current), rest_seconds + expiry

    def acquire_sliding_window_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Add hits when they fit; hits of the window before count for the part of it that is not over."""
        before, before_seconds, current, _ = self.get_sliding_window(key, expiry)
        if floor(before * before_seconds / expiry + current) + amount > limit:
            return False
        # Read in the next window as well.
        self.incr(self.sliding_window_keys(key, expiry, self._now_seconds)[1], 2 * expiry, amount)
        return True

    def clear_sliding_window(self, key: str, expiry: int) -> None:
        """Forget both windows."""
        for name in self.sliding_window_keys(key, expiry, self._now_seconds):
            self.clear(name)
