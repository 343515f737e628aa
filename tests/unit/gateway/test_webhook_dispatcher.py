"""The dispatcher against a real server: signatures, endpoints that hang, turns, and SIGKILL while it delivers."""

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.settings.worker import StorageSettings
from fluxpool_gateway.settings import GatewaySettings, WebhookSettings
from fluxpool_gateway.webhooks.delivery_log import list_deliveries
from fluxpool_gateway.webhooks.dispatch.dispatcher import QUICK_SLOTS, Dispatcher
from fluxpool_gateway.webhooks.dispatch.sending import Sender
from fluxpool_gateway.webhooks.endpoints import Endpoint, save_endpoint
from fluxpool_gateway.webhooks.signing import new_secret
from kit.gateways.webhook_world import World, ended, submitted, wall_clock, webhook_world
from kit.http.webhook_receiver import LOOPBACK, Message, Receiver, answering, saying
from kit.programs.warm_start import Program, start_program
from kit.waiting import wait_until

DEADLINE_SECONDS = 60.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with webhook_world(tmp_path, wall_clock()) as opened:
        yield opened


@asynccontextmanager
async def dispatching(world: World, *, timeout_seconds: float = 15.0) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    sender = Sender(allowed=LOOPBACK, allow_http=True, timeout_seconds=timeout_seconds)
    running = asyncio.create_task(Dispatcher(world.store, world.collector(), sender).run(stopping))
    try:
        yield
    finally:
        stopping.set()
        await running


def end_tasks(world: World, *names: str, tenant: str = "default") -> None:
    at_ms = wall_clock()()
    world.project(
        *(
            change
            for name in names
            for change in (submitted(name, tenant=tenant), ended(name, at_ms=at_ms, tenant=tenant))
        )
    )


def tasks_of(messages: list[Message]) -> list[str]:
    return [json.loads(message.body)["data"]["request_id"] for message in messages]


def states(world: World, endpoint: Endpoint) -> Counter[str]:
    page = world.database.read(
        lambda connection: list_deliveries(connection, endpoint_id=endpoint.endpoint_id, before=None, limit=1000)
    )
    return Counter(delivery.state for delivery in page.deliveries)


