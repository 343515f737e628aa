"""The page in a real browser, on the real application over real stores. What happens is projected, without Kafka."""

import asyncio
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn
from PIL import Image
from playwright.async_api import Browser, expect

from fluxpool_contract.messages import PoolLane, PoolState, Preview
from fluxpool_gateway.live.previews import TaskPreviews
from fluxpool_gateway.store.task_state import ProgressSeen, TaskKey, TaskSeen, TaskStatus
from kit.gateways.dead_letter_topic import letter_at
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings, succeeded
from kit.http.browser import DESKTOP, PHONE, Tab, opened_tab, running_browser
from kit.http.token_issuer import CLIENT, Issuer
from kit.ports import own_port
from kit.scaling.lag_readings import GROUPS, STANDARD, lag, partition
from kit.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.timeout(420), pytest.mark.asyncio(loop_scope="module")]
expect.set_options(timeout=60_000 * PATIENCE)

VIEWS = (
    "create?from=done", "tasks", "tasks/done", "tasks/done/delete", "tasks/runs", "gallery", "gallery?task=done",
    "compare", "compare?mode=slider", "compare/results", "queue",
)  # fmt: skip
IS_CUT = """(() => {
  const reason = document.querySelector("#why-waits span");
  return reason.scrollHeight > reason.clientHeight + 1;
})()"""


@asynccontextmanager
async def served(gateway: Gateway) -> AsyncIterator[str]:
    """The first replica behind a socket; yields its address."""
    port = own_port()
    app = gateway.one.app
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started, deadline_seconds=30, what="the server to listen")
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.state.services.stopping.set()
        server.should_exit = True
        await serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with running_browser() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def tab(gateway: Gateway, browser: Browser) -> AsyncIterator[Tab]:
    async with served(gateway) as base, opened_tab(browser, base) as opened:
        yield opened


def seen(request_id: str, prompt: str) -> TaskSeen:
    body = f'{{"request_id":"{request_id}","prompt":"{prompt}","width":64,"height":64,"steps":8,"preview":true}}'
    return TaskSeen(request_id=request_id, body=body, priority="standard", tenant="acme", created_at_ms=NOW_MS)


def step(request_id: str, number: int) -> ProgressSeen:
    return ProgressSeen(
        request_id=request_id, status=TaskStatus.RUNNING, at_ms=NOW_MS + number, started=number == 1, tenant="acme",
        step=number, total_steps=8,
    )  # fmt: skip


def store_image(folder: Path, request_id: str) -> None:
    file = folder / "images" / "acme" / "2026" / "04" / "05" / request_id / "0.png"
    file.parent.mkdir(parents=True)
    stream = BytesIO()
    Image.new("RGB", (64, 64), "teal").save(stream, "PNG")
    file.write_bytes(stream.getvalue())


def show_preview(gateway: Gateway, request_id: str) -> None:
    """As the reader of the progress topic does."""
    stream = BytesIO()
    Image.new("RGB", (32, 32), "teal").save(stream, "WEBP")
    preview = Preview(content_type="image/webp", data=b64encode(stream.getvalue()).decode(), index=0)
    previews: TaskPreviews = gateway.one.app.state.services.previews
    previews.show(TaskKey(request_id, "acme"), preview, attempt=1, step=5, total_steps=8)


def explain_wait(gateway: Gateway, reason: str) -> None:
    """As the readers of the lanes and of the pools' states do."""
    lanes = gateway.one.app.state.services.lanes
    lane = PoolLane(name="standard", topic=STANDARD, consumer_group=GROUPS[STANDARD])
    state = PoolState(
        namespace="images", pool="flux", lanes=(lane,), desired_replicas=2, ready_replicas=2, starting_replicas=0,
        min_replicas=0, max_replicas=2, constraint="quota", reason=reason, decided_at=datetime.now(UTC),
    )  # fmt: skip
    lanes.pools.take(state.key.encode(), state.to_json(), written_at=gateway.clock.now_ms / 1000)
    lanes.observe(lag(partition(0, 0, 5), partition(1, 0, 7)), gateway.clock.monotonic())


