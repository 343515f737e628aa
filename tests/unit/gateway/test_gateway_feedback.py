"""Ratings and comparisons by HTTP: durable before they are answered, one for each rater, shown to their tenant."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.messages.feedback import Comparison, Preference, Rating
from fluxpool_contract.messages.result import GenerationResult
from fluxpool_gateway.feedback.figures import Compared, Dimension, Interval, Scored, Setup, group_by
from fluxpool_gateway.store.task_state import ResultSeen, TaskSeen, TaskStatus
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings, succeeded

RATING = "/v1/generations/{}/rating"
COMPARISONS, NEXT, SUMMARY = "/v1/comparisons", "/v1/comparisons/next", "/v1/feedback/summary"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def done(
    gateway: Gateway, request_id: str, *, prompt: str = "a fox", images: int = 1, tenant: str = "default", **result: Any
) -> None:
    """A task that succeeded."""
    preset = result.pop("preset", None)
    body = {"request_id": request_id, "prompt": prompt} | ({"preset_choice": {"name": preset}} if preset else {})
    ended = succeeded(request_id, tenant)
    told = GenerationResult.model_validate_json(ended.body)
    described = tuple(told.images[0].model_copy(update={"index": number}) for number in range(images))
    told = told.model_copy(update={"images": described, **result})
    gateway.project(
        TaskSeen(request_id=request_id, body=json.dumps(body), priority="standard", tenant=tenant, created_at_ms=1),
        replace(ended, body=told.model_dump_json()),
    )


def failed(request_id: str) -> ResultSeen:
    body = '{"request_id": "%s", "status": "failed", "image_url": null}' % request_id  # noqa: UP031
    return ResultSeen(request_id=request_id, status=TaskStatus.FAILED, body=body, completed_at_ms=1, tenant="default")


async def rate(gateway: Gateway, request_id: str = "one", key: str | None = None, **said: Any) -> Any:
    return await gateway.one.ask("PUT", RATING.format(request_id), key or gateway.admin, json=said or {"score": 4})


async def compare(gateway: Gateway, a: str, b: str, preferred: str = "a", **more: Any) -> Any:
    said = {"a": {"request_id": a}, "b": {"request_id": b}, "preferred": preferred, **more}
    return await gateway.one.ask("POST", COMPARISONS, gateway.admin, json=said)


async def shown(gateway: Gateway, path: str, key: str | None = None, **params: Any) -> Any:
    return await gateway.one.ask("GET", path, key or gateway.admin, params=params)


# Rating


async def test_a_rating_is_written_with_how_the_image_was_made(gateway: Gateway) -> None:
    done(gateway, "one", model="flux", pool="h200", steps=8, quality="fast", preset="draft")
    said: dict[str, Any] = {
        "score": 5,
        "thumb": 1,
        "aspects": {"fidelity": 2},
        "artifacts": 0,
        "tags": ["hands"],
        "comment": "nice",
        "rater": "ann",
    }
    answer = await rate(gateway, **said)
    assert answer.status_code == 200, answer.text
    ((key, headers, value),) = gateway.records.feedback
    assert value is not None
    record = Rating.model_validate_json(value)
    assert (record.rating_id, headers["fluxpool-tenant"]) == (key, b"default")
    assert (record.score, record.aspects and record.aspects.fidelity, record.tags) == (5, 2, ("hands",))
    assert record.origin is not None
    made = record.origin.model_dump(exclude={"url", "object"})
    assert made == {
        "prompt": "a fox", "model": "flux", "pool": "h200", "preset": "draft", "quality": "fast", "steps": 8,
    }  # fmt: skip
    assert b"ann" not in value
    assert answer.json() == {
        "rating_id": key, "request_id": "one", "index": 0, "created_at": "2027-01-15T08:00:00Z",
        "score": 5, "thumb": 1, "aspects": {"fidelity": 2}, "artifacts": 0, "tags": ["hands"], "comment": "nice",
    }  # fmt: skip


async def test_a_second_rating_of_a_rater_takes_the_place_of_the_first(gateway: Gateway) -> None:
    done(gateway, "one", images=2)
    for score, rater, index in ((1, "ann", 0), (2, "bob", 0), (3, "ann", 1), (5, "ann", 0)):
        assert (await rate(gateway, score=score, rater=rater, index=index)).status_code == 200
    await gateway.project_feedback()
    summary = (await shown(gateway, SUMMARY)).json()
    assert summary["scores"] == 3
    assert summary["model"][0]["mean_score"]["value"] == pytest.approx(10 / 3, abs=1e-3)
    assert (await shown(gateway, RATING.format("one"), rater="ann")).json()["score"] == 5
    assert (await shown(gateway, RATING.format("one"), rater="ann", index=1)).json()["score"] == 3


async def test_every_replica_has_the_same_pseudonyms(gateway: Gateway) -> None:
    done(gateway, "one")
    for replica in (gateway.one, gateway.two):
        await replica.ask("PUT", RATING.format("one"), gateway.admin, json={"score": 1, "rater": "ann"})
    first, second = gateway.records.feedback
    assert first[0] == second[0]


async def test_the_key_is_the_rater_where_none_is_named(gateway: Gateway) -> None:
    done(gateway, "one")
    other = await gateway.create("rate", "read")
    await rate(gateway)
    await rate(gateway, key=other)
    # Not even a rater with the name of the key.
    await rate(gateway, score=1, rater=f"API key {gateway.admin.split('_')[1]}")
    assert len({key for key, _, _ in gateway.records.feedback}) == 3


async def test_a_rating_is_taken_back_as_often_as_one_likes(gateway: Gateway) -> None:
    done(gateway, "one")
    await rate(gateway, score=2, rater="ann")
    await rate(gateway, score=4, rater="bob")
    await gateway.project_feedback()
    for _ in range(2):
        answer = await gateway.one.ask("DELETE", RATING.format("one") + "?rater=ann", gateway.admin)
        assert (answer.status_code, answer.content) == (204, b"")
    await gateway.project_feedback()
    assert (await shown(gateway, RATING.format("one"), rater="ann")).status_code == 404
    assert (await shown(gateway, RATING.format("one"), rater="bob")).json()["score"] == 4


REFUSED_RATINGS: list[tuple[dict[str, Any], str]] = [
    ({}, "score"),
    ({"tags": []}, "score"),
    ({"rater": "ann"}, "score"),
    ({"score": 0}, "score"),
    ({"score": 6}, "score"),
    ({"score": "5"}, "score"),
    ({"score": True}, "score"),
    ({"thumb": 0}, "thumb"),
    ({"aspects": {"fidelity": 6}}, "aspects/fidelity"),
    ({"aspects": {"beauty": 5}}, "aspects/beauty"),
    ({"artifacts": 6}, "artifacts"),
    ({"tags": ["x"] * 17}, "tags"),
    ({"comment": "x" * 1001}, "comment"),
    ({"score": 5, "index": 8}, "index"),
    ({"score": 5, "index": 1}, "index"),
    ({"score": 5, "rater": ""}, "rater"),
    ({"comment": "\x00"}, "comment"),
    ({"tags": ["\x00"]}, "tags/0"),
    ({"stars": 5}, "stars"),
]


async def test_a_rating_that_is_none_is_refused_by_its_field(gateway: Gateway) -> None:
    done(gateway, "one")
    for said, field in REFUSED_RATINGS:
        answer = await gateway.one.ask("PUT", RATING.format("one"), gateway.admin, json=said)
        assert answer.status_code == 422, answer.text
        told = {error["pointer"].lstrip("#/") or error["detail"].partition(":")[0] for error in answer.json()["errors"]}
        assert told == {field}
    assert gateway.records.feedback == []


async def test_only_images_of_tasks_that_succeeded_are_judged(gateway: Gateway) -> None:
    done(gateway, "one")
    gateway.project(
        TaskSeen(
            request_id="waits", body='{"prompt": "a fox"}', priority="standard", tenant="default", created_at_ms=1
        ),
        failed("bad"),
    )
    for request_id, status, code in (
        ("waits", 409, "not_finished"), ("bad", 409, "no_images"), ("never", 404, "not_found"),
    ):  # fmt: skip
        for answer in (await rate(gateway, request_id), await compare(gateway, "one", request_id)):
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert gateway.records.feedback == []


async def test_what_the_broker_did_not_confirm_is_not_answered_as_done(gateway: Gateway) -> None:
    done(gateway, "one")
    done(gateway, "two")
    gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no acknowledgement within 3 s")
    delete = await gateway.one.ask("DELETE", RATING.format("one"), gateway.admin)
    for answer in (await rate(gateway), await compare(gateway, "one", "two"), delete):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


async def test_each_scope_allows_its_own(gateway: Gateway) -> None:
    done(gateway, "one", images=2)
    reader, rater = await gateway.create("read"), await gateway.create("rate")
    assert (await rate(gateway, key=reader)).status_code == 403
    assert (await rate(gateway, key=rater)).status_code == 200
    for path in (NEXT, SUMMARY):
        assert (await shown(gateway, path, rater)).status_code == 403
        assert (await shown(gateway, path, reader)).status_code == 200


async def test_tenants_see_and_judge_their_own_images_alone(gateway: Gateway) -> None:
    done(gateway, "one", tenant="acme", images=2)
    acme = await gateway.create(tenant="acme")
    assert (await rate(gateway)).status_code == 404
    assert (await shown(gateway, NEXT)).status_code == 204
    assert (await rate(gateway, key=acme, score=2)).status_code == 200
    await gateway.project_feedback()
    assert (await shown(gateway, SUMMARY)).json()["scores"] == 0
    assert (await shown(gateway, SUMMARY, acme)).json()["scores"] == 1


async def test_what_is_said_of_a_task_is_deleted_with_it_in_kafka_too(gateway: Gateway) -> None:
    done(gateway, "one", tenant="acme")
    done(gateway, "two", tenant="acme")
    acme = await gateway.create(tenant="acme")
    await rate(gateway, key=acme, score=2)
    await rate(gateway, "two", key=acme, score=2)
    said = {"a": {"request_id": "one"}, "b": {"request_id": "two"}, "preferred": "a"}
    await gateway.one.ask("POST", COMPARISONS, acme, json=said)
    await gateway.project_feedback()
    assert (await gateway.one.ask("DELETE", "/v1/generations/one", acme)).status_code in {202, 204}
    last = {key: value for key, _, value in gateway.records.feedback}
    assert [json.loads(value)["request_id"] for value in last.values() if value is not None] == ["two"]
    await gateway.project_feedback()
    summary = (await shown(gateway, SUMMARY, acme)).json()
    assert (summary["scores"], summary["comparisons"]) == (1, 0)


# Comparing


@pytest.mark.parametrize(("a", "b", "preferred"), [("one", "two", "a"), ("two", "one", "b")])
async def test_the_winner_is_the_same_whichever_image_is_named_first(
    gateway: Gateway, a: str, b: str, preferred: str
) -> None:
    done(gateway, "one", steps=8)
    done(gateway, "two", steps=28)
    answer = await compare(gateway, a, b, preferred, aspects={"fidelity": preferred}, seconds=2.5, shown_first="a")
    assert answer.status_code == 201, answer.text
    shown_a = answer.json()
    assert (shown_a["a"], shown_a["preferred"]) == ({"request_id": "one", "index": 0}, "a")
    ((key, _, value),) = gateway.records.feedback
    assert value is not None
    record = Comparison.model_validate_json(value)
    assert (record.rating_id, record.a.request_id, record.preferred, record.seconds) == (key, "one", "a", 2.5)
    assert record.shown_first == preferred
    assert record.aspects is not None
    assert record.aspects.fidelity == "a"
    await gateway.project_feedback()
    steps = {group["value"]: group for group in (await shown(gateway, SUMMARY)).json()["steps"]}
    assert (steps["8"]["wins"], steps["8"]["losses"], steps["28"]["wins"], steps["28"]["losses"]) == (1, 0, 0, 1)


async def test_a_second_comparison_takes_the_place_of_the_first_from_either_side(gateway: Gateway) -> None:
    done(gateway, "one", preset="draft")
    done(gateway, "two", preset="best")
    statuses = [
        (await compare(gateway, a, b, preferred)).status_code
        for a, b, preferred in (("one", "two", "a"), ("two", "one", "tie"), ("two", "one", "a"))
    ]
    assert statuses == [201, 200, 200]
    assert len({key for key, _, _ in gateway.records.feedback}) == 1
    await gateway.project_feedback()
    # Another process knows it from the store; another rater's is a new one.
    said = {"a": {"request_id": "one"}, "b": {"request_id": "two"}, "preferred": "b"}
    assert (await gateway.two.ask("POST", COMPARISONS, gateway.admin, json=said)).status_code == 200
    assert (await compare(gateway, "one", "two", "tie", rater="bob")).status_code == 201
    presets = {group["value"]: group for group in (await shown(gateway, SUMMARY)).json()["preset"]}
    assert (presets["best"]["wins"], presets["draft"]["losses"], presets["best"]["comparisons"]) == (1, 1, 1)


REFUSED_COMPARISONS: list[tuple[dict[str, Any], str]] = [
    ({"b": {"request_id": "one"}}, "b"),
    ({"b": {"request_id": "other"}}, "b"),
    ({"b": {"request_id": "one", "index": 1}}, "b/index"),
    ({"b": {"request_id": "no/id"}}, "b/request_id"),
    ({"preferred": "left"}, "preferred"),
    ({"seconds": -1}, "seconds"),
    ({"shown_first": "c"}, "shown_first"),
    ({"aspects": {"fidelity": "c"}}, "aspects/fidelity"),
]


async def test_a_comparison_that_is_none_is_refused_by_its_field(gateway: Gateway) -> None:
    done(gateway, "one")
    done(gateway, "two")
    done(gateway, "other", prompt="a hen")
    for said, field in REFUSED_COMPARISONS:
        body = {"a": {"request_id": "one"}, "b": {"request_id": "two"}, "preferred": "a", **said}
        answer = await gateway.one.ask("POST", COMPARISONS, gateway.admin, json=body)
        assert answer.status_code == 422, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == [f"#/{field}"]


async def test_a_rater_is_given_each_pair_of_a_prompt_once(gateway: Gateway) -> None:
    for name in ("one", "two", "three"):
        done(gateway, name)
    done(gateway, "other", prompt="a hen")
    done(gateway, "hens", prompt="many hens", images=2)
    judged, first = set(), set()
    while (answer := await shown(gateway, NEXT, rater="ann")).status_code == 200:
        pair = answer.json()
        assert pair["shown_first"] == "a"
        images = [(pair[side]["request_id"], pair[side]["index"]) for side in "ab"]
        assert pair["prompt"] == ("many hens" if images[0][0] == "hens" else "a fox")
        assert pair["a"]["url"] == f"http://gateway/v1/generations/{images[0][0]}/images/{images[0][1]}"
        judged.add(frozenset(images))
        first.add(images[0])
        names = {side: {key: pair[side][key] for key in ("request_id", "index")} for side in "ab"}
        said = {**names, "preferred": "tie", "shown_first": "a", "rater": "ann"}
        assert (await gateway.one.ask("POST", COMPARISONS, gateway.admin, json=said)).status_code == 201
        if len(judged) == 2:
            # What the store has counts as what this process remembers.
            await gateway.project_feedback()
    assert len(judged) == len(gateway.records.feedback) == 4
    await gateway.project_feedback()
    assert (await gateway.two.ask("GET", NEXT + "?rater=ann", gateway.admin)).status_code == 204
    assert (await gateway.two.ask("GET", NEXT + "?rater=bob", gateway.admin)).status_code == 200


async def test_either_image_of_a_pair_is_shown_first(gateway: Gateway) -> None:
    done(gateway, "one")
    done(gateway, "two")
    seen = set()
    # By chance alone the same one sixty times is as likely as a collision of two ids.
    for _ in range(60):
        seen.add((await shown(gateway, NEXT)).json()["a"]["request_id"])
    assert seen == {"one", "two"}


async def test_ratings_and_comparisons_are_counted(gateway: Gateway) -> None:
    done(gateway, "one")
    done(gateway, "two")
    await rate(gateway)
    await rate(gateway, "two")
    await compare(gateway, "one", "two")
    await gateway.one.ask("DELETE", RATING.format("one"), gateway.admin)
    text = (await gateway.one.ask("GET", "/metrics")).text
    for kind, count in (("rating", 2), ("comparison", 1), ("withdrawal", 1)):
        assert f'fluxpool_gateway_feedback_total{{kind="{kind}"}} {count}.0' in text


# Figures


def setup(preset: str | None, steps: int | None = None) -> Setup:
    return Setup(model=None, steps=steps, preset=preset, pool=None)


def test_groups_have_the_means_and_the_wins_over_others() -> None:
    scored = [
        Scored(setup("best", 28), 2, 9, 41), Scored(setup("best", 50), 1, 3, 9), Scored(setup(None), 1, 1, 1),
    ]  # fmt: skip
    compared = [
        Compared(setup("best"), setup("draft"), Preference.A, 6),
        Compared(setup("draft"), setup("best"), Preference.A, 1),
        Compared(setup("draft"), setup("best"), Preference.BOTH_BAD, 1),
        Compared(setup("best"), setup("best"), Preference.A, 100),
    ]
    best, draft, none = group_by(Dimension.PRESET, scored, compared)
    assert (best.value, best.scores, best.wins, best.losses, best.ties) == ("best", 3, 6, 1, 1)
    assert (draft.value, draft.wins, draft.losses, none.value) == ("draft", 1, 6, None)
    assert best.mean_score is not None
    assert best.win_rate is not None
    assert best.mean_score.value == 4
    assert best.win_rate.value == pytest.approx(6.5 / 8)
    assert [group.value for group in group_by(Dimension.STEPS, scored, [])] == ["28", None, "50"]


def test_an_interval_narrows_with_what_is_known() -> None:
    few, many = Interval.of_share(wins=5, count=5), Interval.of_share(wins=500, count=500)
    assert few is not None
    assert many is not None
    # Wilson's for 5 of 5, as its tables have it.
    assert few.low == pytest.approx(0.5655, abs=1e-4)
    assert few.high == 1
    assert few.low < many.low < many.high == 1
    assert Interval.of_share(wins=0, count=0) is None
    assert Interval.of_mean(count=0, total=0, squares=0) is None
    assert Interval.of_mean(count=1, total=4, squares=16) == Interval(4, 1, 5)
    mean = Interval.of_mean(count=100, total=300, squares=1000)
    assert mean is not None
    assert mean.low == pytest.approx(2.803, abs=1e-3)
    assert mean.high == pytest.approx(3.197, abs=1e-3)
