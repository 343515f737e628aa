"""What endpoints are told: each end of a task and of a group once, whatever is read again."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from fluxpool_gateway.store.tables import change_counter, tasks
from fluxpool_gateway.store.task_state import DeletionSeen, ProgressSeen, TaskStatus
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_gateway.webhooks.dispatch.collector import PAGE, QUIET_MS
from fluxpool_gateway.webhooks.endpoints import Endpoint
from fluxpool_gateway.webhooks.event import MAX_BODY_BYTES
from fluxpool_gateway.webhooks.schedule import MAX_AGE_MS
from fluxpool_gateway.webhooks.tables import deliveries, events
from kit.gateways.webhook_world import NOW_MS, World, ended, submitted, webhook_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with webhook_world(tmp_path) as opened:
        yield opened


def told(world: World, endpoint_id: str | None = None) -> Sequence[dict[str, Any]]:
    """The messages that are queued, in order; with their ids."""
    query = (
        select(events.c.event_id, events.c.body, deliveries.c.endpoint_id)
        .join(deliveries, deliveries.c.event_id == events.c.event_id)
        .order_by(deliveries.c.queued_at_ms, deliveries.c.number)
    )
    rows = world.database.read(lambda connection: connection.execute(query).all())
    return [json.loads(row.body) | {"id": row.event_id} for row in rows if endpoint_id in {None, row.endpoint_id}]


def types(world: World, endpoint_id: str | None = None) -> list[str]:
    return [message["type"] for message in told(world, endpoint_id)]


async def test_each_end_is_told_with_the_task_and_no_other_change_is(world: World) -> None:
    world.add()
    running = ProgressSeen(request_id="d", status=TaskStatus.RUNNING, at_ms=NOW_MS, started=True, tenant="default")
    world.project(*(submitted(name) for name in "abcd"), running)
    world.project(ended("a"), ended("b", TaskStatus.FAILED), ended("c", TaskStatus.CANCELED))
    world.project(ended("e", TaskStatus.EXPIRED))
    assert await world.collector().collect() == 4
    assert types(world) == [
        "generation.succeeded",
        "generation.failed",
        "generation.canceled",
        "generation.expired",
    ]
    first, second, *_ = told(world)
    assert set(first) == {"id", "type", "timestamp", "data"}
    assert first["timestamp"] == "2027-01-15T08:00:00+00:00"
    assert first["data"]["request_id"] == "a"
    assert first["data"]["status"] == "succeeded"
    assert first["data"]["status_url"] == "http://gateway/v1/generations/a"
    assert second["data"]["error"]["message"] == "oh"


async def test_nothing_is_told_twice_by_another_collector_or_a_repeated_result(world: World) -> None:
    world.add()
    world.project(submitted("a"), ended("a"))
    assert await world.collector().collect() == 1
    assert await world.collector().collect() == 0
    world.project(ended("a"), submitted("a"))
    assert await world.collector().collect() == 0


async def test_a_store_that_was_built_again_tells_nothing_again_and_what_it_lacked_before(world: World) -> None:
    world.add()
    world.project(submitted("a"), ended("a"))
    collector = world.collector()
    assert await collector.collect() == 1
    with world.tasks_engine.begin() as connection:
        connection.execute(delete(tasks))
        connection.execute(update(change_counter).values(first_number=NOW_MS * 1000 + 77))
    # A projector of its own, as it would be after a rebuild.
    world.tasks = TaskStoreWriter(world.tasks_engine)
    world.clock.pass_seconds(60)
    world.project(submitted("a"), submitted("b"), ended("a"), ended("b"))
    assert await collector.collect() == 1
    assert [message["data"]["request_id"] for message in told(world)] == ["a", "b"]


async def test_a_replay_of_a_failed_task_is_told_by_its_own_end(world: World) -> None:
    world.add()
    world.project(submitted("a"), ended("a", TaskStatus.FAILED))
    collector = world.collector()
    assert await collector.collect() == 1
    world.project(submitted("a", epoch=1))
    assert await collector.collect() == 0
    world.project(ended("a", TaskStatus.FAILED, epoch=1))
    assert await collector.collect() == 1
    first, second = told(world)
    assert first["type"] == second["type"]
    assert first["id"] != second["id"]


async def test_tenants_and_event_types_are_apart(world: World) -> None:
    all_of_acme = world.add(tenant="acme")
    failures = world.add("https://example.com/", "generation.failed", tenant="acme")
    other = world.add(tenant="other")
    for tenant in ("acme", "other", "without"):
        world.project(submitted("a", tenant=tenant), ended("a", tenant=tenant))
    world.project(submitted("b", tenant="acme"), ended("b", TaskStatus.FAILED, tenant="acme"))
    await world.collector().collect()
    assert types(world, all_of_acme.endpoint_id) == ["generation.succeeded", "generation.failed"]
    assert types(world, failures.endpoint_id) == ["generation.failed"]
    assert types(world, other.endpoint_id) == ["generation.succeeded"]


async def test_an_endpoint_is_not_told_of_what_ended_before_it_was_made_or_long_ago(world: World) -> None:
    world.project(submitted("old"), ended("old", at_ms=NOW_MS - 10_000))
    world.add()
    world.project(submitted("older"), ended("older", at_ms=NOW_MS - 3 * MAX_AGE_MS))
    world.project(submitted("new"), ended("new"))
    await world.collector().collect()
    assert [message["data"]["request_id"] for message in told(world)] == ["new"]


def disabled(endpoint: Endpoint) -> Endpoint:
    return endpoint.changed(enabled=False)


def enabled(endpoint: Endpoint) -> Endpoint:
    return endpoint.changed(enabled=True)


async def test_an_endpoint_is_not_told_of_what_ended_while_it_was_disabled(world: World) -> None:
    endpoint = world.add()
    collector = world.collector()
    world.project(submitted("a"), ended("a"))
    await collector.collect()
    for change, name in ((disabled, "b"), (enabled, "c")):
        world.clock.pass_seconds(200)
        await world.store.change("default", endpoint.endpoint_id, change, now_ms=world.clock())
        world.clock.pass_seconds(1)
        world.project(submitted(name), ended(name, at_ms=world.clock()))
        await collector.collect()
    assert [message["data"]["request_id"] for message in told(world)] == ["a", "c"]


async def test_more_ends_than_a_page_are_told_in_their_order(world: World) -> None:
    world.add()
    names = [f"task-{number}" for number in range(2 * PAGE + 7)]
    for start in range(0, len(names), 50):
        world.project(*(change for name in names[start : start + 50] for change in (submitted(name), ended(name))))
    assert await world.collector().collect() == len(names)
    assert [message["data"]["request_id"] for message in told(world)] == names


async def test_a_clock_that_is_set_back_does_not_change_the_order(world: World) -> None:
    world.add()
    collector = world.collector()
    for name in "abc":
        world.project(submitted(name), ended(name, at_ms=NOW_MS))
        await collector.collect()
        world.clock.pass_seconds(-0.5)
    assert [message["data"]["request_id"] for message in told(world)] == ["a", "b", "c"]


async def test_two_collectors_at_once_tell_each_end_once(world: World) -> None:
    world.add()
    for name in range(60):
        world.project(submitted(f"t{name}"), ended(f"t{name}"))
        if name % 20 == 0:
            await asyncio.gather(*(world.collector().collect() for _ in range(3)), return_exceptions=True)
    await world.collector().collect()
    assert len(told(world)) == 60
    assert len({message["id"] for message in told(world)}) == 60


async def test_a_message_stays_below_20_kb(world: World) -> None:
    world.add()
    metadata = {f"key-{number}": "ü" * 500 for number in range(16)}
    world.project(submitted("a"), ended("a", metadata={"small": "kept"}), submitted("b"), ended("b", metadata=metadata))
    await world.collector().collect()
    small, large = told(world)
    assert small["data"]["metadata"] == {"small": "kept"}
    query = select(events.c.body)
    bodies = world.database.read(lambda connection: connection.execute(query).scalars().all())
    assert max(len(body.encode()) for body in bodies) < MAX_BODY_BYTES
    assert large["data"]["request_id"] == "b"
    assert large["data"].get("shortened") is (True if "metadata" not in large["data"] else None)


async def test_a_group_is_told_once_when_it_is_quiet_whatever_is_redelivered(world: World) -> None:
    world.add("https://example.com/", "group.completed")
    collector = world.collector()
    world.project(*(submitted(name, group_id="foxes") for name in "abc"), ended("a"), ended("b", TaskStatus.FAILED))
    await collector.collect()
    world.clock.now_ms += 2 * QUIET_MS
    world.caught_up()
    assert await collector.collect() == 0, "one has not ended"
    world.project(ended("c"))
    assert await collector.collect() == 0, "its client may add others"
    world.clock.now_ms += QUIET_MS
    assert await collector.collect() == 0, "the projector may lack others"
    world.caught_up()
    assert await collector.collect() == 1
    (message,) = told(world)
    assert message["type"] == "group.completed"
    assert message["data"]["counts"] == {"succeeded": 2, "failed": 1, "expired": 0, "canceled": 0}
    assert message["data"]["total"] == 3
    # A replay of the failed one, and a repeated result.
    world.project(submitted("b", group_id="foxes", epoch=1), ended("b", epoch=1), ended("a"))
    await collector.collect()
    world.clock.now_ms += 2 * QUIET_MS
    world.caught_up()
    await world.collector().collect()
    assert types(world) == ["group.completed"]


async def test_groups_of_two_tenants_with_one_name_are_two(world: World) -> None:
    for tenant in ("acme", "other"):
        world.add("https://example.com/", "group.completed", tenant=tenant)
        world.project(submitted("a", tenant=tenant, group_id="foxes"), ended("a", tenant=tenant))
    collector = world.collector()
    await collector.collect()
    world.clock.now_ms += 2 * QUIET_MS
    world.caught_up()
    assert await collector.collect() == 2
    assert len({message["id"] for message in told(world)}) == 2


async def test_a_group_whose_tasks_were_deleted_is_not_told(world: World) -> None:
    world.add("https://example.com/", "group.completed")
    collector = world.collector()
    world.project(submitted("a", group_id="foxes"), ended("a"))
    await collector.collect()
    world.project(DeletionSeen(request_id="a", tenant="default"))
    world.clock.now_ms += 2 * QUIET_MS
    world.caught_up()
    assert await collector.collect() == 0
    assert told(world) == []
