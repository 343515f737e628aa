"""The views of the page over real stores: what they show, and what their forms do."""

import asyncio
import hashlib
import json
import re
import shlex
from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fluxpool_contract.messages.decoding import decode_task
from fluxpool_gateway.http.generation_request import parse_request, render_task
from fluxpool_gateway.page.assets import FOLDER, HTMX, HTMX_SHA256, assets
from fluxpool_gateway.page.create.form import CreateForm, RecordTarget, form_of_task, snippets
from fluxpool_gateway.page.rendering import keep_units, show_duration
from fluxpool_gateway.page.tasks.card import TaskCard
from fluxpool_gateway.presets.choosing import Presets
from fluxpool_gateway.presets.preset import Preset
from fluxpool_gateway.store.task_state import ProgressSeen, TaskSeen, TaskStatus
from fluxpool_gateway.tasks.view import TaskView
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings, succeeded
from kit.http.event_streams import first_event
from kit.http.page_visitor import Visitor, text_of

HOSTILE = "\"><script>alert('fox')</script><img src=x onerror=alert(1)>{{ 7*7 }}"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as made:
        yield made


@pytest.fixture
async def visitor(gateway: Gateway) -> Visitor:
    made = Visitor(gateway.one.app)
    await made.log_in(await gateway.create("submit", "read", "cancel", tenant="acme"))
    return made


def seen(request_id: str, prompt: str = "a fox", *, tenant: str = "acme", **fields: Any) -> TaskSeen:
    body = json.dumps({"request_id": request_id, "prompt": prompt, **fields})
    return TaskSeen(
        request_id=request_id, body=body, priority="standard", tenant=tenant, created_at_ms=NOW_MS - 60_000,
        group_id=fields.get("group_id"),
    )  # fmt: skip


def project_each(gateway: Gateway) -> None:
    """A task that waits, one that runs, one that succeeded."""
    running = ProgressSeen(
        request_id="runs", status=TaskStatus.RUNNING, at_ms=NOW_MS - 1, started=True, tenant="acme", step=7,
        total_steps=28,
    )  # fmt: skip
    done = replace(succeeded("done", "acme"), completed_at_ms=NOW_MS - 1)
    gateway.project(seen("waits"), seen("runs"), running, seen("done", seed=9, width=512, height=768), done)


async def test_what_a_task_says_is_text_in_every_view(gateway: Gateway, visitor: Visitor) -> None:
    hostile = succeeded("done", "acme")
    result = json.loads(hostile.body) | {"metadata": {HOSTILE: HOSTILE}, "warnings": [HOSTILE], "model": HOSTILE}
    gateway.project(
        seen("waits", HOSTILE),
        seen("done", HOSTILE, negative_prompt=HOSTILE),
        replace(hostile, body=json.dumps(result)),
    )
    paths = "create", "tasks", "gallery", "queue", "tasks/waits", "tasks/done", "create?from=done", "tasks/done/delete"
    for path in paths:
        answer = await visitor.get(f"/ui/{path}")
        assert answer.status_code == 200, path
        assert "<script>alert" not in answer.text, path
        assert "<img src=x" not in answer.text, path
        assert HOSTILE[:20] in text_of(answer) or path == "create" or HOSTILE[:10] in answer.text, path


async def test_a_card_says_what_becomes_of_its_task_in_words(gateway: Gateway, visitor: Visitor) -> None:
    project_each(gateway)
    answer = await visitor.get("/ui/tasks")
    text = text_of(answer)
    for words in ("Waiting", "Running", "step 7 of 28", "Succeeded"):
        assert words in text
    assert '<progress aria-label="Progress" max="100" value="25">' in answer.text
    assert "/ui/tasks/done/images/0?thumb=256" in answer.text


