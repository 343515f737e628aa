"""Dead letters on the page, over real stores: read by cause, edited by way of a dry run, replayed, discarded."""

import asyncio
import csv
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_contract.tenants import prove_tenant
from fluxpool_gateway.page.dead_letters.editing import proposed_patch
from kit.gateways.dead_letter_topic import letter_at
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.http.page_visitor import Visitor, text_of
from kit.waiting import wait_until

HERE = "/ui/dead-letters"
HOSTILE = "\"><script>alert('fox')</script>{{ 7*7 }}"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as made:
        yield made


@pytest.fixture
async def admin(gateway: Gateway) -> Visitor:
    visitor = Visitor(gateway.one.app)
    await visitor.log_in(gateway.admin)
    return visitor


def checked(text: str) -> str:
    found = re.search(r'name="checked" value="(\w+)"', text)
    assert found is not None
    return found[1]


async def ended(visitor: Visitor, address: str) -> str:
    async def has_ended() -> bool:
        return "Ended" in text_of(await visitor.get(address))

    await wait_until(has_ended, deadline_seconds=60, what="the replay to end")
    return text_of(await visitor.get(address))


async def test_causes_lead_to_their_dead_letters_and_each_to_all_that_its_record_has(
    gateway: Gateway, admin: Visitor
) -> None:
    gateway.dead_letters.add(
        letter_at(0),
        letter_at(1),
        letter_at(2, error_code="out-of-memory", error_class="transient", stack="Traceback: " + HOSTILE),
        letter_at(3, b"\xff\xfe", error_code="undecodable", message=HOSTILE),
    )
    answer = await admin.get(HERE)
    text = text_of(answer)
    assert re.search(r"invalid-field invalid default 2 0 .*?Sample Edit and replay … Discard …", text)
    assert "4 dead letters" in text
    found = re.search(r'href="(/ui/dead-letters\?[^"]*error_code=out-of-memory[^"]*)"', answer.text)
    assert found is not None
    of_cause = text_of(await admin.get(found[1].replace("&amp;", "&")))
    assert "1 dead letter " in of_cause
    one = await admin.get(f"{HERE}/0/2")
    assert "Traceback" in text_of(one)
    assert '"width": 100' in text_of(one)
    assert "fffe" in text_of(await admin.get(f"{HERE}/0/3"))
    for path in (HERE, f"{HERE}/0/2", f"{HERE}/0/3", f"{HERE}/edit?id=0/3", f"{HERE}/discard?id=0/3"):
        assert "<script>alert" not in (await admin.get(path)).text, path
    assert (await admin.get(f"{HERE}/0/9")).status_code == 404
    assert "No dead letters pass" in text_of(await admin.get(f"{HERE}?pool=none"))


async def test_what_was_edited_is_sent_after_a_dry_run_of_the_same_settings_alone(
    gateway: Gateway, admin: Visitor
) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1), letter_at(2, b"\xff", error_code="undecodable"))
    first = await admin.get(f"{HERE}/edit?all=1")
    assert "Edit and replay 3 dead letters" in text_of(first)
    assert "{\n  &#34;width&#34;: 100\n}</textarea>" in first.text
    form = {"all": "1", "rate_per_second": "10000", "max_replays": "3", "drop_headers": "", "priority": ""}
    refused = await admin.post(f"{HERE}/edit", **form, patch='{"width": ', action="dry-run")
    assert refused.status_code == 422
    assert "is not JSON" in text_of(refused)
    dry_run = await admin.post(f"{HERE}/edit", **form, patch='{"width": 96}', action="dry-run", checked="")
    assert "Dry run: 2 would be sent, 1 refused" in text_of(dry_run)
    digest = checked(dry_run.text)
    other = await admin.post(f"{HERE}/edit", **form, patch='{"width": 95}', action="replay", checked=digest)
    assert "nothing was sent" in text_of(other)
    assert "0 would be sent, 3 refused" in text_of(other)
    replayed = await admin.post(f"{HERE}/edit", **form, patch='{"width": 96}', action="replay", checked=digest)
    assert replayed.status_code == 303
    address = replayed.headers["location"]
    assert "0 of 3 sent" in text_of(await admin.get(address))
    work = asyncio.create_task(gateway.one.dead_letters.runner.run())
    try:
        text = await ended(admin, address)
    finally:
        work.cancel()
        await asyncio.wait({work})
    assert "2 of 3 sent" in text
    assert "1 refused, 0 skipped" in text
    assert "Refused, stays open" in text
    assert [json.loads(sent.value)["width"] for sent in gateway.dead_letters.sent] == [96, 96]
    rows = list(csv.DictReader(io.StringIO((await admin.get(f"{address}/export?format=csv")).text)))
    assert [(row["id"], row["outcome"]) for row in rows] == [("0/0", "sent"), ("0/1", "sent"), ("0/2", "refused")]
    assert "prompt: is required" in rows[2]["reason"]
    lines = (await admin.get(f"{address}/export")).text.splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["sent", "sent", "refused"]
    assert f'href="{address}"' in (await admin.get(f"{HERE}/0/0")).text


