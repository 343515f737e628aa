"""Both clients rate, compare and export, with a real gateway over a real task store, without Kafka."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_client import AsyncClient, BadRequestError, Client, NotFoundError, PermissionDeniedError, UnreachableError
from kit.gateways.client_world import CLIENTS, World, client_world, queued
from kit.gateways.keyed_gateway import succeeded


@pytest.fixture(params=CLIENTS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with client_world(request.param, tmp_path) as world:
        for name in ("one", "two"):
            world.gateway.project(queued(name, 1, group_id=None), succeeded(name, "default"))
        yield world


async def exported(world: World, key: str | None = None, **fields: Any) -> bytes:
    return await read(world.caller(key).client, **fields)


async def read(client: Client | AsyncClient, **fields: Any) -> bytes:
    if isinstance(client, AsyncClient):
        return b"".join([piece async for piece in client.export_feedback(**fields)])
    return await asyncio.to_thread(lambda: b"".join(client.export_feedback(**fields)))


async def test_images_are_rated_compared_and_exported(world: World) -> None:
    call = world.caller()
    rating = await call("rate", "one", score=4, aspects={"fidelity": 3}, tags=["hands"], rater="ann")
    assert (rating.score, rating.aspects, rating.tags, rating.index) == (4, {"fidelity": 3}, ("hands",), 0)
    pair = await call("next_pair", rater="ann")
    sides = [(image.request_id, image.index) for image in (pair.a, pair.b)]
    said = await call("compare", *sides, "b", shown_first="a", seconds=1.5, rater="ann")
    assert ({"a": said.a, "b": said.b}[said.preferred].request_id, said.a.request_id) == (sides[1][0], "one")
    assert await call("next_pair", rater="ann") is None
    await world.gateway.project_feedback()
    assert (await call("rating", "one", rater="ann")).rating_id == rating.rating_id
    summary = await call("feedback_summary")
    assert (summary.scores, summary.comparisons, summary.preset[0].mean_score.value) == (1, 1, 4)
    (row,) = (await exported(world, layout="hpd")).splitlines()
    assert json.loads(row)["human_preference"] == [int(sides[1][0] == "one"), int(sides[1][0] == "two")]
    assert len(await exported(world, layout="pickapic", format="parquet", images=False, ties=True)) > 100
    await call("delete_rating", "one", rater="ann")
    await world.gateway.project_feedback()
    with pytest.raises(NotFoundError):
        await call("rating", "one", rater="ann")


async def test_a_star_is_set_listed_and_taken_back(world: World) -> None:
    call = world.caller()
    await call("star", "one")
    await world.gateway.project_feedback()
    assert [task.request_id for task in (await call("page", starred=True)).data] == ["one"]
    await call("unstar", "one")
    await world.gateway.project_feedback()
    assert (await call("page", starred=True)).data == ()
    with pytest.raises(NotFoundError):
        await call("star", "never")


async def test_refusals_are_raised(world: World) -> None:
    call = world.caller()
    with pytest.raises(BadRequestError, match="score"):
        await call("rate", "one", score=9)
    with pytest.raises(ValueError, match="must be 1 to 128"):
        await call("rate", "no/id", score=4)
    with pytest.raises(BadRequestError, match="layout"):
        await exported(world, layout="coco")
    with pytest.raises(PermissionDeniedError):
        await exported(world, await world.gateway.create("read"))


async def test_an_export_that_gets_no_response_is_not_repeated(world: World) -> None:
    caller = world.caller()
    caller.wire.instead = [httpx.ConnectError("refused")]
    with pytest.raises(UnreachableError):
        await read(caller.client)
    assert len(caller.wire.asked) == 1