async def test_messages_pass_the_verifier_of_standard_webhooks_with_each_valid_secret(
    world: World, receiver: Receiver
) -> None:
    endpoint = world.add(f"{receiver.url}/hook")
    now_ms = wall_clock()()
    rotated = endpoint.rotated(new_secret(), now_ms=now_ms, overlap_ms=3_600_000)
    ended_secret = new_secret()
    world.database.write(lambda connection: save_endpoint(connection, rotated))
    async with dispatching(world):
        end_tasks(world, "fuchs")
        await wait_until(lambda: receiver.messages, deadline_seconds=DEADLINE_SECONDS, what="the message")
    (message,) = receiver.messages
    for secret in rotated.secrets:
        verified = Webhook(secret.text).verify(message.body, message.headers)
        assert verified["data"]["request_id"] == "fuchs"
    with pytest.raises(WebhookVerificationError):
        Webhook(ended_secret).verify(message.body, message.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(endpoint.secrets[0].text).verify(message.body + b" ", message.headers)


async def test_each_endpoint_is_told_in_order_and_one_message_at_a_time(world: World, receiver: Receiver) -> None:
    under_way: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def slowly(message: Message, writer: asyncio.StreamWriter) -> None:
        under_way[message.path] += 1
        most[message.path] = max(most[message.path], under_way[message.path])
        await asyncio.sleep(0)
        under_way[message.path] -= 1
        await answering(200)(message, writer)

    paths = [f"/{number}" for number in range(4)]
    for path in paths:
        receiver.responses[path] = slowly
        world.add(receiver.url + path)
    names = [f"task-{number}" for number in range(45)]
    async with dispatching(world):
        end_tasks(world, *names)
        await wait_until(
            lambda: len(receiver.messages) == len(names) * len(paths),
            deadline_seconds=DEADLINE_SECONDS,
            what="every message",
        )
    for path in paths:
        assert tasks_of(receiver.to(path)) == names
        assert most[path] == 1


async def test_endpoints_that_hang_delay_no_other(world: World, receiver: Receiver) -> None:
    """More of them than there are places for endpoints that answer."""
    gate = asyncio.Event()

    async def held(message: Message, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answering(200)(message, writer)

    tenants = [f"stuck-{number}" for number in range(10)]
    for number in range(15 * len(tenants)):
        receiver.responses[f"/stuck/{number}"] = held
        world.add(f"{receiver.url}/stuck/{number}", tenant=tenants[number % len(tenants)])
    well = world.add(f"{receiver.url}/well", tenant="well")
    names = [f"task-{number}" for number in range(5)]
    async with dispatching(world, timeout_seconds=10 * DEADLINE_SECONDS):
        for tenant in tenants:
            end_tasks(world, "a", tenant=tenant)
        await wait_until(
            lambda: receiver.open_connections > QUICK_SLOTS, deadline_seconds=DEADLINE_SECONDS, what="a full house"
        )
        end_tasks(world, *names, tenant="well")
        await wait_until(
            lambda: states(world, well)["succeeded"] == len(names),
            deadline_seconds=DEADLINE_SECONDS,
            what="the messages of the endpoint that answers",
        )
        assert receiver.open_connections > QUICK_SLOTS, "all others hang"
        gate.set()
    assert tasks_of(receiver.to("/well")) == names


async def test_endpoints_that_lie_close_and_redirect_are_retried_with_the_same_id(
    world: World, receiver: Receiver
) -> None:
    behaviours = {
        "/closes": saying(b""),
        "/lies": saying(b"220 smtp.example.com ESMTP\r\n\r\n"),
        "/moved": answering(308, location="/well"),
        "/fails": answering(500, b"oh"),
    }
    receiver.responses = dict(behaviours)
    for path in behaviours:
        world.add(receiver.url + path)
    async with dispatching(world):
        end_tasks(world, "a")
        # The first retry comes after five seconds.
        await wait_until(
            lambda: all(len(receiver.to(path)) == 2 for path in behaviours),
            deadline_seconds=DEADLINE_SECONDS,
            what="the second attempts",
        )
    for path in behaviours:
        assert len({message.event_id for message in receiver.to(path)}) == 1
    assert receiver.to("/well") == []


def program_settings(folder: Path) -> GatewaySettings:
    return GatewaySettings(
        kafka=KafkaConnection(bootstrap_servers=("localhost:9092",)),
        storage=StorageSettings(url=(folder / "images").as_uri()),
        database_file=folder / "tasks.sqlite",
        webhooks=WebhookSettings(allow_http=True, allowed_networks=tuple(map(str, LOOPBACK))),
    )


def start(folder: Path) -> Program:
    environment = {**os.environ, **program_settings(folder).to_environment()}
    with (folder / "log").open("ab") as log:
        return start_program("fluxpool_gateway.dispatcher", environment=environment, output=log)


@pytest.mark.timeout(240)
async def test_killed_again_and_again_it_tells_each_endpoint_everything_in_order(
    tmp_path: Path, receiver: Receiver
) -> None:
    draws = random.Random(7)  # noqa: S311 - when it is killed
    names = [f"task-{number}" for number in range(600)]
    paths = [f"/{number}" for number in range(3)]
    with webhook_world(tmp_path, wall_clock(), migrated=True) as world:
        for path in paths:
            world.add(receiver.url + path)
        kills = 0
        program = start(tmp_path)
        try:
            for begin in range(0, len(names), 100):
                end_tasks(world, *names[begin : begin + 100])
                wanted = len(receiver.messages) + draws.randrange(20, 200)
                await wait_until(
                    lambda wanted=wanted: len(receiver.messages) >= wanted,  # type: ignore[misc]
                    deadline_seconds=DEADLINE_SECONDS,
                    what="some messages",
                )
                program.kill()
                program.wait()
                kills += 1
                program = start(tmp_path)
            await wait_until(
                lambda: all(set(tasks_of(receiver.to(path))) == set(names) for path in paths),
                deadline_seconds=DEADLINE_SECONDS,
                what="every message at every endpoint",
            )
            program.send_signal(signal.SIGTERM)
            assert program.wait(DEADLINE_SECONDS) == 0, (tmp_path / "log").read_text()
        finally:
            program.kill()
            program.wait()
    for path in paths:
        told = receiver.to(path)
        first_of_each = list(dict.fromkeys(tasks_of(told)))
        assert first_of_each == names
        assert len({message.event_id for message in told}) == len(names)
        # At most what was under way when it was killed comes twice.
        assert len(told) <= len(names) + kills


@pytest.mark.timeout(120)
async def test_a_second_dispatcher_of_a_file_stands_by(tmp_path: Path, receiver: Receiver) -> None:
    with webhook_world(tmp_path, wall_clock(), migrated=True) as world:
        world.add(f"{receiver.url}/hook")
        one, two = start(tmp_path), start(tmp_path)
        try:
            log = tmp_path / "log"
            await wait_until(
                lambda: "dispatcher_standby" in log.read_text() and "dispatcher_started" in log.read_text(),
                deadline_seconds=DEADLINE_SECONDS,
                what="one at work and one at rest",
            )
            end_tasks(world, *(f"task-{number}" for number in range(30)))
            await wait_until(lambda: len(receiver.messages) >= 30, deadline_seconds=DEADLINE_SECONDS, what="messages")
        finally:
            for program in (one, two):
                program.send_signal(signal.SIGTERM)
            statuses = [program.wait(DEADLINE_SECONDS) for program in (one, two)]
        assert statuses == [0, 0]
    assert len(receiver.messages) == 30