async def test_a_task_is_created_followed_over_a_reload_canceled_and_seen_to_its_image(
    gateway: Gateway, tab: Tab, tmp_path: Path
) -> None:
    await tab.log_in(await gateway.create("submit", "read", "cancel", tenant="acme"))
    page = tab.page
    await page.get_by_label("Prompt", exact=True).fill("a fox")
    await page.get_by_label("Width").fill("70")
    await page.get_by_label("Height").fill("64")
    await expect(page.get_by_label("Width")).to_have_value("64")
    await page.get_by_role("button", name="Create", exact=True).click()
    await page.wait_for_url("**/ui/create?from=*")
    (task,) = gateway.records.values
    assert (task["prompt"], task["width"], task["preview"]) == ("a fox", 64, True)
    # What is typed outlives the settings of another task.
    await page.get_by_label("Prompt", exact=True).fill("a hare")
    await page.get_by_label("Steps").fill("9")
    request_id = task["request_id"]
    gateway.project(seen(request_id, "a fox"))
    card = page.locator("li.task")
    await expect(card).to_contain_text("Waiting")
    gateway.project(step(request_id, 1))
    await expect(card).to_contain_text("step 1 of 8")
    await page.reload()
    await expect(card).to_contain_text("step 1 of 8")
    await expect(page.get_by_text("You were writing")).to_contain_text("a hare")
    await page.get_by_role("button", name="Put the prompt back").click()
    await expect(page.get_by_label("Prompt", exact=True)).to_have_value("a hare")
    await expect(page.get_by_label("Steps")).to_have_value("8")
    gateway.project(step(request_id, 5))
    await expect(card).to_contain_text("step 5 of 8")
    show_preview(gateway, request_id)
    await expect(card.get_by_role("img", name="Preview after step 5")).to_be_visible()
    gateway.project(step(request_id, 6))
    await expect(card).to_contain_text("step 6 of 8")
    await expect(card.get_by_role("img", name="Preview after step 5")).to_have_js_property("width", 32)
    await page.reload()
    await expect(card.get_by_role("img", name="Preview after step 5")).to_have_js_property("width", 32)
    await expect(card.locator("[data-since]")).to_contain_text("for ")
    await card.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#announcements")).to_have_text("Cancel requested.")
    assert [key for key, _, _ in gateway.records.commands] == [request_id]
    # Its images were ready before.
    store_image(tmp_path, request_id)
    gateway.project(replace(succeeded(request_id, "acme"), completed_at_ms=NOW_MS + 9))
    await expect(card).to_contain_text("Succeeded")
    await expect(card.locator("img")).to_have_js_property("naturalWidth", 64)
    assert tab.errors == []


async def test_axe_finds_nothing_in_any_view_light_or_dark_and_none_is_wider_than_a_phone(
    gateway: Gateway, tab: Tab, tmp_path: Path
) -> None:
    await tab.open()
    findings = [*await tab.findings("light"), *await tab.findings("dark")]
    # Of a preset that the gateway does not have: the form says so.
    key = await gateway.create("submit", "read", "cancel", "rate", tenant="acme", presets=["gone"])
    await tab.log_in(key)
    gateway.project(seen("waits", "a hare"), seen("runs", "a fox"), step("runs", 3))
    for name in ("done", "again", "third"):
        store_image(tmp_path, name)
        gateway.project(seen(name, "an owl"), replace(succeeded(name, "acme"), completed_at_ms=NOW_MS + 1))
    judged = {"a": {"request_id": "done"}, "b": {"request_id": "again"}, "preferred": "a"}
    assert (await gateway.one.ask("POST", "/v1/comparisons", key, json=judged)).status_code == 201
    await gateway.project_feedback()
    for path in VIEWS:
        await tab.open(f"ui/{path}")
        findings += [*await tab.findings("light"), *await tab.findings("dark")]
        for width, height in (PHONE, DESKTOP):
            await tab.page.set_viewport_size({"width": width, "height": height})
            assert await tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
    await tab.page.get_by_label("Choose all on this page").check()
    await tab.page.get_by_role("button", name="Cancel …", exact=True).click()
    await expect(tab.page.get_by_role("main")).to_contain_text("2 of 5 tasks are changed")
    findings += [*await tab.findings("light"), *await tab.findings("dark")]
    await tab.page.get_by_role("button", name="Cancel: 2").click()
    await expect(tab.page.get_by_role("heading", name="Cancel: 2 of 5")).to_be_visible()
    findings += [*await tab.findings("light"), *await tab.findings("dark")]
    await tab.open("ui/create?from=done")
    await tab.page.get_by_role("button", name="Show as code").click()
    await expect(tab.page.locator("#code-openai")).to_contain_text("images.generate")
    findings += [*await tab.findings("light"), *await tab.findings("dark")]
    assert findings == []
    assert tab.errors == []


