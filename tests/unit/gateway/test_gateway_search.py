"""Searches in the list of tasks, and stars, over a real task store."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.messages.result import GenerationResult
from fluxpool_gateway.search.content import ContentFilter, ImageSize, parse_size, words_of
from fluxpool_gateway.store import task_list
from fluxpool_gateway.store.task_state import TaskSeen
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings, succeeded

LIST = "/v1/generations"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def done(
    gateway: Gateway, request_id: str, prompt: str, *, tenant: str = "default", model: str | None = None, **task: Any
) -> None:
    """A task that succeeded; its image has 64 by 64 pixels and the seed 7."""
    body = json.dumps({"request_id": request_id, "prompt": prompt, **task})
    ended = succeeded(request_id, tenant)
    result = GenerationResult.model_validate_json(ended.body).model_copy(update={"model": model})
    gateway.project(
        TaskSeen(request_id=request_id, body=body, priority="standard", tenant=tenant, created_at_ms=NOW_MS),
        replace(ended, body=result.model_dump_json()),
    )


async def found(gateway: Gateway, key: str | None = None, **params: Any) -> list[str]:
    answer = await gateway.one.ask("GET", LIST, key or gateway.admin, params=params)
    assert answer.status_code == 200, answer.text
    return [task["request_id"] for task in answer.json()["data"]]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"prompt": "FOX dusk"}, ["a"]),
        ({"prompt": "fox"}, ["b", "a"]),
        ({"prompt": "straße"}, ["c"]),
        ({"prompt": '"quoted"'}, ["c"]),
        ({"prompt": "%"}, []),
        ({"seed": 7}, ["c", "b", "a"]),
        ({"seed": 41}, ["b"]),
        ({"seed": 4}, []),
        ({"size": "64 x 64"}, ["c", "b", "a"]),
        ({"size": "64x65"}, []),
        ({"model": "schnell"}, ["b"]),
        ({"preset": "fast"}, ["c"]),
        ({"prompt": "fox", "model": "dev"}, ["a"]),
        ({"prompt": "fox", "status": "failed"}, []),
    ],
)
async def test_tasks_are_found_by_what_they_contain(
    gateway: Gateway, params: dict[str, Any], expected: list[str]
) -> None:
    done(gateway, "a", "A fox at DUSK", model="FLUX.1-dev@1")
    done(gateway, "b", "a red fox", model="FLUX.1-schnell@1", seed=41)
    done(gateway, "c", 'a "quoted" STRASSE', preset_choice={"name": "fast", "reason": "by its name"})
    done(gateway, "d", "a fox at dusk, of another tenant", tenant="acme", seed=41)
    assert await found(gateway, **params) == expected


async def test_a_search_that_looked_at_many_tasks_ends_its_page_and_goes_on_from_there(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_list, "MAX_SCANNED_ROWS", 4)
    for number in range(10):
        done(gateway, f"r-{number}", "a fox" if number == 0 else "a hare")
    pages: list[list[str]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = (await gateway.one.ask("GET", LIST, gateway.admin, params={"prompt": "fox", **cursor})).json()
        pages.append([task["request_id"] for task in answer["data"]])
        if not answer["has_more"]:
            break
        cursor = {"cursor": answer["next_cursor"]}
    assert pages == [[], [], ["r-0"]]


async def test_a_search_ends_its_page_before_it_has_read_more_than_it_may(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_list, "MAX_SCANNED_CHARACTERS", 1000)
    for number in range(3):
        done(gateway, f"r-{number}", "a hare " + "x" * 1000)
    answer = (await gateway.one.ask("GET", LIST, gateway.admin, params={"prompt": "fox"})).json()
    assert (answer["data"], answer["has_more"]) == ([], True)


async def test_a_parameter_of_a_search_that_is_none_is_refused_by_its_name(gateway: Gateway) -> None:
    for params, field in (({"size": "large"}, "size"), ({"seed": "-1"}, "seed"), ({"min_score": "6"}, "min_score")):
        answer = await gateway.one.ask("GET", LIST, gateway.admin, params=params)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == field


def test_what_any_producer_wrote_is_looked_into_without_an_error() -> None:
    looked_for = ContentFilter(words=words_of("fox"), seed=1, size=ImageSize(1, 1), model="m", preset="p")
    for text in (None, "", "null", "[1]", "{", '{"prompt": 1}', '{"preset_choice": 1, "prompt": "fox", "seed": 1}'):
        assert not looked_for.passes(text, text)
    assert not ContentFilter(seed=1).passes("{}", '{"images": [1, null, {"seed": "1"}]}')


@pytest.mark.parametrize("text", ["64x48", " 64 X 48 ", "64\u00d748", "64*48", "64,48"])
def test_a_size_is_read_as_people_write_it(text: str) -> None:
    assert parse_size(text) == (64, 48)


# Scores and stars


async def star(gateway: Gateway, request_id: str, key: str, method: str = "PUT") -> int:
    return (await gateway.one.ask(method, f"{LIST}/{request_id}/star", key)).status_code


async def test_tasks_are_found_by_the_best_score_of_their_images(gateway: Gateway) -> None:
    for request_id, score in (("a", 5), ("b", 3), ("c", None)):
        done(gateway, request_id, "a fox")
        if score is not None:
            await gateway.one.ask("PUT", f"{LIST}/{request_id}/rating", gateway.admin, json={"score": score})
    await gateway.project_feedback()
    assert await found(gateway, min_score=3) == ["b", "a"]
    assert await found(gateway, min_score=4) == ["a"]


async def test_a_star_is_the_tenants_and_survives_what_others_rate(gateway: Gateway) -> None:
    one, other = await gateway.create(tenant="acme"), await gateway.create(tenant="acme", name="another")
    for request_id in "abc":
        done(gateway, request_id, f"a fox {request_id}", tenant="acme")
    assert [await star(gateway, name, one) for name in ("a", "c", "a")] == [204] * 3
    await gateway.one.ask("PUT", f"{LIST}/a/rating", other, json={"score": 1})
    await gateway.project_feedback()
    assert await found(gateway, other, starred=True) == ["c", "a"]
    assert await found(gateway, other, starred=True, order="asc") == ["a", "c"]
    assert await found(gateway, other, starred=True, prompt="c") == ["c"]
    assert await found(gateway, starred=True) == []
    figures = (await gateway.one.ask("GET", "/v1/feedback/summary", one)).json()
    assert (figures["scores"], figures["model"][0]["mean_score"]["value"]) == (1, 1.0)
    assert await star(gateway, "a", other, "DELETE") == 204
    await gateway.project_feedback()
    assert await found(gateway, one, starred=True) == ["c"]


async def test_a_list_of_stars_has_pages(gateway: Gateway) -> None:
    for number in range(5):
        done(gateway, f"r-{number}", "a fox")
        await star(gateway, f"r-{number}", gateway.admin)
    await gateway.project_feedback()
    first = (await gateway.one.ask("GET", LIST, gateway.admin, params={"starred": True, "limit": 3})).json()
    rest = await found(gateway, starred=True, limit=3, cursor=first["next_cursor"])
    assert [task["request_id"] for task in first["data"]] + rest == [f"r-{number}" for number in (4, 3, 2, 1, 0)]


async def test_a_star_needs_the_scope_and_a_task_of_the_tenant_that_succeeded(gateway: Gateway) -> None:
    done(gateway, "a", "a fox")
    gateway.project(TaskSeen(request_id="w", body="{}", priority="standard", tenant="default", created_at_ms=1))
    reads, other = await gateway.create("read"), await gateway.create(tenant="acme")
    asked = [("a", reads), ("a", other), ("w", gateway.admin)]
    assert [await star(gateway, *one) for one in asked] == [403, 404, 409]
    assert gateway.records.feedback == []
