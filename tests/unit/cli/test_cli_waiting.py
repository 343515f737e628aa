"""`fluxpool wait` follows the events of a real gateway, and polls where there is no stream of them."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest
import pytest_asyncio

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.main import run
from fluxpool_cli.submit.polling import Deadline
from fluxpool_cli.submit.task_end import TaskWait
from fluxpool_client import Client
from fluxpool_gateway.http.request_context import STOPPING
from fluxpool_gateway.store.task_state import ProgressSeen, TaskSeen, TaskStatus
from kit.commands.every_form import Screen
from kit.faults.tcp_proxy import TcpProxy
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings, succeeded
from kit.gateways.recorded_requests import RecordedRequests
from kit.http.event_streams import reading, serving
from kit.waiting import wait_until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass(slots=True)
class Waited:
    """A command that waits, in a thread of its own."""

    screen: Screen

    async def shows(self, line: str) -> None:
        await wait_until(lambda: line in self.screen.getvalue().splitlines(), deadline_seconds=30, what=line)


@dataclass(slots=True)
class World:
    """A gateway with a place for one reader of events, behind a link that can be cut."""

    gateway: Gateway
    server: RecordedRequests
    url: str
    """Without the link."""
    link: TcpProxy
    tasks: int = 0

    def queue(self) -> str:
        """A task that nothing works on."""
        self.tasks += 1
        request_id = f"task-{self.tasks}"
        self.gateway.project(
            TaskSeen(request_id=request_id, body="{}", priority="standard", tenant="default", created_at_ms=1)
        )
        self.server.asked.clear()
        return request_id

    def step(self, request_id: str, number: int) -> None:
        self.gateway.project(
            ProgressSeen(
                request_id=request_id, status=TaskStatus.RUNNING, at_ms=2, started=False, attempt=1, step=number,
                total_steps=9, tenant="default",
            )
        )  # fmt: skip

    def end(self, request_id: str) -> None:
        self.gateway.project(succeeded(request_id, "default"))

    @asynccontextmanager
    async def waiting(self, request_id: str) -> AsyncIterator[Waited]:
        screen = Screen(is_terminal=False)
        with patch("sys.stdout", Screen(is_terminal=False)), patch("sys.stderr", screen):
            async with asyncio.TaskGroup() as group:
                running = group.create_task(asyncio.to_thread(run, ["wait", request_id, "--timeout", "60"]))
                yield Waited(screen)
        assert running.result() == ExitCode.OK, screen.getvalue()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("waiting")
    settings = keyed_settings(folder).model_copy(update={"event_streams": 1, "event_streams_of_tenant": 1})
    async with keyed_gateway(settings) as gateway:
        recorded = RecordedRequests(gateway.one.app)
        async with (
            serving(recorded, {STOPPING: gateway.one.app.state.services.stopping}) as server,
            TcpProxy(server.port) as link,
        ):
            with patch.dict(os.environ, environment(folder, f"http://{link.address}", gateway.admin)):
                yield World(gateway, recorded, server.url, link)


def task_path(request_id: str) -> str:
    return f"/v1/generations/{request_id}"


def environment(folder: Path, url: str, key: str) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(folder), "FLUXPOOL_URL": url, "FLUXPOOL_API_KEY": key}


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    with patch("fluxpool_cli.submit.task_end.STREAM_EVERY_SECONDS", 0.0):
        yield


async def test_each_step_is_shown_as_it_comes_and_nothing_is_polled(world: World) -> None:
    task = world.queue()
    async with world.waiting(task) as waited:
        await waited.shows("queued")
        for number in (1, 2):
            world.step(task, number)
            await waited.shows(f"running step {number} of 9")
        world.end(task)
    assert world.server.asked == [task_path(task), f"{task_path(task)}/events"]
    assert waited.screen.getvalue().splitlines()[-1] == "succeeded"


async def test_a_cut_stream_is_opened_again_after_a_look_at_the_state(world: World) -> None:
    task = world.queue()
    stream = f"{task_path(task)}/events"
    async with world.waiting(task) as waited:
        await waited.shows("queued")
        world.link.reset_connections()
        world.step(task, 1)
        await waited.shows("running step 1 of 9")
        await wait_until(lambda: world.server.asked.count(stream) > 1, deadline_seconds=30, what="another stream")
        world.link.reset_connections()
        world.end(task)
    assert world.server.asked[:4] == [task_path(task), stream, task_path(task), stream]


async def test_a_task_is_polled_while_the_gateway_has_no_place_for_a_reader(world: World) -> None:
    task = world.queue()
    reader = httpx.AsyncClient(base_url=world.url, headers={"authorization": f"Bearer {world.gateway.admin}"})
    async with reader, reading(reader, "/v1/events") as events:
        await events.next()
        async with world.waiting(task) as waited:
            await waited.shows("queued")
            world.step(task, 1)
            await waited.shows("running step 1 of 9")
            world.end(task)
    assert world.server.asked.count(task_path(task)) > 2


async def test_a_stream_that_a_proxy_keeps_back_is_left_and_the_task_polled(world: World) -> None:
    task = world.queue()
    world.server.silent = "/events"
    with patch("fluxpool_cli.submit.task_end.FIRST_STATE_SECONDS", 0.05):
        async with world.waiting(task) as waited:
            await waited.shows("queued")
            world.step(task, 4)
            await waited.shows("running step 4 of 9")
            world.end(task)
    world.server.silent = None


async def test_a_wait_that_nothing_can_come_of_ends_with_the_reason(world: World) -> None:
    task = world.queue()
    with Client() as client:
        waiting = TaskWait(
            gateway=client,
            open_stream=GatewayOptions().stream_client,
            deadline=Deadline.after(300),
            hopeless=lambda: "model x is not there",
        )
        queued = await asyncio.to_thread(client.get, task)
        with pytest.raises(CommandError, match=f"{task} waits, but the workers cannot start: model x") as failed:
            await asyncio.to_thread(waiting.until_ended, queued)
    assert failed.value.code is ExitCode.FAILED
