"""The official client of the OpenAI API with a real gateway, a real broker and a worker with a stand-in engine."""

import asyncio
import base64
import io
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from fluxpool_client import AsyncClient, PreviewedTask
from kit.gateways.gateway_process import GatewayProcess
from kit.waiting import wait_until
from kit.workers.worker import WorkerBench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "openai.md"
SMALL: dict[str, Any] = {"model": "gpt-image-2", "size": "96x64"}


@dataclass(frozen=True, slots=True)
class Clients:
    """The client, and plain HTTP beside it."""

    openai: openai.AsyncOpenAI
    http: httpx.AsyncClient

    async def status(self, request_id: str) -> str:
        return str((await self.http.get(f"v1/generations/{request_id}")).json().get("status"))

    async def listed(self) -> list[dict[str, Any]]:
        """Every task."""
        data: list[dict[str, Any]] = (await self.http.get("v1/generations", params={"order": "asc"})).json()["data"]
        return data

    async def until(self, request_id: str, status: str) -> None:
        async def reached() -> bool:
            answer = await self.http.get(f"v1/generations/{request_id}", headers={"prefer": "wait=5"})
            return bool(answer.json().get("status") == status)

        await wait_until(reached, deadline_seconds=60, what=f"{request_id} {status}")


@pytest.fixture
async def clients(gateway: GatewayProcess) -> AsyncIterator[Clients]:
    base = f"{gateway.url}v1"
    async with (
        openai.AsyncOpenAI(base_url=base, api_key="none") as client,
        httpx.AsyncClient(base_url=gateway.url, timeout=90) as plain,
    ):
        yield Clients(client, plain)


def picture(b64_json: str | None) -> Image.Image:
    assert b64_json is not None
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


