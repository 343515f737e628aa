"""Presets of the operator, and `auto`: what people prefer gets most of the traffic, and every preset keeps a share."""

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fluxpool_contract.messages.derived import task_digest
from fluxpool_contract.messages.task import GenerationTask
from fluxpool_gateway.feedback.records import read_feedback
from fluxpool_gateway.presets.bandit import Evidence, divide, divide_evenly
from fluxpool_gateway.presets.choosing import Presets
from fluxpool_gateway.presets.preset import Preset
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_gateway.store.task_state import TaskSeen
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings, succeeded

FLOOR = 0.05
PRESETS = {
    "best": Preset(steps=50, guidance=4.0),
    "draft": Preset.model_validate({"steps": 8, "quality": "fast"}),
    "ink": Preset.model_validate({"loras": [{"name": "ink"}]}),
}
PATH = "/v1/generations"


# The shares


def judge(evidence: Evidence, score: int) -> Evidence:
    return Evidence(evidence.quarters + score - 1, evidence.count + 1)


def simulate(liked: Mapping[str, float], *, ratings: int, seed: int) -> tuple[Counter[str], dict[str, float], float]:
    """People rate what they get from 1 to 5, each preset by its own taste; returns traffic, shares at the end and the
    least share that any preset ever had."""
    people = random.Random(seed)  # noqa: S311
    evidence = dict.fromkeys(liked, Evidence())
    traffic: Counter[str] = Counter()
    least = 1.0
    shares = divide(evidence, exploration=FLOOR, seed=seed)
    for number in range(ratings):
        # What is known is read again every few seconds, thus every some ratings.
        if number % 10 == 0:
            shares = divide(evidence, exploration=FLOOR, seed=seed)
            least = min(least, *shares.shares.values())
        name = shares.pick(f"{seed}/{number}")
        traffic[name] += 1
        score = 1 + sum(people.random() < liked[name] for _ in range(4))
        evidence[name] = judge(evidence[name], score)
    return traffic, dict(divide(evidence, exploration=FLOOR, seed=seed).shares), least


@pytest.mark.parametrize("seed", range(8))
def test_after_500_ratings_the_preferred_preset_has_80_percent_of_the_traffic(seed: int) -> None:
    traffic, shares, least = simulate({"draft": 0.5, "best": 0.75, "ink": 0.55}, ratings=500, seed=seed)
    assert shares["best"] >= 0.8
    assert least >= FLOOR
    assert min(traffic.values()) >= 0.5 * FLOOR * 500
    # As counted, not only as intended.
    last = divide(
        {name: Evidence(round(4 * 500 * 0.5), 500) for name in shares} | {"best": Evidence(1600, 500)},
        exploration=FLOOR,
    )
    picked = Counter(last.pick(f"{seed}-{number}") for number in range(2000))
    assert picked["best"] / 2000 >= 0.8
    assert all(picked[name] / 2000 >= FLOOR - 0.02 for name in shares)


def test_the_shares_are_the_same_for_the_same_evidence_and_seed() -> None:
    evidence = {"best": Evidence(30, 10), "draft": Evidence(28, 10)}
    first = divide(evidence, exploration=FLOOR, seed=3)
    assert divide(dict(reversed(evidence.items())), exploration=FLOOR, seed=3) == first
    assert divide(evidence, exploration=FLOOR, seed=4) != first
    assert simulate({"a": 0.4, "b": 0.6}, ratings=100, seed=1) == simulate({"a": 0.4, "b": 0.6}, ratings=100, seed=1)
    assert sum(first.shares.values()) == pytest.approx(1)


def test_a_text_always_gets_the_same_preset_and_texts_get_their_shares() -> None:
    shares = divide({"best": Evidence(40, 10), "draft": Evidence(0, 10)}, exploration=0.1)
    assert shares.shares == {"best": pytest.approx(0.9), "draft": pytest.approx(0.1)}
    picked = [shares.pick(f"task-{number}") for number in range(5000)]
    assert picked == [shares.pick(f"task-{number}") for number in range(5000)]
    assert Counter(picked)["draft"] / 5000 == pytest.approx(0.1, abs=0.02)


def test_the_reason_says_what_is_known() -> None:
    even = divide_evenly({"best": 1, "draft": 1})
    assert even.reason("best") == "auto: nothing is judged yet, so each of 2 presets has the same share"
    shares = divide({"best": Evidence(40, 10), "draft": Evidence()}, exploration=FLOOR)
    assert "likely to be preferred (mean reward 1.00 of 10 judgements)" in shares.reason("best")
    assert "goes on being judged (not judged yet)" in shares.reason("draft")