async def test_a_task_that_ends_while_the_list_is_read_has_one_card(
    gateway: Gateway, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.project(seen("ends"))

    async def read_and_end(reading: Awaitable[Any]) -> Any:
        page = await reading
        gateway.project(succeeded("ends", "acme"))
        return page

    monkeypatch.setattr("fluxpool_gateway.page.tasks.reading.read_store", read_and_end)
    text = (await visitor.get("/ui/tasks")).text
    assert text.count('id="task-ends"') == 1
    assert 'data-status="succeeded"' in text


async def test_an_id_that_is_not_known_never_looks_like_a_task_that_waits(gateway: Gateway, visitor: Visitor) -> None:
    project_each(gateway)
    waits, unknown = await visitor.get("/ui/tasks/waits"), await visitor.get("/ui/tasks/nothing")
    assert (waits.status_code, unknown.status_code) == (200, 404)
    assert "Waiting" in text_of(waits)
    assert "Waiting" not in text_of(unknown)
    assert "never accepted" in text_of(unknown)


async def test_a_form_is_submitted_with_the_callers_tenant_and_shown_again_with_its_settings(
    gateway: Gateway, visitor: Visitor
) -> None:
    fields = {"width": "512", "height": "768", "steps": "", "n": "2", "seed": "5", "guidance": "2.5", "key": "k-1"}
    answer = await visitor.post("/ui/create", prompt="a fox\r\nat dusk", **fields)
    assert answer.status_code == 303
    (task,) = gateway.records.values
    request_id = task.pop("request_id")
    assert task == {"prompt": "a fox\nat dusk", "width": 512, "height": 768, "n": 2, "seed": 5, "guidance": 2.5}
    assert gateway.records.headers[0]["fluxpool-tenant"] == b"acme"
    assert answer.headers["location"] == f"/ui/create?from={request_id}#tasks"
    # A second click is the same task; a changed form is another one.
    await visitor.post("/ui/create", prompt="a fox\r\nat dusk", **fields)
    assert len(gateway.records.values) == 1
    await visitor.post("/ui/create", prompt="a hare", **fields)
    assert len(gateway.records.values) == 2
    gateway.project(seen(request_id, "a fox at dusk", seed=5, width=512, height=768))
    again = await visitor.get(f"/ui/create?from={request_id}")
    assert "a fox at dusk</textarea>" in again.text
    assert 'name="seed" type="number" inputmode="numeric" min="0" max="4294967295" value=""' in again.text
    assert 'max="4294967295" value="5"' in (await visitor.get(f"/ui/create?from={request_id}&seed=1")).text


async def test_a_refused_field_is_named_beside_it_and_nothing_that_was_typed_is_lost(
    gateway: Gateway, visitor: Visitor
) -> None:
    answer = await visitor.post("/ui/create", prompt="a fox", width="500", height="512", steps="many", key="k")
    assert answer.status_code == 422
    assert re.search(r'id="width"[^>]* value="500" aria-invalid="true" aria-describedby="width-problem"', answer.text)
    assert "nearest legal sizes are 496 or 512" in text_of(answer)
    assert re.search(r'id="steps-problem">[^<]+', answer.text)
    assert "a fox</textarea>" in answer.text
    assert gateway.records.values == []


async def test_a_request_as_code_submits_nothing(gateway: Gateway, visitor: Visitor) -> None:
    answer = await visitor.post("/ui/create", prompt='it\'s a "fox"', width="512", height="512", key="k", show="code")
    assert answer.status_code == 200
    assert "FLUXPOOL_API_KEY" in text_of(answer)
    assert gateway.records.values == []


@pytest.mark.parametrize("prompt", ['it\'s a "fox"', "two\nlines", "back\\slash $HOME `id`", "\N{FOX FACE}", HOSTILE])
def test_code_to_copy_is_the_request_whatever_the_prompt(prompt: str) -> None:
    values = {"prompt": prompt, "width": "512", "height": "768", "seed": "7", "n": "2", "output_format": "webp"}
    body = CreateForm(values).body()
    target = RecordTarget(topic="tasks", request_id="r-1", tenant="acme")
    curl, python, openai, kafka = snippets(body, base="http://127.0.0.1:8000/", needs_key=True, target=target)
    words = shlex.split(curl.code.replace("\\\n", " "))
    sent = parse_request(words[words.index("--data-raw") + 1].encode())
    assert sent.model_dump(exclude_unset=True, mode="json") == body
    submitted: dict[str, Any] = {}
    call = re.search(r"client\.submit(\(.*\))\n", python.code)
    assert call is not None
    exec(f"submit{call[1]}", {"submit": lambda prompt, **more: submitted.update(more, prompt=prompt)})  # noqa: S102
    assert submitted == body
    asked: dict[str, Any] = {}
    call = re.search(r"client\.images\.generate(\(.*\))\n", openai.code)
    assert call is not None
    exec(f"generate{call[1]}", {"generate": lambda **more: asked.update(more)})  # noqa: S102
    native = {name: value for name, value in body.items() if name not in {"width", "height", "seed"}}
    assert asked == {**native, "model": "flux", "size": "512x768", "extra_body": {"seed": 7}}
    words = shlex.split(kafka.code.replace("\\\n", " "))
    headers = [words[number + 1].split("=", 1) for number, word in enumerate(words) if word == "-H"]
    decoded = decode_task(words[2].encode(), [(name, text.encode()) for name, text in headers])
    assert decoded.task.model_dump(exclude_unset=True, mode="json") == {**body, "request_id": "r-1"}
    assert (decoded.envelope.tenant, decoded.envelope.priority) == ("acme", "standard")
    for snippet in (python, openai):
        compile(snippet.code, snippet.name, "exec")


def test_a_task_of_any_producer_fills_the_form_with_what_the_form_has() -> None:
    task = {"prompt": "a fox", "width": 64, "seed": 3, "metadata": {"a": "b"}, "loras": [], "steps": None, "n": [1]}
    form = form_of_task(json.dumps(task), keep_seed=False)
    assert (form["prompt"], form["width"], form["height"], form["seed"], form["n"]) == ("a fox", "64", "1024", "", "1")
    assert form_of_task(json.dumps(task), keep_seed=True)["seed"] == "3"
    choices: tuple[Any, ...] = (None, [], {"sets": 7}, {"sets": None})
    for choice in choices:
        broken = json.dumps({**task, "preset": "final", "preset_choice": choice})
        assert form_of_task(broken, keep_seed=False) == replace(form, values={**form.values, "preset": "final"})


@pytest.mark.parametrize("name", ["final", "auto"])
def test_a_task_with_a_preset_fills_a_form_that_is_accepted_again(name: str) -> None:
    presets = Presets(presets={"final": Preset(steps=40)})

    def accept(body: dict[str, Any]) -> bytes:
        request = parse_request(json.dumps(body).encode())
        request, choice = presets.apply(request, "r-1", tenant="acme", check=lambda _: None)
        return render_task(request, "r-1", more={"preset_choice": choice.model_dump(exclude_none=True)})

    record = accept({"prompt": "a fox", "preset": name, "guidance": 2.5})
    again = form_of_task(record.decode(), keep_seed=False).body()
    assert again == {"prompt": "a fox", "preset": name, "width": 1024, "height": 1024, "guidance": 2.5, "preview": True}
    assert json.loads(accept(again))["steps"] == 40


async def test_a_task_has_its_parameters_its_time_and_its_marks(gateway: Gateway, visitor: Visitor) -> None:
    done = succeeded("done", "acme")
    result = json.loads(done.body)
    result["timings"] = {
        "queue_ms": 2000.0,
        "text_encode_ms": 500.0,
        "denoise_ms": 6000.0,
        "vae_ms": 1000.0,
        "store_ms": 250.0,
    }
    result["images"][0]["marks"] = ["xmp", "c2pa"]
    gateway.project(seen("done", steps=28), replace(done, body=json.dumps(result), completed_at_ms=NOW_MS - 50_000))
    text = text_of(await visitor.get("/ui/tasks/done"))
    assert "Steps 28" in text
    assert "XMP Content credentials Download" in text
    assert re.search(r"Queued 0 ms 2\.0 s +Encode 2\.0 s 500 ms +Steps 2\.5 s 6\.0 s +VAE 8\.5 s 1\.0 s", text)
    assert re.search(r"Stored 9\.5 s 250 ms +Published 10 s", text)


def test_a_waterfall_of_odd_timings_stays_within_its_width() -> None:
    view = TaskView.model_validate(
        {
            "request_id": "r", "status": "succeeded", "status_url": "http://gateway/",
            "created_at": "2026-01-01T00:00:01Z", "completed_at": "2026-01-01T00:00:00Z",
            "timings": {"queue_ms": -5.0, "denoise_ms": 1e9, "other": 3.0},
        }
    )  # fmt: skip
    bars = TaskCard(view=view, request={}, retriable=False).waterfall
    assert [bar.name for bar in bars] == ["Accepted", "Queued", "Steps", "Published"]
    assert all(0 <= bar.begin_share <= 1000 and 0 <= bar.begin_share + bar.share <= 1000.001 for bar in bars)


async def test_a_bulk_change_is_counted_first_and_each_outcome_is_told_after(
    gateway: Gateway, visitor: Visitor
) -> None:
    project_each(gateway)
    chosen = ["waits", "runs", "done", "nothing"]
    first = text_of(await visitor.post("/ui/queue/confirm", id=chosen, action="cancel-waiting"))
    assert "1 of 3 tasks is changed. 1 waiting 1 running 1 succeeded 1 not found" in first
    assert gateway.records.commands == []
    after = text_of(await visitor.post("/ui/queue/apply", id=chosen, action="cancel-waiting"))
    for words in ("1 of 4", "waits cancel requested", "runs keeps running", "done had ended already", "no such task"):
        assert words in after
    assert [key for key, _, _ in gateway.records.commands] == ["waits"]
    await visitor.post("/ui/queue/apply", action="cancel", all="1")
    assert sorted(key for key, _, _ in gateway.records.commands[1:]) == ["runs", "waits"]


async def test_a_bulk_retry_names_the_new_tasks_and_those_that_cannot_be(gateway: Gateway, visitor: Visitor) -> None:
    project_each(gateway)
    text = text_of(await visitor.post("/ui/queue/apply", id=["done", "waits"], action="retry"))
    (task,) = gateway.records.values
    assert f"done retried as {task['request_id']}" in text
    assert "task waits has not ended" in text


async def test_one_task_is_canceled_and_deleted_by_its_own_forms(gateway: Gateway, visitor: Visitor) -> None:
    project_each(gateway)
    assert (await visitor.post("/ui/tasks/waits/cancel")).headers["location"] == "/ui/tasks/waits"
    assert [key for key, _, _ in gateway.records.commands] == ["waits"]
    assert (await visitor.post("/ui/tasks/waits/delete")).status_code == 409
    gateway.records.on_deletion = lambda *_: None
    assert "Nothing brings it back" in text_of(await visitor.get("/ui/tasks/done/delete"))


async def test_lists_follow_the_filters_in_their_addresses_page_by_page(gateway: Gateway, visitor: Visitor) -> None:
    tasks = [seen(f"t-{number:02}", f"fox {number}", group_id="foxes") for number in range(60)]
    gateway.project(*tasks, seen("other", "a hare"))
    first = await visitor.get("/ui/queue?status=queued&group_id=foxes&created_after=&created_before=&cursor=")
    assert first.text.count('name="id"') == 50
    assert "a hare" not in first.text
    following = re.search(r'href="(/ui/queue\?[^"]*cursor=[^"]*)"', first.text)
    assert following is not None
    assert "group_id=foxes" in following[1]
    second = await visitor.get(following[1].replace("&amp;", "&"))
    assert second.text.count('name="id"') == 10
    assert "No tasks pass the filter" in text_of(await visitor.get("/ui/queue?status=failed"))
    assert (await visitor.get("/ui/queue?cursor=nonsense")).status_code == 422


async def test_events_of_the_page_are_those_of_the_sessions_tenant(gateway: Gateway, visitor: Visitor) -> None:
    project_each(gateway)
    cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
    answer = await asyncio.wait_for(first_event(gateway.one.app, "/ui/events", {"cookie": cookie}), 20)
    assert answer.status_code == 200
    assert "event: snapshot" in answer.text


def test_htmx_is_the_released_file() -> None:
    assert hashlib.sha256((FOLDER / HTMX).read_bytes()).hexdigest() == HTMX_SHA256


def test_all_that_a_view_loads_weighs_less_than_a_tenth_of_a_megabyte() -> None:
    assert sum(len(asset.compressed) for asset in assets().values()) < 60 * 1024
    assert {asset.name for asset in assets().values()} == {
        "gallery.js",
        "icon.svg",
        "judging.js",
        "page.css",
        "page.js",
        HTMX,
    }


async def test_assets_are_kept_for_good_under_the_hash_of_their_bytes(gateway: Gateway, visitor: Visitor) -> None:
    page = (await visitor.get("/ui/tasks")).text
    paths = re.findall(r'(?:src|href)="(/ui/static/[^"]+)"', page)
    assert len(set(paths)) == 4
    for path in paths:
        answer = await Visitor(gateway.one.app).get(path)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-encoding"] == "gzip"
        assert hashlib.sha256(answer.content).hexdigest().startswith(path.split("/")[3])
        assert "set-cookie" not in answer.headers
    assert (await visitor.get("/ui/static/0000000000000000/page.css")).status_code == 404


async def test_a_page_below_a_path_has_its_links_and_cookies_there(tmp_path: Path) -> None:
    settings = keyed_settings(tmp_path).model_copy(update={"public_url": "https://example.org/fluxpool/"})
    async with keyed_gateway(settings) as gateway:
        visitor = Visitor(gateway.one.app, base="https://example.org")
        page = (await visitor.get("/ui/login")).text
        assert 'action="/fluxpool/ui/login"' in page
        token = re.search(r'form_token" value="(\w+)"', page)
        assert token is not None
        cookies = (await visitor.get("/ui/login")).headers["set-cookie"]
        assert "Path=/fluxpool/;" in cookies
        assert "Secure" in cookies


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(None, "unknown"), (0.25, "250 ms"), (1.1, "1.1 s"), (42, "42 s"), (90, "1 min 30 s"), (7500, "2 h 5 min")],
)
def test_no_line_ends_between_a_number_and_its_unit(seconds: float | None, words: str) -> None:
    shown = show_duration(seconds)
    assert shown.replace("\xa0", " ") == words
    assert not re.search(r"\d [a-z]", shown)


def test_only_units_are_kept_with_their_number() -> None:
    text = "2 workers are ready; one takes about 4.0 s, in 50 % of 12 hours"
    assert keep_units(text) == "2 workers are ready; one takes about 4.0\xa0s, in 50\xa0% of 12 hours"
