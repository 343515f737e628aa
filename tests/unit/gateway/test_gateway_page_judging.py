"""What people say of images on the page, without scripts: ratings, stars, pairs, win rates, and the search for them."""

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.messages.result import GenerationResult
from fluxpool_gateway.feedback.figures import Interval
from fluxpool_gateway.page.judging.results import plot_of
from fluxpool_gateway.store.task_state import TaskSeen
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings, succeeded
from kit.http.page_visitor import Visitor, text_of


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as made:
        yield made


@pytest.fixture
async def key(gateway: Gateway) -> str:
    return await gateway.create("read", "rate", tenant="acme")


@pytest.fixture
async def visitor(gateway: Gateway, key: str) -> Visitor:
    made = Visitor(gateway.one.app)
    await made.log_in(key)
    return made


def done(gateway: Gateway, request_id: str, prompt: str = "a fox", *, tenant: str = "acme", preset: str = "") -> None:
    body: dict[str, Any] = {"request_id": request_id, "prompt": prompt}
    if preset:
        body["preset_choice"] = {"name": preset, "reason": "by its name"}
    ended = succeeded(request_id, tenant)
    result = GenerationResult.model_validate_json(ended.body).model_copy(update={"model": "FLUX.1-dev", "steps": 8})
    gateway.project(
        TaskSeen(
            request_id=request_id, body=json.dumps(body), priority="standard", tenant=tenant, created_at_ms=NOW_MS
        ),
        replace(ended, body=result.model_dump_json(), completed_at_ms=NOW_MS),
    )


def last_record(gateway: Gateway) -> dict[str, Any] | None:
    value = gateway.records.feedback[-1][2]
    return None if value is None else json.loads(value)


def fields_of(answer: httpx.Response, form_id: str) -> dict[str, str]:
    """The hidden fields of a form, but for its token."""
    form = answer.text[answer.text.index(f'id="{form_id}"') :]
    found = re.findall(r'type="hidden" name="([a-z_]+)" value="([^"]*)"', form[: form.index("</form>")])
    return {name: value for name, value in found if name != "form_token"}


async def test_a_rating_is_shown_at_once_and_keeps_what_the_api_said_besides(
    gateway: Gateway, visitor: Visitor, key: str
) -> None:
    done(gateway, "one")
    said = {"tags": ["hands"], "aspects": {"alignment": 2}}
    await gateway.one.ask("PUT", "/v1/generations/one/rating", key, json=said)
    answer = await visitor.post("/ui/tasks/one/rate", index="0", score="4", comment=" six fingers ")
    assert answer.headers["location"] == "/ui/tasks/one"
    record = last_record(gateway)
    assert record is not None
    assert (record["score"], record["comment"], record["tags"]) == (4, "six fingers", ["hands"])
    assert record["aspects"] == {"alignment": 2}
    page = await visitor.get("/ui/tasks/one")
    assert "4 of 5" in text_of(page)
    assert 'value="six fingers"' in page.text
    assert 'value="4" id="score-0-4" aria-label="4 of 5" checked' in page.text


async def test_a_judgement_in_the_drawer_leads_back_to_it(gateway: Gateway, visitor: Visitor) -> None:
    done(gateway, "one")
    drawer = "ui/gallery?prompt=fox&task=one"
    page = await visitor.get(f"/{drawer}")
    shown = page.text[page.text.index('id="drawer"') :]
    assert re.findall(r'name="next" value="([^"]*)"', shown) == [drawer.replace("&", "&amp;")] * 2
    answer = await visitor.post("/ui/tasks/one/rate", score="4", next=drawer)
    assert answer.headers["location"] == f"/{drawer}"
    answer = await visitor.post("/ui/tasks/one/rate", score="4", next="//evil.example/")
    assert answer.headers["location"] == "/ui/tasks/one"


async def test_an_empty_rating_takes_the_former_one_back(gateway: Gateway, visitor: Visitor) -> None:
    done(gateway, "one")
    await visitor.post("/ui/tasks/one/rate", score="4")
    await visitor.post("/ui/tasks/one/rate")
    assert last_record(gateway) is None
    assert "not rated" in text_of(await visitor.get("/ui/tasks/one"))


@pytest.mark.parametrize("fields", [{"score": "9"}, {"index": "x"}, {"index": "3", "score": "1"}])
async def test_a_rating_that_is_none_is_refused_with_a_reason(
    gateway: Gateway, visitor: Visitor, fields: dict[str, str]
) -> None:
    done(gateway, "one")
    answer = await visitor.post("/ui/tasks/one/rate", comment="a note", **fields)
    assert answer.status_code in {400, 422}
    assert re.search("score|index|image 3", text_of(answer))
    assert gateway.records.feedback == []


async def test_a_star_leads_back_to_the_search_and_is_found_there(gateway: Gateway, visitor: Visitor) -> None:
    done(gateway, "one", "a fox")
    done(gateway, "two", "a hare")
    answer = await visitor.post("/ui/tasks/one/star", starred="1", next="ui/gallery?prompt=fox")
    assert answer.headers["location"] == "/ui/gallery?prompt=fox"
    answer = await visitor.post("/ui/tasks/one/star", starred="1", next="https://evil.example/")
    assert answer.headers["location"] == "/ui/tasks/one"
    await gateway.project_feedback()
    gateway.clock.pass_seconds(60)
    page = await visitor.get("/ui/gallery?starred=true&prompt=&seed=&min_score=")
    assert re.findall(r'data-tile="([a-z]+)"', page.text) == ["one"]


