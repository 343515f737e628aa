"""What all replicas of a gateway share on a real PostgreSQL server: reservations, limits and keys. Without Kafka."""

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxpool_gateway.http.problem import ProblemError
from fluxpool_gateway.identity.api_key import KeyScope, new_key, parse_key
from fluxpool_gateway.identity.bootstrap import prepare_keys
from fluxpool_gateway.identity.key_record import KeyRecord
from fluxpool_gateway.identity.key_store import KeyStore
from fluxpool_gateway.identity.key_tables import KeyTables
from fluxpool_gateway.identity.quotas import Quotas
from fluxpool_gateway.settings import TenantLimits
from fluxpool_gateway.store.postgres.connection import Lock
from fluxpool_gateway.store.postgres.shared_tables import SharedTables
from fluxpool_gateway.store.reservations import (
    RecordState,
    ReservationOperation,
    Reserve,
    Settle,
    Verdict,
    reservation_file,
)
from fluxpool_gateway.store.task_state import (
    TaskKey,
)
from kit.gateways.quota_users import NothingStored
from kit.stores.postgres import PostgresServer


def _reservations(url: str) -> SharedTables:
    return SharedTables(url, Lock.RESERVATIONS, durable=True)


_OPERATIONS = st.one_of(
    st.builds(
        Reserve,
        key=st.just(TaskKey("key", "default")),
        digest=st.sampled_from("ab"),
        patience_ms=st.sampled_from([-1, 100_000]),
        again=st.booleans(),
    ),
    st.builds(
        Settle,
        key=st.just(TaskKey("key", "default")),
        digest=st.sampled_from("ab"),
        standing=st.sampled_from([None, *RecordState]),
    ),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(operations=st.lists(_OPERATIONS, max_size=12))
def test_verdicts_are_those_of_a_file(
    tmp_path_factory: pytest.TempPathFactory, url: str, operations: list[ReservationOperation]
) -> None:
    file, tables = reservation_file(tmp_path_factory.mktemp("reservations") / "f"), _reservations(url)
    try:
        tables.apply([_Forget()], now_ms=0)
        expected = [file.apply([operation], now_ms=1000)[0].verdict for operation in operations]
        assert [tables.apply([operation], now_ms=0)[0].verdict for operation in operations] == expected
    finally:
        file.close()
        tables.close()


class _Forget:
    def apply(self, connection: Any, now_ms: int) -> None:
        assert now_ms > 0
        connection.execute("DELETE FROM reservation")


def test_a_reservation_is_made_though_its_connection_was_closed(postgres: PostgresServer, url: str) -> None:
    tables = _reservations(url)
    for digest, verdict in (("a", Verdict.GRANTED), ("b", Verdict.OTHER_IN_PROGRESS)):
        wanted = Reserve(key=TaskKey("key", "default"), digest=digest, patience_ms=100_000)
        assert [outcome.verdict for outcome in tables.apply([wanted], now_ms=0)] == [verdict]
        postgres.end_sessions(url)
    tables.close()


def test_of_many_replicas_one_is_granted_a_key(url: str) -> None:
    granted: list[str] = []

    def run(digest: str) -> None:
        tables = _reservations(url)
        for number in range(20):
            wanted = Reserve(key=TaskKey(str(number), "acme"), digest=digest, patience_ms=100_000)
            (outcome,) = tables.apply([wanted], now_ms=0)
            if outcome.verdict is Verdict.GRANTED:
                granted.append(str(number))
        tables.close()

    threads = [threading.Thread(target=run, args=(digest,)) for digest in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted, key=int) == [str(number) for number in range(20)]


@pytest.mark.parametrize("limits", [TenantLimits(submit="20/day"), TenantLimits(outstanding=20)])
async def test_limits_hold_across_replicas(url: str, limits: TenantLimits) -> None:
    replicas = [
        Quotas({"acme": limits}, SharedTables(url, Lock.QUOTAS, durable=False), NothingStored()) for _ in range(3)
    ]
    try:
        outcomes = await asyncio.gather(
            *(replicas[number % 3].admit("acme", [f"r{number}"]) for number in range(60)), return_exceptions=True
        )
        assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 20
        assert all(isinstance(outcome, ProblemError) for outcome in outcomes if isinstance(outcome, BaseException))
    finally:
        for quotas in replicas:
            await quotas.close()


# Keys


async def test_a_key_made_by_one_replica_is_known_to_the_other_and_revoked_for_both(url: str, tmp_path: Path) -> None:
    bootstrap = tmp_path / "key"
    bootstrap.write_text(new_key())
    for _ in range(2):
        prepare_keys(url, bootstrap_key_file=bootstrap, now_ms=1)
    one, two = KeyStore(KeyTables(url)), KeyStore(KeyTables(url))
    try:
        presented = parse_key(bootstrap.read_text())
        assert presented is not None
        found = await two.find(presented.key_id)
        assert found is not None
        assert found.matches(presented)
        assert found.scopes == frozenset(KeyScope)

        def revoke(record: KeyRecord) -> tuple[KeyRecord, None]:
            return _replaced(record, revoked_at_ms=9), None

        assert await one.change(presented.key_id, revoke) == _replaced(found, revoked_at_ms=9)
        for used_at_ms in (7, 5):
            await one.save_used({presented.key_id: used_at_ms})
        assert await two.find(presented.key_id) == _replaced(found, revoked_at_ms=9, last_used_at_ms=7)
        assert await one.secret() == await two.secret()
        assert [record.key_id for record in await two.page(after="", limit=5)] == [presented.key_id]
    finally:
        one.close()
        two.close()


def _replaced(record: KeyRecord, **changes: Any) -> KeyRecord:
    return dataclasses.replace(record, **changes)
