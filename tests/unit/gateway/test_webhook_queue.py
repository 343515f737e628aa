"""The queue of each endpoint, under a clock of the test's own: order, schedule, leases, endings."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from fluxpool_gateway.store.database import open_writer
from fluxpool_gateway.webhooks import deliveries, endpoints
from fluxpool_gateway.webhooks.deliveries import (
    LEASE_MS,
    RETENTION_MS,
    Claim,
    DeliveryState,
    Settlement,
    claim,
    enqueue,
    purge,
    settle,
)
from fluxpool_gateway.webhooks.delivery_log import Delivery, find_delivery, list_deliveries, read_numbers
from fluxpool_gateway.webhooks.dispatch.sending import Attempt, AttemptError
from fluxpool_gateway.webhooks.endpoints import MAX_SECRETS, Endpoint, find_endpoint, lock_enabled
from fluxpool_gateway.webhooks.event import Event
from fluxpool_gateway.webhooks.schedule import DELAYS_MS, JITTER, MAX_AGE_MS, next_attempt_ms
from fluxpool_gateway.webhooks.signing import new_secret
from fluxpool_gateway.webhooks.start import VERSION_TABLE, prepare_webhooks
from fluxpool_gateway.webhooks.tables import attempts, events, metadata
from kit.gateways.webhook_world import World, webhook_world

SECOND_MS, HOUR_MS = 1000, 3_600_000


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with webhook_world(tmp_path) as opened:
        yield opened


def happened(world: World, *names: str, tenant: str = "default") -> None:
    """Events of a tenant, queued for its endpoints."""
    found = [
        Event(event_id=f"evt_{name}", tenant=tenant, type="generation.succeeded", at_ms=world.clock(), body=name)
        for name in names
    ]
    world.database.write(
        lambda connection: enqueue(connection, found, lock_enabled(connection, [tenant]), now_ms=world.clock())
    )


def claimed(world: World, *, limit: int = 100) -> list[Claim]:
    return [
        found
        for suspects in (False, True)
        for found in world.database.write(
            lambda connection, suspects=suspects: claim(  # type: ignore[misc]
                connection, suspects=suspects, limit=limit, now_ms=world.clock()
            )
        )
    ]


def settled(
    world: World,
    made: Claim,
    error: AttemptError | None = None,
    *,
    status: int | None = None,
    retry_after_ms: int | None = None,
) -> Claim | None:
    attempt = Attempt(
        at_ms=world.clock(), latency_ms=5, status=status, error=error, retry_after_ms=retry_after_ms, answer="hm"
    )
    settlement = Settlement(claim=made, attempt=attempt, now_ms=world.clock(), draw=0.5, keeps_lease=error is None)
    (following,) = world.database.write(lambda connection: settle(connection, [settlement]))
    return following


def listed(world: World, endpoint: Endpoint) -> Sequence[Delivery]:
    """The oldest first."""
    page = world.database.read(
        lambda connection: list_deliveries(connection, endpoint_id=endpoint.endpoint_id, before=None, limit=1000)
    )
    return page.deliveries[::-1]


def states(world: World, endpoint: Endpoint) -> list[str]:
    return [delivery.state for delivery in listed(world, endpoint)]


def now_of(world: World, endpoint: Endpoint) -> Endpoint:
    found = world.database.read(lambda connection: find_endpoint(connection, endpoint.tenant, endpoint.endpoint_id))
    assert found is not None
    return found


def test_an_endpoint_is_told_of_one_event_after_the_other(world: World) -> None:
    endpoint = world.add()
    happened(world, "a", "b")
    happened(world, "c")
    (first,) = claimed(world)
    assert claimed(world) == [], "one at a time"
    second = settled(world, first)
    assert second is not None
    third = settled(world, second)
    assert third is not None
    assert [made.body for made in (first, second, third)] == ["a", "b", "c"]
    assert settled(world, third) is None
    assert claimed(world) == []
    assert states(world, endpoint) == ["succeeded"] * 3


def test_endpoints_do_not_wait_for_each_other_and_tenants_are_apart(world: World) -> None:
    one, two = world.add(), world.add()
    other = world.add(tenant="other")
    happened(world, "a")
    happened(world, "b", tenant="other")
    told = {made.endpoint.endpoint_id: made.body for made in claimed(world)}
    assert told == {one.endpoint_id: "a", two.endpoint_id: "a", other.endpoint_id: "b"}


def test_an_event_that_is_found_again_is_not_delivered_again(world: World) -> None:
    endpoint = world.add()
    happened(world, "a", "a")
    happened(world, "a", "b")
    assert len(listed(world, endpoint)) == 2


def test_a_failed_delivery_is_retried_on_schedule_with_one_id_while_others_wait(world: World) -> None:
    endpoint = world.add()
    happened(world, "a", "b")
    (made,) = claimed(world)
    began_ms, gaps_ms, event_ids = world.clock(), [], {made.event_id}
    while True:
        failed_ms = world.clock()
        assert settled(world, made, AttemptError.STATUS, status=500) is None
        if states(world, endpoint)[0] != DeliveryState.PENDING:
            break
        due_ms = listed(world, endpoint)[0].due_at_ms
        world.clock.now_ms = due_ms - 1
        assert claimed(world) == [], "neither early, nor the next one"
        world.clock.now_ms = due_ms
        (made,) = claimed(world)
        gaps_ms.append(due_ms - failed_ms)
        event_ids.add(made.event_id)
    assert event_ids == {"evt_a"}
    assert gaps_ms[:6] == list(DELAYS_MS)
    assert set(gaps_ms[6:]) == {10 * HOUR_MS}
    assert 60 * HOUR_MS < world.clock() - began_ms <= MAX_AGE_MS
    assert made.attempts + 1 == len(gaps_ms) + 1 == 12
    # Then the next one has its turn.
    (following,) = claimed(world)
    assert following.body == "b"


@given(
    tries=st.integers(1, 100), age_ms=st.integers(0, MAX_AGE_MS), draw=st.floats(0, 1), retry=st.integers(0, HOUR_MS)
)
def test_a_delay_is_within_the_jitter_and_never_shorter_than_asked(
    tries: int, age_ms: int, draw: float, retry: int
) -> None:
    at_ms = next_attempt_ms(tries=tries, queued_at_ms=0, now_ms=age_ms, retry_after_ms=retry, draw=draw)
    delay_ms = DELAYS_MS[min(tries, 6) - 1]
    if at_ms is None:
        assert age_ms + max(retry, delay_ms * (1 + JITTER)) > MAX_AGE_MS
    else:
        assert at_ms - age_ms >= max(retry, int(delay_ms * (1 - JITTER)))
        assert at_ms - age_ms <= max(retry, delay_ms * (1 + JITTER) + 1)


def test_retry_after_lengthens_a_delay_and_does_not_shorten_it(world: World) -> None:
    endpoint = world.add()
    happened(world, "a")
    (made,) = claimed(world)
    settled(world, made, AttemptError.STATUS, status=429, retry_after_ms=60 * SECOND_MS)
    assert listed(world, endpoint)[0].due_at_ms == world.clock() + 60 * SECOND_MS
    world.clock.pass_seconds(60)
    (made,) = claimed(world)
    settled(world, made, AttemptError.STATUS, status=503, retry_after_ms=1)
    assert listed(world, endpoint)[0].due_at_ms == world.clock() + DELAYS_MS[1]


def test_410_disables_the_endpoint_and_ends_what_waits(world: World) -> None:
    endpoint = world.add()
    happened(world, "a", "b")
    (made,) = claimed(world)
    assert settled(world, made, AttemptError.STATUS, status=410) is None
    now = now_of(world, endpoint)
    assert (now.enabled, now.disabled_because) == (False, "it answered 410 Gone")
    assert [(made.state, made.last_error) for made in listed(world, endpoint)] == [
        ("failed", "status"),
        ("failed", "disabled"),
    ]
    happened(world, "c")
    assert claimed(world) == []
    assert len(listed(world, endpoint)) == 2, "a disabled endpoint is told nothing"


def test_what_waited_three_days_behind_a_dead_delivery_is_given_up_with_it(world: World) -> None:
    endpoint = world.add()
    happened(world, "a", "b")
    world.clock.pass_seconds(3600)
    happened(world, "late")
    world.clock.now_ms += MAX_AGE_MS - HOUR_MS // 2
    (made,) = claimed(world)
    settled(world, made, AttemptError.TIMEOUT)
    assert [(each.state, each.last_error) for each in listed(world, endpoint)] == [
        ("failed", "timeout"),
        ("failed", "too_old"),
        ("pending", None),
    ]
    assert [following.body for following in claimed(world)] == ["late"]
    numbers = world.database.read(read_numbers)
    assert (numbers.ended, numbers.pending) == ({"failed": 2}, 1)


def test_an_old_delivery_to_an_endpoint_that_answers_again_is_delivered(world: World) -> None:
    endpoint = world.add()
    happened(world, "a", "b")
    world.clock.now_ms += 2 * MAX_AGE_MS
    (made,) = claimed(world)
    following = settled(world, made)
    assert following is not None
    settled(world, following)
    assert states(world, endpoint) == ["succeeded", "succeeded"]


def test_a_lease_that_its_holder_lost_saves_nothing(world: World) -> None:
    endpoint = world.add()
    happened(world, "a")
    (lost,) = claimed(world)
    world.clock.now_ms += LEASE_MS
    (held,) = claimed(world)
    assert settled(world, lost, AttemptError.TIMEOUT) is None
    assert states(world, endpoint) == ["pending"]
    settled(world, held)
    assert states(world, endpoint) == ["succeeded"]


def test_leases_of_a_killed_dispatcher_end_when_another_takes_over(world: World) -> None:
    world.add()
    happened(world, "a")
    assert len(claimed(world)) == 1
    assert claimed(world) == []
    world.database.write(deliveries.release_all)
    assert len(claimed(world)) == 1


def test_a_test_comes_before_what_waits_and_is_attempted_once(world: World) -> None:
    endpoint = world.add("https://example.com/", "generation.failed")
    world.add()
    happened(world, "a")
    blocked = world.add()
    happened(world, "b")
    for made in claimed(world):
        settled(world, made, AttemptError.CONNECT)
    world.database.write(lambda connection: deliveries.enqueue_test(connection, blocked, now_ms=world.clock()))
    (test,) = claimed(world)
    assert (test.type, test.endpoint.endpoint_id) == ("webhook.test", blocked.endpoint_id)
    settled(world, test, AttemptError.CONNECT)
    assert states(world, blocked) == ["pending", "failed"]
    assert claimed(world) == [], "what waited for its time waits on"
    assert listed(world, endpoint) == []


def test_a_delivery_is_queued_again_by_hand_with_its_id_and_a_new_schedule(world: World) -> None:
    endpoint = world.add()
    happened(world, "a")
    (made,) = claimed(world)
    settled(world, made)
    world.clock.pass_seconds(10)
    world.database.write(
        lambda connection: deliveries.redeliver(connection, made.delivery_id, endpoint, now_ms=world.clock())
    )
    (again,) = claimed(world)
    assert (again.event_id, again.attempts, again.tries) == (made.event_id, 1, 0)
    settled(world, again, AttemptError.CLOSED)
    delivery = world.database.read(lambda connection: find_delivery(connection, "default", made.delivery_id))
    assert delivery is not None
    assert [attempt.error for attempt in delivery.log] == [None, "closed"]
    assert delivery.due_at_ms == world.clock() + DELAYS_MS[0]


def test_redelivering_one_that_waits_attempts_it_now(world: World) -> None:
    endpoint = world.add()
    happened(world, "a")
    (made,) = claimed(world)
    settled(world, made, AttemptError.CLOSED)
    assert claimed(world) == []
    world.database.write(
        lambda connection: deliveries.redeliver(connection, made.delivery_id, endpoint, now_ms=world.clock())
    )
    assert [each.body for each in claimed(world)] == ["a"]


def test_a_deleted_endpoint_takes_its_deliveries_with_it_also_one_under_way(world: World) -> None:
    endpoint = world.add()
    happened(world, "a", "b")
    (made,) = claimed(world)
    settled(world, made, AttemptError.CLOSED)
    world.clock.pass_seconds(10)
    (made,) = claimed(world)
    assert world.database.write(
        lambda connection: endpoints.delete_endpoint(connection, "default", endpoint.endpoint_id)
    )
    assert settled(world, made) is None
    assert listed(world, endpoint) == []
    assert world.database.read(lambda connection: connection.execute(select(attempts)).all()) == []


def test_what_is_old_is_purged_and_what_waits_is_not(world: World) -> None:
    endpoint = world.add()
    happened(world, "a")
    (made,) = claimed(world)
    settled(world, made)
    world.clock.now_ms += RETENTION_MS - 1
    happened(world, "b")
    world.database.write(lambda connection: purge(connection, now_ms=world.clock()))
    assert len(listed(world, endpoint)) == 2
    world.clock.now_ms += 2
    world.database.write(lambda connection: purge(connection, now_ms=world.clock()))
    assert [delivery.event_id for delivery in listed(world, endpoint)] == ["evt_b"]
    assert world.database.read(lambda connection: connection.execute(select(attempts)).all()) == []
    # The event's turn comes when no delivery has it.
    world.database.write(lambda connection: purge(connection, now_ms=world.clock()))
    assert world.database.read(lambda connection: connection.execute(select(events.c.event_id)).scalars().all()) == [
        "evt_b"
    ]


def test_several_secrets_are_valid_while_one_is_rotated(world: World) -> None:
    endpoint = world.add()
    once = endpoint.rotated(new_secret(), now_ms=1000, overlap_ms=500)
    assert once.valid_secrets(1499) == (once.secrets[0].text, endpoint.secrets[0].text)
    assert once.valid_secrets(1500) == (once.secrets[0].text,)
    assert endpoint.rotated(new_secret(), now_ms=1000, overlap_ms=0).valid_secrets(1000) != endpoint.valid_secrets(1000)
    often = endpoint
    for _ in range(10):
        often = often.rotated(new_secret(), now_ms=1000, overlap_ms=500)
    assert len(often.secrets) == MAX_SECRETS
    # A later rotation does not lengthen the life of an earlier secret.
    assert once.rotated(new_secret(), now_ms=1400, overlap_ms=9000).valid_secrets(1500)[-1] == once.secrets[0].text


def test_the_migrations_make_the_tables_of_this_release(tmp_path: Path) -> None:
    prepare_webhooks(tmp_path / "webhooks.db")
    prepare_webhooks(tmp_path / "webhooks.db")
    engine = open_writer(tmp_path / "webhooks.db")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    engine.dispose()
    assert (tmp_path / "webhooks.db").stat().st_mode & 0o077 == 0, "it has the secrets"