# The settings


@pytest.mark.parametrize(
    ("presets", "more", "reason"),
    [
        ({"draft": {}}, {}, "must set at least one of steps"),
        ({"draft": {"steps": 0}}, {}, "greater than or equal to 1"),
        ({"draft": {"seed": 1}}, {}, "Extra inputs"),
        ({"draft": {"steps": 8, "model": "FLUX.1-dev"}}, {}, "model: a preset cannot choose it; a task names no model"),
        ({"draft": {"topic": "other"}}, {}, "topic: .* give another model a pool with topics of its own"),
        ({"Draft": {"steps": 8}}, {}, "pattern"),
        ({"auto": {"steps": 8}}, {}, "auto is the name of the choice"),
        ({f"p{n}": {"steps": 8} for n in range(12)}, {}, "preset_exploration: 0.05 for each of 12 presets"),
        ({f"p{n}": {"steps": 8} for n in range(3)}, {"preset_exploration": 0.2}, "use 0.166 or less"),
    ],
)
def test_a_preset_that_makes_no_sense_is_refused(presets: Any, more: Any, reason: str, tmp_path: Path) -> None:
    given = keyed_settings(tmp_path).model_dump(include={"kafka", "storage", "database_file"})
    with pytest.raises(ValidationError, match=reason):
        GatewaySettings.model_validate({**given, "presets": presets, **more})


# Requests


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    settings = keyed_settings(tmp_path).model_copy(update={"presets": PRESETS})
    async with keyed_gateway(settings) as running:
        yield running


async def submit(gateway: Gateway, key: str | None = None, *, idempotency_key: str | None = None, **fields: Any) -> Any:
    headers = {} if idempotency_key is None else {"idempotency-key": idempotency_key}
    return await gateway.one.ask(
        "POST", PATH, key or gateway.admin, json={"prompt": "a fox", **fields}, headers=headers
    )


def project_tasks(gateway: Gateway) -> None:
    """What was submitted, as it stands in the store."""
    gateway.project(
        *(
            TaskSeen(
                request_id=value["request_id"], body=json.dumps(value), priority="standard", tenant="default",
                created_at_ms=1,
            )
            for value in gateway.records.values
        )
    )  # fmt: skip


def say(gateway: Gateway, **scores: list[int]) -> None:
    """Scores of images by preset, of the tenant `default`."""
    changes = []
    for preset, given in scores.items():
        for number, score in enumerate(given):
            rating_id = f"{preset}-{number}"
            said = {
                "rating_id": rating_id,
                "request_id": rating_id,
                "score": score,
                "created_at": "2026-11-30T10:00:00Z",
            }
            value = json.dumps({**said, "origin": {"preset": preset}}).encode()
            changes.append(read_feedback(value, key=rating_id, tenant="default", at_ms=1))
    gateway.project(*changes)


async def refresh(gateway: Gateway) -> None:
    await presets_of(gateway).refresh(gateway.one.app.state.services.store.read)


def presets_of(gateway: Gateway) -> Presets:
    return gateway.one.app.submission.presets


async def test_a_task_has_the_parameters_of_the_preset_it_names(gateway: Gateway) -> None:
    answer = await submit(gateway, preset="draft", width=512)
    assert answer.status_code == 202, answer.text
    (value,) = gateway.records.values
    task = GenerationTask.model_validate_json(json.dumps(value))
    assert (task.steps, task.quality, task.width, task.preset) == (8, "fast", 512, "draft")
    assert value["preset_choice"] == {"name": "draft", "reason": "asked for", "sets": ["steps", "quality"]}
    project_tasks(gateway)
    view = (await gateway.one.ask("GET", f"{PATH}/{value['request_id']}", gateway.admin)).json()
    assert (view["preset"], view["preset_reason"], view["preset_probability"]) == ("draft", "asked for", None)


@pytest.mark.parametrize(
    ("fields", "field", "detail"),
    [
        ({"preset": "none"}, "preset", "none is not known; there are best, draft, ink"),
        ({"preset": "draft", "steps": 20}, "steps", "is set by the preset draft; leave it out, or leave out preset"),
        ({"preset": "draft", "num_inference_steps": 8}, "steps", "is set by the preset draft"),
        ({"preset": "auto", "guidance": 3.0}, "guidance", "is set by the preset best"),
        ({"preset": "no/name"}, "preset", "pattern"),
    ],
)
async def test_a_request_with_parameters_of_its_own_beside_the_preset_is_refused(
    gateway: Gateway, fields: dict[str, Any], field: str, detail: str
) -> None:
    answer = await submit(gateway, **fields)
    assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    assert error["pointer"] == f"#/{field}"
    assert detail in error["detail"] or field == "preset"
    assert gateway.records.values == []