async def test_a_replay_is_canceled_where_it_is_followed_and_what_was_not_sent_stays_open(
    gateway: Gateway, admin: Visitor
) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1))
    form = {"all": "1", "rate_per_second": "10000", "max_replays": "3", "patch": '{"width": 96}'}
    form |= {"drop_headers": "", "priority": ""}
    dry_run = await admin.post(f"{HERE}/edit", **form, action="dry-run", checked="")
    replayed = await admin.post(f"{HERE}/edit", **form, action="replay", checked=checked(dry_run.text))
    address = replayed.headers["location"]
    button = f'action="{address}/cancel"'
    assert button in (await admin.get(address)).text
    reader = Visitor(gateway.one.app)
    await reader.log_in(await gateway.create("read", tenant="acme"))
    assert (await reader.post(f"{address}/cancel")).status_code == 403
    assert (await admin.post(f"{address}/cancel", token="0" * 64)).status_code == 403
    assert button in (await admin.get(address)).text
    listed = await admin.get(f"{HERE}/replays")
    assert button in listed.text
    assert f'href="{address}"' in listed.text
    assert re.search(r"API key \w+ Waiting 0 0 0 0 2", text_of(listed))
    answer = await admin.post(f"{address}/cancel")
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    listed = await admin.get(f"{HERE}/replays")
    assert button not in listed.text
    assert re.search(r"Ended canceled by API key \w+ 0 0 0 2 2", text_of(listed))
    assert button not in (await admin.get(address)).text
    work = asyncio.create_task(gateway.one.dead_letters.runner.run())
    try:
        text = await ended(admin, address)
    finally:
        work.cancel()
        await asyncio.wait({work})
    assert "0 of 2 sent" in text
    assert "2 canceled by" in text
    assert text.count("Canceled, stays open") == 2
    assert gateway.dead_letters.sent == []
    assert "2 dead letters" in text_of(await admin.get(f"{HERE}?state=open"))
    assert (await admin.post(f"{HERE}/replays/none/cancel")).status_code == 404


async def test_discarding_counts_first_asks_why_and_tells_what_became_of_each(gateway: Gateway, admin: Visitor) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1), letter_at(2, pool="other"))
    assert "Discard 2 dead letters?" in text_of(await admin.get(f"{HERE}/discard?pool=default&all=1"))
    unreasoned = await admin.post(f"{HERE}/discard", all="1", pool="default", reason=" ")
    assert unreasoned.status_code == 422
    assert gateway.dead_letters.resolutions() == []
    done = text_of(await admin.post(f"{HERE}/discard", all="1", pool="default", reason="of a test"))
    assert "Discarded: 2" in done
    assert [told.reason for told in gateway.dead_letters.resolutions()] == ["of a test"] * 2
    again = text_of(await admin.post(f"{HERE}/discard", id=["0/0", "0/2"], reason="of a test"))
    assert "0/0 is not open any more, or unknown" in again
    assert "Discarded: 1" in again
    assert "of a test" in text_of(await admin.get(f"{HERE}/0/0"))
    assert "3 dead letters" in text_of(await admin.get(f"{HERE}?state=discarded"))


async def test_nothing_chosen_is_never_everything(gateway: Gateway, admin: Visitor) -> None:
    gateway.dead_letters.add(letter_at(0))
    for path in ("edit", "discard"):
        assert (await admin.get(f"{HERE}/{path}")).status_code == 422
        assert (await admin.post(f"{HERE}/{path}", reason="a", rate_per_second="1", max_replays="1")).status_code == 422
    assert gateway.dead_letters.resolutions() == []


async def test_who_may_read_alone_sees_its_tenants_and_has_nothing_to_change_them_with(gateway: Gateway) -> None:
    secret = await gateway.one.gate.store.secret()
    proof = prove_tenant(secret, tenant="acme", request_id="wide-0")
    names = [("fluxpool-tenant", b"acme"), ("fluxpool-tenant-proof", proof.encode())]
    gateway.dead_letters.add(letter_at(0, original=names), letter_at(1))
    reader = Visitor(gateway.one.app)
    await reader.log_in(await gateway.create("read", tenant="acme"))
    answer = await reader.get(HERE)
    assert "1 dead letter " in text_of(answer)
    one = await reader.get(f"{HERE}/0/0")
    assert one.status_code == 200
    for shown in (answer, one):
        assert "Edit and replay" not in shown.text
        assert f"{HERE}/replays" not in shown.text
        assert "Discard" not in text_of(shown).replace("Discarded", "")
        assert 'name="id"' not in shown.text
    assert (await reader.get(f"{HERE}/0/1")).status_code == 404
    assert len((await reader.get(f"{HERE}/export?format=csv")).text.splitlines()) == 2
    for path in ("edit?id=0/0", "discard?id=0/0", "replays", "replays/any", "replays/any/export"):
        assert (await reader.get(f"{HERE}/{path}")).status_code == 403, path
    for path in ("edit", "discard"):
        answer = await reader.post(f"{HERE}/{path}", id="0/0", reason="a", action="replay")
        assert answer.status_code == 403, path
    assert gateway.dead_letters.resolutions() == []


@pytest.mark.parametrize(
    ("message", "task", "patch"),
    [
        ("width: 100 is not a multiple of 16; height: must be more", {"width": 100, "height": 1}, ["width", "height"]),
        ("metadata.team: must be a text", {"metadata": {"team": 1}, "prompt": "a"}, ["metadata"]),
        ("CUDA out of memory: tried to allocate", {"prompt": "a"}, []),
        ("seed: is missing", {"prompt": "a"}, []),
        ("width: 1", None, []),
    ],
)
def test_the_proposed_patch_has_the_fields_that_the_failure_names(message: str, task: object, patch: list[str]) -> None:
    proposed = proposed_patch(message, task)
    assert list(json.loads(proposed or "{}")) == patch
