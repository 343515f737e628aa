"""Webhooks on a real PostgreSQL server, without Kafka: several dispatchers share the work, and are killed."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_gateway.settings import GatewaySettings, WebhookSettings
from fluxpool_gateway.store.postgres.connection import open_projector, open_shared
from fluxpool_gateway.store.postgres.rebuild import empty_store
from fluxpool_gateway.store.task_store import TaskStoreWriter
from fluxpool_gateway.stores import open_task_reader, open_webhooks
from fluxpool_gateway.webhooks.database import WebhookDatabase
from fluxpool_gateway.webhooks.signing import new_secret
from fluxpool_gateway.webhooks.start import VERSION_TABLE, prepare_webhooks
from fluxpool_gateway.webhooks.tables import deliveries, metadata
from kit.gateways.webhook_world import World, ended, submitted, wall_clock
from kit.http.webhook_receiver import LOOPBACK, Message, Receiver, running_receiver
from kit.programs.warm_start import Program, start_program
from kit.waiting import wait_until

DEADLINE_SECONDS = 90.0


@pytest.fixture
def url(url: str) -> str:
    prepare_webhooks(url)
    prepare_webhooks(url)
    return url


@pytest.fixture
def settings(url: str, tmp_path: Path) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {
            "kafka": KafkaConnection(bootstrap_servers=("localhost:9092",)),
            "storage": StorageSettings(url=(tmp_path / "images").as_uri()),
            "database_url": url,
            "webhooks": WebhookSettings(allow_http=True, allowed_networks=tuple(map(str, LOOPBACK))),
        }
    )


@pytest.fixture
async def world(settings: GatewaySettings, url: str) -> AsyncIterator[World]:
    engine = open_projector(url)
    reader, store, database = open_task_reader(settings), open_webhooks(settings), WebhookDatabase(url)
    yield World(engine, TaskStoreWriter(engine), reader, database, store, wall_clock())
    for opened in (reader, store, database):
        opened.close()
    engine.dispose()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


def end_tasks(world: World, *names: str) -> None:
    at_ms = wall_clock()()
    world.clock.now_ms = at_ms
    world.project(*map(submitted, names), *(ended(name, at_ms=at_ms) for name in names))


def tasks_of(messages: list[Message]) -> list[str]:
    return [json.loads(message.body)["data"]["request_id"] for message in messages]


def test_the_migrations_make_the_tables_of_this_release(url: str) -> None:
    engine = open_shared(url, "test")
    options = {
        "version_table": VERSION_TABLE,
        "include_name": lambda name, kind, _: kind != "table" or name in metadata.tables,
    }
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
    engine.dispose()
    assert differences == []


async def test_collectors_of_several_replicas_tell_each_end_once(world: World) -> None:
    world.add()
    world.add()
    for number in range(0, 100, 10):
        end_tasks(world, *(f"task-{each}" for each in range(number, number + 10)))
        await asyncio.gather(*(world.collector().collect() for _ in range(3)))
    await world.collector().collect()
    count = select(func.count()).select_from(deliveries)
    assert world.database.read(lambda connection: connection.execute(count).scalar_one()) == 200


async def test_a_rebuild_of_the_tasks_leaves_the_webhooks_and_tells_nothing_again(world: World, url: str) -> None:
    endpoint = world.add()
    end_tasks(world, "a")
    collector = world.collector()
    assert await collector.collect() == 1
    empty_store(url)
    world.tasks = TaskStoreWriter(world.tasks_engine)
    end_tasks(world, "a", "b")
    assert await collector.collect() == 1
    assert [found.endpoint_id for found in await world.store.endpoints("default")] == [endpoint.endpoint_id]


async def test_webhooks_of_requests_share_a_host_and_a_secret_whichever_replica_makes_them(world: World) -> None:
    urls = [f"https://h{number % 3}.example/{number}" for number in range(9)]
    now_ms = wall_clock()()
    rotations = [
        world.store.rotate_requested("default", new_secret(), now_ms=now_ms, overlap_ms=60_000) for _ in range(2)
    ]
    await asyncio.gather(*(world.store.use_requested("default", url, now_ms=now_ms) for url in urls), *rotations)
    found = await world.store.endpoints("default")
    assert sorted(endpoint.url for endpoint in found) == [f"https://h{number}.example" for number in range(3)]
    assert len({endpoint.secrets for endpoint in found}) == 1
    world.clock.now_ms = now_ms
    bodies = [json.dumps({"webhook": {"url": url}}) for url in urls]
    world.project(*(submitted(f"task-{number}", body=body) for number, body in enumerate(bodies)))
    world.project(*(ended(f"task-{number}", at_ms=now_ms) for number in range(len(urls))))
    assert await world.collector().collect() == len(urls)
    claims = await world.store.claim(suspects=False, limit=9, now_ms=now_ms)
    assert sorted(claim.url for claim in claims) == urls[:3], "one at a time for each host"


@pytest.fixture
def programs() -> Iterator[list[Program]]:
    running: list[Program] = []
    yield running
    for program in running:
        program.kill()
        program.wait()


def start(settings: GatewaySettings, folder: Path) -> Program:
    with (folder / "log").open("ab") as log:
        environment = {**os.environ, **settings.to_environment()}
        return start_program("fluxpool_gateway.dispatcher", environment=environment, output=log)


@pytest.mark.timeout(300)
async def test_dispatchers_share_the_work_and_one_goes_on_with_what_another_was_killed_at(
    world: World, settings: GatewaySettings, receiver: Receiver, programs: list[Program], tmp_path: Path
) -> None:
    names = [f"task-{number}" for number in range(100)]
    paths = [f"/{number}" for number in range(6)]
    for path in paths:
        world.add(receiver.url + path)
    programs += [start(settings, tmp_path) for _ in range(2)]
    for begin in range(0, len(names), 50):
        end_tasks(world, *names[begin : begin + 50])
        wanted = len(receiver.messages) + 50
        await wait_until(
            lambda wanted=wanted: len(receiver.messages) >= wanted,  # type: ignore[misc]
            deadline_seconds=DEADLINE_SECONDS,
            what="some messages",
        )
        programs[0].kill()
        programs[0].wait()
    # What it had leased is free after half a minute.
    await wait_until(
        lambda: all(set(tasks_of(receiver.to(path))) == set(names) for path in paths),
        deadline_seconds=DEADLINE_SECONDS,
        what="every message at every endpoint",
    )
    programs[1].send_signal(signal.SIGTERM)
    assert programs[1].wait(DEADLINE_SECONDS) == 0, (tmp_path / "log").read_text()
    for path in paths:
        told = receiver.to(path)
        assert list(dict.fromkeys(tasks_of(told))) == names
        assert len(told) <= len(names) + 1