async def test_auto_gives_what_people_prefer_most_of_the_tasks_and_says_why(gateway: Gateway) -> None:
    say(gateway, best=[5] * 60, draft=[1, 2] * 30, ink=[2] * 60)
    await refresh(gateway)
    for number in range(100):
        assert (await submit(gateway, idempotency_key=f"key-{number}", preset="auto")).status_code == 202
    chosen = Counter(value["preset_choice"]["name"] for value in gateway.records.values)
    assert chosen["best"] >= 80
    assert chosen.total() == 100
    for value in gateway.records.values:
        choice = value["preset_choice"]
        assert value["preset"] == "auto"
        assert choice["probability"] == (0.9 if choice["name"] == "best" else 0.05)
        assert {name: value[name] for name in choice["sets"]} == json.loads(
            PRESETS[choice["name"]].model_dump_json(exclude_unset=True)
        )
    project_tasks(gateway)
    best = next(value for value in gateway.records.values if value["preset_choice"]["name"] == "best")
    view = (await gateway.one.ask("GET", f"{PATH}/{best['request_id']}", gateway.admin)).json()
    assert (view["preset"], view["preset_probability"]) == ("best", 0.9)
    assert view["preset_reason"] == (
        "auto: it is likely to be preferred (mean reward 1.00 of 60 judgements), and has a share of 0.90"
    )


async def test_comparisons_count_for_both_presets_and_only_between_two(gateway: Gateway) -> None:
    outcomes = {"c-1": ("best", "draft", "a"), "c-2": ("draft", "best", "tie"), "c-3": ("best", "best", "a")}
    outcomes |= {"c-4": ("draft", "best", "both_bad"), "c-5": ("gone", "best", "a")}
    changes = []
    for rating_id, (a, b, preferred) in outcomes.items():
        sides = {
            side: {"request_id": f"{rating_id}-{side}", "origin": {"preset": name}}
            for side, name in (("a", a), ("b", b))
        }
        said = {"rating_id": rating_id, **sides, "preferred": preferred, "created_at": "2026-11-30T10:00:00Z"}
        changes.append(read_feedback(json.dumps(said).encode(), key=rating_id, tenant="default", at_ms=1))
    gateway.project(*changes)
    await refresh(gateway)
    await submit(gateway, preset="auto")
    (value,) = gateway.records.values
    expected = divide(
        {"best": Evidence(6, 3), "draft": Evidence(2, 3), "ink": Evidence()},
        exploration=presets_of(gateway).exploration,
    )
    assert value["preset_choice"]["probability"] == round(expected.shares[value["preset_choice"]["name"]], 4)


async def test_a_tenant_is_not_told_what_others_prefer(gateway: Gateway) -> None:
    say(gateway, best=[5] * 60, draft=[1] * 60, ink=[1] * 60)
    await refresh(gateway)
    acme = await gateway.create(tenant="acme")
    await submit(gateway, acme, preset="auto")
    (value,) = gateway.records.values
    assert value["preset_choice"]["reason"].startswith("auto: nothing is judged yet")
    assert value["preset_choice"]["probability"] == pytest.approx(1 / 3, abs=1e-4)


async def test_a_key_gets_the_presets_that_its_rights_allow(gateway: Gateway) -> None:
    exact = await gateway.create(qualities=["fast"], loras=[])
    say(gateway, best=[5] * 60)
    await refresh(gateway)
    for number in range(20):
        assert (await submit(gateway, exact, idempotency_key=str(number), preset="auto")).status_code == 202
    assert {value["preset_choice"]["name"] for value in gateway.records.values} == {"draft"}
    assert {value["preset_choice"]["probability"] for value in gateway.records.values} == {1.0}
    for preset in ("best", "ink"):
        assert (await submit(gateway, exact, preset=preset)).status_code == 403
    none = await gateway.create(qualities=["exact"])
    assert (await submit(gateway, none, preset="auto")).status_code == 403