async def test_axe_finds_nothing_in_the_views_of_operators_and_a_dead_letter_is_edited_by_keyboard(
    gateway: Gateway, tab: Tab
) -> None:
    await tab.log_in(gateway.admin)
    gateway.dead_letters.add(letter_at(0), letter_at(1), letter_at(2, b"\xff", error_code="undecodable", stack="Trace"))
    page, found = tab.page, []

    async def look(path: str) -> None:
        await tab.open(f"ui/{path}")
        found.extend([*await tab.findings("light"), *await tab.findings("dark")])
        for width, height in (PHONE, DESKTOP):
            await page.set_viewport_size({"width": width, "height": height})
            assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)

    for path in ("pools", "webhooks", "keys", "dead-letters", "dead-letters/0/2", "dead-letters/discard?all=1"):
        await look(path)
    await tab.open("ui/webhooks")
    await page.get_by_role("textbox", name="Name").fill("page")
    await page.get_by_label("Address").fill("https://example.com/hooks")
    await page.get_by_role("button", name="Create endpoint").press("Enter")
    await expect(page.locator("#secret")).to_contain_text("whsec_")
    found += [*await tab.findings("light"), *await tab.findings("dark")]
    await page.get_by_role("button", name="Send a test").press("Enter")
    await expect(page.locator("#delivery")).to_contain_text("Not attempted yet")
    found += [*await tab.findings("light"), *await tab.findings("dark")]
    await tab.open("ui/keys")
    await page.get_by_label("Name").fill("ci")
    limit = page.get_by_label("Tasks at most")
    await limit.fill("often")
    await limit.press("Enter")
    await expect(limit).to_have_accessible_description(re.compile("second"))
    found += [*await tab.findings("light"), *await tab.findings("dark")]
    await limit.fill("5/second")
    await page.get_by_role("button", name="Create key").press("Enter")
    await expect(page.locator("#secret")).to_contain_text("fp_")
    found += [*await tab.findings("light"), *await tab.findings("dark")]
    await tab.open("ui/dead-letters")
    await page.get_by_label("Choose 0/0").press("Space")
    await page.get_by_role("button", name="Edit and replay …", exact=True).press("Enter")
    await page.get_by_label("Patch for each task").fill('{"width": 96}')
    await page.get_by_role("button", name="Dry run").press("Enter")
    await expect(page.locator("#dry-run")).to_contain_text("1 would be sent, 0 refused")
    found += [*await tab.findings("light"), *await tab.findings("dark")]
    await page.get_by_role("button", name="Replay 1").press("Enter")
    await expect(page.locator("#job")).to_contain_text("not yet")
    found += [*await tab.findings("light"), *await tab.findings("dark")]
    work = asyncio.create_task(gateway.one.dead_letters.runner.run())
    try:
        await expect(page.locator("#announcements")).to_have_text("1 of 1 were sent again.")
        await expect(page.locator("#job")).to_contain_text("Sent again")
    finally:
        work.cancel()
        await asyncio.wait({work})
    assert len(gateway.dead_letters.sent) == 1
    await look("dead-letters/replays")
    await page.get_by_role("row", name="Ended").get_by_role("link").press("Enter")
    await expect(page.get_by_role("heading", name="Replay: 1 of 1 sent")).to_be_visible()
    assert found == []
    # The browser logs the status of the form that was refused.
    assert [error for error in tab.errors if "422" not in error] == []


async def test_a_person_logs_in_at_an_issuer_on_another_site_and_stays_in(browser: Browser, tmp_path: Path) -> None:
    async with Issuer(host="localhost").serving() as issuer:
        oidc = issuer.settings(client_id=CLIENT)
        async with (
            keyed_gateway(keyed_settings(tmp_path).model_copy(update={"oidc": oidc})) as gateway,
            served(gateway) as base,
            opened_tab(browser, base) as tab,
        ):
            page = await tab.open("ui/queue")
            findings = [*await tab.findings("light"), *await tab.findings("dark")]
            await page.get_by_role("link", name="Log in with localhost").click()
            await page.get_by_role("button", name="Log in as alice").click()
            await page.wait_for_url(base + "ui/queue")
            await expect(page.get_by_role("banner")).to_contain_text("acme")
            await page.get_by_role("button", name="Log out").click()
            await page.wait_for_url("**/ui/login")
            await tab.open("ui/login/callback?state=x")
            await expect(page.get_by_role("alert")).to_contain_text("not begun in this browser")
            findings += await tab.findings("light")
            assert findings == []
            # The browser logs the status of the last view, and that the issuer has no icon.
            assert [error for error in tab.errors if error.startswith(base) and "400" not in error] == []


