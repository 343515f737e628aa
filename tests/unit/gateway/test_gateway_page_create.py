"""What the view *Create* offers to a key of limited rights, and what it says where nothing is left."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from fluxpool_contract.messages import Quality
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.identity.rights import EVERYTHING, Rights
from fluxpool_gateway.page.create.offer import Offer, offer_to
from fluxpool_gateway.presets.preset import Preset
from kit.gateways.keyed_gateway import keyed_gateway, keyed_settings
from kit.http.page_visitor import Visitor, text_of

BOTH = frozenset(Priority)
DEV, SCHNELL = frozenset({"FLUX.1-dev", "checkpoints/dev"}), frozenset({"FLUX.1-schnell"})


def offered(
    rights: Rights,
    *,
    qualities: Sequence[Quality] = (),
    standard: Sequence[frozenset[str]] = (DEV,),
    vip: Sequence[frozenset[str]] = (SCHNELL,),
) -> Offer:
    pools = {Priority.STANDARD: standard, Priority.VIP: vip}
    return offer_to(rights, presets={"final", "draft"}, qualities=qualities, models_of=pools.__getitem__)


def test_a_key_without_limits_is_offered_everything() -> None:
    offer = offered(EVERYTHING)
    assert offer == Offer(
        presets=["auto", "draft", "final"], priorities=[Priority.STANDARD, Priority.VIP], qualities=[]
    )
    assert offer.shows_priority
    assert not offered(Rights()).shows_priority


@pytest.mark.parametrize(
    ("rights", "presets", "refusal"),
    [
        (Rights(presets=frozenset({"draft", "gone"})), ["auto", "draft"], ""),
        (Rights(presets=frozenset({"gone", "old"})), [], "name a preset (gone or old), and this gateway has none"),
    ],
)
def test_presets_are_those_of_the_key_one_of_which_its_tasks_have_to_name(
    rights: Rights, presets: list[str], refusal: str
) -> None:
    offer = offered(rights)
    assert (offer.presets, offer.needs_preset) == (presets, True)
    assert refusal in offer.refusal
    assert bool(refusal) == bool(offer.refusal)


def test_a_priority_whose_pools_have_other_models_is_left_out_with_the_reason() -> None:
    rights = Rights(priorities=BOTH, models=frozenset({"FLUX.1-schnell"}))
    offer = offered(rights)
    assert (offer.priorities, offer.shows_priority, offer.refusal) == ([Priority.VIP], True, "")
    assert offer.left_out is not None
    assert "FLUX.1-dev (the model of tasks of this priority)" in offer.left_out[Priority.STANDARD]
    assert offered(rights, vip=[SCHNELL, frozenset()]).priorities == [], "a pool of which nothing is known"
    refused = offered(rights, vip=())
    assert refused.priorities == []
    assert "FLUX.1-dev (the model" in refused.refusal
    assert "the model of tasks of priority vip is not known here" in refused.refusal


def test_qualities_are_those_of_key_and_gateway_one_of_which_its_tasks_have_to_name() -> None:
    assert offered(Rights()).qualities == []
    rights = Rights(qualities=frozenset({Quality.FAST}))
    assert offered(rights).qualities == [Quality.FAST]
    refused = offered(rights, qualities=[Quality.EXACT])
    assert refused.qualities == []
    assert "name a quality (fast), and this gateway allows none" in refused.refusal


async def test_the_form_has_what_the_key_may_choose_and_sends_it(tmp_path: Path) -> None:
    settings = keyed_settings(tmp_path).model_copy(
        update={"presets": {"draft": Preset(steps=4), "final": Preset(steps=28)}}
    )
    async with keyed_gateway(settings) as gateway:
        visitor = Visitor(gateway.one.app)
        await visitor.log_in(await gateway.create("submit", "read", presets=["draft"], qualities=["fast"]))
        form = (await visitor.get("/ui/create")).text
        options = re.findall(r"<option[^>]*>([^<]*)</option>", form[form.index('id="preset"') :])
        assert options == ["auto", "draft", "that of the preset", "fast"]
        asked = {"prompt": "a fox", "width": "64", "height": "64", "key": "k", "preset": "draft"}
        refused = await visitor.post("/ui/create", **asked)
        assert refused.status_code == 403
        assert re.search(r'id="quality" name="quality" aria-invalid="true"', refused.text)
        assert (await visitor.post("/ui/create", **asked, quality="fast")).status_code == 303
        assert [task["quality"] for task in gateway.records.values] == ["fast"]

        other = Visitor(gateway.one.app)
        await other.log_in(await gateway.create("submit", "read", presets=["gone"]))
        answer = await other.get("/ui/create")
        assert "have to name a preset (gone), and this gateway has none of these" in text_of(answer)
        assert re.search(r'id="submit" disabled', answer.text)