async def test_a_key_of_presets_names_one_of_them_or_gets_one(gateway: Gateway) -> None:
    say(gateway, best=[5] * 60)
    await refresh(gateway)
    key = await gateway.create(presets=["draft"])
    assert [(await submit(gateway, key, preset=preset)).status_code for preset in ("draft", "auto")] == [202, 202]
    assert {value["preset_choice"]["name"] for value in gateway.records.values} == {"draft"}
    for fields, what in (({"preset": "best"}, "best"), ({}, "a task without preset"), ({"steps": 8}, "a task without")):
        refused = await submit(gateway, key, **fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (403, "preset")
        assert f"does not allow {what}" in refused.json()["detail"]
        assert "use draft" in refused.json()["detail"]


async def test_a_repeat_is_the_same_task_with_the_first_choice_whatever_is_known_by_then(gateway: Gateway) -> None:
    say(gateway, best=[1] * 60, draft=[5] * 60, ink=[1] * 60)
    await refresh(gateway)
    first = await submit(gateway, idempotency_key="fox", preset="auto")
    assert gateway.records.values[0]["preset_choice"]["name"] == "draft"
    say(gateway, best=[5] * 80, draft=[1] * 80)
    gateway.project()
    await refresh(gateway)
    for _ in range(2):
        repeat = await submit(gateway, idempotency_key="fox", preset="auto")
        assert (repeat.status_code, repeat.json()["request_id"]) == (202, first.json()["request_id"])
        # Then by what the store has.
        project_tasks(gateway)
    assert len(gateway.records.values) == 1
    assert (await submit(gateway, idempotency_key="fox", preset="best")).status_code == 422
    chosen_id = "01890a5d-ac96-774b-bcce-b302099a8057"
    body = {"prompt": "a fox", "preset": "auto"}
    codes = [(await gateway.one.ask("PUT", f"{PATH}/{chosen_id}", gateway.admin, json=body)).status_code for _ in "12"]
    assert codes == [202, 200]


def test_the_digest_of_a_task_leaves_out_what_was_chosen_and_nothing_else() -> None:
    def digest(**fields: Any) -> str:
        return task_digest(json.dumps({"request_id": "r", "prompt": "a fox", "preset": "auto", **fields}).encode())

    asked = digest()
    assert digest(steps=8, preset_choice={"name": "draft", "sets": ["steps"]}) == asked
    assert digest(steps=50, guidance=4, preset_choice={"name": "best", "sets": ["steps", "guidance"]}) == asked
    others = [
        digest(steps=8),
        digest(steps=8, preset_choice={"name": "draft", "sets": []}),
        digest(prompt="a hen", preset_choice={"name": "draft", "sets": ["prompt"]}),
        digest(width=512, preset_choice={"name": "draft", "sets": ["width"]}),
        digest(steps=8, preset_choice={"name": "draft", "sets": "steps"}),
        digest(steps=8, preset_choice={"name": "draft", "sets": [["steps"]]}),
    ]
    assert asked not in others


async def test_a_retry_keeps_the_parameters_and_the_preset(gateway: Gateway) -> None:
    await submit(gateway, preset="draft")
    project_tasks(gateway)
    (value,) = gateway.records.values
    gateway.project(succeeded(value["request_id"], "default"))
    presets_of(gateway).presets = {}
    answer = await gateway.one.ask("POST", f"{PATH}/{value['request_id']}/retry", gateway.admin)
    assert answer.status_code == 202, answer.text
    again = gateway.records.values[1]
    for name in ("steps", "quality", "preset", "preset_choice"):
        assert again[name] == value[name]
    assert again["parent_id"] == value["request_id"]


async def test_each_task_of_a_batch_and_of_the_openai_api_may_have_a_preset(gateway: Gateway) -> None:
    requests = [{"prompt": "a fox", "preset": "draft"}, {"prompt": "a fox", "preset": "none"}]
    answer = await gateway.one.ask("POST", f"{PATH}/batch", gateway.admin, json={"requests": requests})
    assert answer.status_code == 202
    assert [value["steps"] for value in gateway.records.values] == [8]
    # It waits for the task, which no worker runs here.
    headers = {"x-stainless-read-timeout": "0.1"}
    body = {"prompt": "a fox", "preset": "best"}
    await gateway.one.ask("POST", "/v1/images/generations", gateway.admin, json=body, headers=headers)
    assert [value["steps"] for value in gateway.records.values] == [8, 50]


async def test_a_gateway_without_presets_says_so(tmp_path: Path) -> None:
    async with keyed_gateway(keyed_settings(tmp_path)) as gateway:
        for name, reason in (("auto", "the gateway has none; leave it out"), ("draft", "the gateway has no presets")):
            answer = await submit(gateway, preset=name)
            assert answer.status_code == 422
            assert reason in answer.json()["errors"][0]["detail"]