def saved_in(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.png")}


def examples(url: str) -> Iterator[str]:
    """The Python of the page, in order, for this gateway."""
    for text in re.findall(r"^```python openai\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        assert isinstance(text, str)
        yield text.replace("http://127.0.0.1:8000/", url)


async def test_images_are_generated_for_the_client(
    bench: WorkerBench, gateway: GatewayProcess, clients: Clients, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.start_ready()
    answer = await clients.openai.images.generate(
        prompt="a fox",
        n=2,
        output_format="webp",
        user="ann",
        style="vivid",
        extra_body={"seed": 7, "steps": 4},
        **SMALL,
    )
    extra = answer.model_extra or {}
    assert answer.data is not None
    assert [(picture(image.b64_json).size, picture(image.b64_json).format) for image in answer.data] == [
        ((96, 64), "WEBP")
    ] * 2
    assert [(image.model_extra or {})["seed"] for image in answer.data] == [7, 8]
    assert (answer.size, answer.output_format, answer.background) == ("96x64", "webp", "opaque")
    assert (answer.safety_identifier, answer.quality) == ("ann", None)
    assert (extra["model"], extra["warnings"]) == (
        "stand-in",
        ["style has no effect: describe the style in the prompt"],
    )
    for image in answer.data:
        assert image.url is not None
        stored = await clients.http.get(image.url)
        assert stored.content == base64.b64decode(image.b64_json or "")
    state = (await clients.http.get(f"v1/generations/{extra['request_id']}")).json()
    assert (state["status"], state["metadata"]) == ("succeeded", {"end_user": "ann"})

    # Without files, from a client that is not asynchronous.
    with openai.OpenAI(base_url=f"{gateway.url}v1", api_key="none") as client:
        answer = await asyncio.to_thread(lambda: client.images.generate(prompt="a fox", response_format="url", **SMALL))
    assert answer.data is not None
    assert [(image.b64_json, image.url is not None) for image in answer.data] == [(None, True)]

    # A failed task is one error, and not three tasks.
    before = len(await clients.listed())
    with pytest.raises(openai.InternalServerError) as failed:
        await clients.openai.images.generate(prompt="ends=error", **SMALL)
    assert failed.value.code == "task_failed"
    with pytest.raises(openai.BadRequestError) as rejected:
        await clients.openai.images.generate(prompt="ends=rejected", **SMALL)
    assert rejected.value.code == "task_rejected"
    assert isinstance(failed.value.body, dict)
    assert await clients.status(failed.value.body["request_id"]) == "failed"
    assert len(await clients.listed()) == before + 2

    # As a stream: one event for each image, and nothing but the error of a task that failed.
    stream = await clients.openai.images.generate(
        prompt="seconds=1", n=2, stream=True, partial_images=2, quality="high", **SMALL
    )
    events = [event async for event in stream]
    # Previews come as far as the gateway reads them in time.
    partial = [event for event in events if event.type == "image_generation.partial_image"]
    assert {picture(event.b64_json).size for event in partial} <= {(256, 256)}
    events = events[len(partial) :]
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert [(event.model_extra or {})["index"] for event in events] == [0, 1]
    assert {(event.size, event.quality, picture(event.b64_json).size) for event in events} == {
        ("96x64", "high", (96, 64))
    }
    failing = await clients.openai.images.generate(prompt="ends=error", stream=True, **SMALL)
    with pytest.raises(openai.APIError) as told:
        assert [event async for event in failing] == []
    assert told.value.code == "task_failed"

    # The page's own examples.
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for text in examples(gateway.url):
        await asyncio.to_thread(exec, compile(text.replace("1536x1024", "96x64"), str(PAGE), "exec"), names)
    names["client"].close()
    assert saved_in(tmp_path) == {"fox-0.png", "fox-1.png", "fox.png"}


async def test_a_preview_comes_through_every_part(bench: WorkerBench, gateway: GatewayProcess) -> None:
    await bench.start_ready()
    async with AsyncClient(gateway.url) as client:
        accepted = await client.submit("seconds=60", width=96, height=64, steps=100, preview=True)
        async for task in client.events(accepted.request_id):
            assert not task.ended
            if isinstance(task, PreviewedTask):
                with Image.open(io.BytesIO(task.preview.data)) as picture:
                    assert (picture.format, picture.size) == ("WEBP", (256, 256))
                break
        await client.cancel(accepted.request_id)


async def test_a_client_that_goes_away_cancels_its_task_unless_it_has_a_key(
    bench: WorkerBench, clients: Clients
) -> None:
    await bench.start_ready()
    slow: dict[str, Any] = {"prompt": "seconds=300", "extra_body": {"steps": 100}, **SMALL}

    async def running() -> str:
        return next((task["request_id"] for task in await clients.listed() if task["status"] == "running"), "")

    asking: asyncio.Future[Any]
    for streams in (False, True):
        asking = asyncio.ensure_future(clients.openai.images.generate(stream=streams, **slow))
        request_id = await wait_until(running, deadline_seconds=60, what="a running task")
        if streams:
            await (await asking).close()
        else:
            asking.cancel()
            await asyncio.wait([asking])
        await clients.until(request_id, "canceled")
        state = (await clients.http.get(f"v1/generations/{request_id}")).json()
        assert state["error"]["message"] == "canceled: the client closed the connection that waited for it"

    keyed: dict[str, Any] = {"prompt": "seconds=6", "extra_headers": {"Idempotency-Key": str(uuid.uuid4())}, **SMALL}
    asking = asyncio.ensure_future(clients.openai.images.generate(**keyed))
    request_id = await wait_until(running, deadline_seconds=60, what="a running task")
    asking.cancel()
    await asyncio.wait([asking])
    answer = await clients.openai.images.generate(**keyed)
    assert (answer.model_extra or {})["request_id"] == request_id
    assert len(await clients.listed()) == 3


async def test_a_wait_that_ends_early_is_one_error_with_the_tasks_id(clients: Clients) -> None:
    # No worker takes tasks, and the client would submit the request twice more once it has waited for 8 s.
    impatient = clients.openai.with_options(timeout=8)
    with pytest.raises(openai.InternalServerError) as late:
        await impatient.images.generate(prompt="a", **SMALL)
    assert (late.value.status_code, late.value.code) == (504, "wait_timeout")
    assert late.value.response.headers["x-should-retry"] == "false"
    assert isinstance(late.value.body, dict)
    (task,) = await clients.listed()
    assert (task["request_id"], task["status"]) == (late.value.body["request_id"], "queued")
    assert (await clients.http.get(late.value.response.headers["location"])).json() == task

    # Signs of life keep a stream open for longer than that.
    stream = await impatient.images.generate(prompt="a", stream=True, **SMALL)
    reading = asyncio.ensure_future(anext(aiter(stream)))
    assert await asyncio.wait([reading], timeout=9) == (set(), {reading})
    reading.cancel()
    await asyncio.wait([reading])
    await stream.close()
    assert len(await clients.listed()) == 2


async def test_a_gateway_that_stops_answers_those_who_wait(gateway: GatewayProcess, clients: Clients) -> None:
    once = clients.openai.with_options(max_retries=0)
    key = {"Idempotency-Key": "k"}
    asking = [
        asyncio.ensure_future(once.images.generate(prompt="a", **SMALL)),
        asyncio.ensure_future(once.images.generate(prompt="b", extra_headers=key, **SMALL)),
    ]

    async def accepted() -> bool:
        return len(await clients.listed()) == 2

    await wait_until(accepted, deadline_seconds=30, what="two tasks")
    stopping = asyncio.ensure_future(asyncio.to_thread(gateway.stop))
    plain, keyed = await asyncio.gather(*asking, return_exceptions=True)
    assert await stopping == (0, 0)
    assert isinstance(plain, openai.InternalServerError)
    assert isinstance(keyed, openai.InternalServerError)
    assert (plain.status_code, plain.response.headers["x-should-retry"]) == (504, "false")
    assert (keyed.status_code, keyed.response.headers["x-should-retry"]) == (503, "true")