async def test_a_search_keeps_its_words_in_every_address_and_says_what_is_wrong_with_them(
    gateway: Gateway, visitor: Visitor
) -> None:
    for number in range(26):
        done(gateway, f"r-{number:02}", "a fox")
    page = await visitor.get("/ui/gallery?prompt=a+fox&size=64+x+64&model=flux")
    assert "prompt=a+fox&amp;size=64x64&amp;model=flux&amp;task=r-25" in page.text
    following = re.search(r'href="/ui/gallery\?([^"]*cursor=[^"]*)"', page.text)
    assert following is not None
    rest = await visitor.get("/ui/gallery?" + following[1].replace("&amp;", "&"))
    assert re.findall(r'data-tile="([^"]+)"', rest.text) == ["r-01", "r-00"]
    refused = await visitor.get("/ui/gallery?size=large")
    assert refused.status_code == 422
    assert "such as 1024x768" in text_of(refused)


async def test_the_drawer_of_an_image_that_is_not_there_says_so_beside_the_others(
    gateway: Gateway, visitor: Visitor
) -> None:
    done(gateway, "one")
    done(gateway, "hers", tenant="other")
    for name in ("nothing", "hers"):
        page = await visitor.get(f"/ui/gallery?task={name}")
        assert page.status_code == 200
        assert "never accepted" in text_of(page)
        assert 'data-tile="one"' in page.text


async def test_pairs_are_judged_one_after_the_other_and_the_last_one_taken_back(
    gateway: Gateway, visitor: Visitor
) -> None:
    for name, preset in (("one", "fast"), ("two", "fine"), ("three", "fine")):
        done(gateway, name, preset=preset)
    page = await visitor.get("/ui/compare")
    assert "fast" not in text_of(page), "it is blind"
    fields = fields_of(page, "pair")
    gateway.clock.pass_seconds(3)
    answer = await visitor.post("/ui/compare", **fields, preferred="b")
    record = last_record(gateway)
    assert record is not None
    chosen = fields["b"].rpartition(".")[0]
    assert record[record["preferred"]]["request_id"] == chosen
    assert record["seconds"] == 3.0
    after = await visitor.get(answer.headers["location"])
    text = text_of(after)
    assert "1 judged" in text
    assert "B was better" in text
    assert "preset fast, 8 steps, FLUX.1-dev" in text or "preset fine, 8 steps, FLUX.1-dev" in text
    undone = fields_of(after, "undo")
    answer = await visitor.post("/ui/compare/undo", **undone)
    assert last_record(gateway) is None
    again = fields_of(await visitor.get(answer.headers["location"]), "pair")
    assert (again["a"], again["b"], again["judged"]) == (fields["a"], fields["b"], "0")


async def test_skipped_pairs_do_not_come_again_and_the_end_says_so(gateway: Gateway, visitor: Visitor) -> None:
    done(gateway, "one")
    done(gateway, "two")
    page = await visitor.get("/ui/compare")
    skip = re.search(r'href="/(ui/compare\?skipped=1[^"]*)"', page.text)
    assert skip is not None
    text = text_of(await visitor.get("/" + skip[1].replace("&amp;", "&")))
    assert "No pair is left" in text
    assert "1 skipped" in text


@pytest.mark.parametrize(
    "fields",
    [{}, {"a": "one.0", "b": "x"}, {"a": "one.0", "b": "two.0"}, {"a": "one.0", "b": "hers.0", "preferred": "a"}],
)
async def test_a_form_that_names_no_pair_of_the_tenant_judges_nothing(
    gateway: Gateway, visitor: Visitor, fields: dict[str, str]
) -> None:
    done(gateway, "one")
    done(gateway, "two")
    done(gateway, "hers", tenant="other")
    assert (await visitor.post("/ui/compare", **fields)).status_code in {400, 404}
    assert gateway.records.feedback == []


async def test_win_rates_are_a_table_and_a_plot_in_words(gateway: Gateway, visitor: Visitor, key: str) -> None:
    for name, preset in (("one", "fast"), ("two", "fine"), ("three", "fine")):
        done(gateway, name, preset=preset)
    for other in ("two", "three"):
        said = {"a": {"request_id": "one"}, "b": {"request_id": other}, "preferred": "b"}
        await gateway.one.ask("POST", "/v1/comparisons", key, json=said)
    await gateway.project_feedback()
    page = await visitor.get("/ui/compare/results")
    text = text_of(page)
    assert "2 comparisons and 0 scores" in text
    assert re.search(r"fine 100 % 2, 0, 0 .*fast 0 % 0, 2, 0", text)
    assert 'role="img" aria-label="100%, with 95 % certainty between 34% and 100%"' in page.text
    assert "have the same model" in text_of(await visitor.get("/ui/compare/results?by=model"))


def test_a_plot_has_the_interval_in_thousandths() -> None:
    plot = plot_of(Interval(0.5, 0.25, 0.75))
    assert (plot.low, plot.value, plot.high) == (250.0, 500.0, 750.0)