async def test_on_a_phone_the_current_view_is_in_sight_and_a_long_reason_is_opened_by_keyboard(
    gateway: Gateway, tab: Tab
) -> None:
    await tab.log_in(gateway.admin)
    page = tab.page
    await page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    await tab.open("ui/keys")
    await expect(page.locator(".top nav [aria-current]")).to_be_in_viewport(ratio=1)
    gateway.project(replace(seen("waits", "a hare"), tenant="default"))
    explain_wait(gateway, "The lag is 24. " + "The quota of accelerators holds the pool at two replicas. " * 5)
    await tab.open("ui/tasks")
    why, summary = page.locator("#why-waits"), page.locator("#summary-waits")
    await expect(why).to_contain_text("holds the pool")
    # In one turn of the page: between two calls of a locator the list may be fetched again, and an element that is gone
    # has no height.
    await page.wait_for_function(IS_CUT)
    findings = [*await tab.findings("light"), *await tab.findings("dark")]
    await summary.press("Enter")
    await page.wait_for_function(f"document.querySelector('#why-waits').open && !{IS_CUT}")
    findings += [*await tab.findings("light"), *await tab.findings("dark")]
    # A list that was fetched again keeps what was opened, and the focus.
    gateway.project(replace(seen("later", "a fox"), tenant="default"))
    await expect(page.locator("li.task")).to_have_count(2)
    await expect(why).to_have_attribute("open", "")
    await expect(summary).to_be_focused()
    assert findings == []
    assert tab.errors == []


async def test_a_form_that_is_fetched_is_bound_before_it_can_be_sent(
    gateway: Gateway, tab: Tab, tmp_path: Path
) -> None:
    store_image(tmp_path, "one")
    gateway.project(seen("one", "an owl"), replace(succeeded("one", "acme"), completed_at_ms=NOW_MS + 1))
    await tab.log_in(await gateway.create("read", "rate", tenant="acme"))
    page = await tab.open("ui/gallery")
    # An observer is called before any timer and any key: this is the earliest moment at which somebody can press one.
    await page.evaluate(
        """new MutationObserver((changes, observer) => {
          const star = document.querySelector("#drawer input[name=score][value='4']");
          if (!star) return;
          observer.disconnect();
          star.click();
        }).observe(document.getElementById("gallery"), { childList: true, subtree: true })"""
    )
    await page.locator("[data-tile]").get_by_role("link").click()
    await expect(page.get_by_text("4 of 5", exact=True)).to_be_visible()
    assert page.url.endswith("/ui/gallery?task=one")
    await expect(page.locator("#announcements")).to_have_text("Rated 4 of 5.")
    assert tab.errors == []


async def test_images_are_searched_rated_starred_and_compared_by_keys(
    gateway: Gateway, tab: Tab, tmp_path: Path
) -> None:
    for name in ("one", "two", "other"):
        store_image(tmp_path, name)
        prompt = "a hare" if name == "other" else "an owl"
        gateway.project(seen(name, prompt), replace(succeeded(name, "acme"), completed_at_ms=NOW_MS + 1))
    await tab.log_in(await gateway.create("read", "rate", tenant="acme"))
    page, said = await tab.open("ui/gallery"), tab.page.locator("#announcements")
    await page.get_by_label("Prompt contains").fill("OWL")
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/ui/gallery?prompt=OWL*")
    tiles, drawer = page.locator("[data-tile]"), page.locator("#drawer")
    await expect(tiles).to_have_count(2)
    await tiles.first.get_by_role("link").click()
    await page.wait_for_url("**task=two")
    await expect(drawer.get_by_role("heading", name="an owl")).to_be_focused()
    await page.keyboard.press("4")
    await expect(said).to_have_text("Rated 4 of 5.")
    await drawer.get_by_role("button", name="Star").click()
    await expect(said).to_have_text("Starred.")
    await expect(tiles.first.get_by_role("button", name="Star")).to_have_attribute("aria-pressed", "true")
    await page.keyboard.press("ArrowRight")
    await page.wait_for_url("**task=one")
    await expect(drawer).to_contain_text("not rated")
    await page.reload()
    await expect(drawer).to_contain_text("not rated")
    await page.go_back()
    await expect(drawer).to_contain_text("4 of 5")
    await page.keyboard.press("Escape")
    await expect(drawer).to_be_hidden()
    await expect(tiles.first.get_by_role("link")).to_be_focused()
    await gateway.project_feedback()
    await tab.open("ui/gallery?starred=true&min_score=4")
    await expect(tiles).to_have_count(1)
    await tab.open("ui/compare")
    await page.keyboard.press("m")
    await page.wait_for_url("**mode=slider*")
    await page.get_by_label("A on the left").fill("20")
    assert await page.evaluate("document.querySelector('[data-slider]').style.getPropertyValue('--cut')") == "20%"
    await page.keyboard.press("2")
    await expect(page.locator("#round")).to_contain_text("1 judged")
    await expect(page.locator("#round")).to_contain_text("B was better")
    await page.keyboard.press("u")
    await expect(page.locator("#round")).to_contain_text("0 judged")
    await page.keyboard.press("1")
    await expect(page.locator("#round")).to_contain_text("1 judged")
    assert tab.errors == []
    outcomes = [value and b"preferred" in value for _, _, value in gateway.records.feedback[2:]]
    assert outcomes == [True, None, True]
