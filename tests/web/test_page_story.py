"""The page on real parts: Chromium, a gateway with API keys, Kafka, and a worker with a stand-in engine.

One of each for all tests; tenants keep them apart. Tasks wait at a gate until the page has shown what it shall.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from fluxpool_gateway.identity.api_key import new_key
from kit.brokers.kafka import unique_name
from kit.faults.tcp_proxy import TcpProxy
from kit.http.browser import Tab, opened_tab, running_browser
from kit.waiting import PATIENCE, wait_until
from kit.workers.gate import Gate
from kit.workers.served_bench import gateway_beside, stand_in_bench
from kit.workers.worker import UNHURRIED

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420), pytest.mark.asyncio(loop_scope="module")]
expect.set_options(timeout=60_000 * PATIENCE)

PERSON = ("submit", "read", "cancel")


@dataclass(slots=True)
class World:
    """What the people of these tests work with."""

    browser: Browser
    url: str
    """Address of the gateway, ending in a slash."""
    admin: str

    async def key(self, tenant: str, *scopes: str) -> str:
        """A new key of that tenant."""
        body = {"name": "story", "tenant": tenant, "scopes": scopes or PERSON}
        async with httpx.AsyncClient(base_url=self.url, headers={"authorization": f"Bearer {self.admin}"}) as client:
            answer = await client.post("v1/keys", json=body, timeout=60)
        assert answer.status_code == httpx.codes.CREATED, answer.text
        return str(answer.json()["key"])

    @asynccontextmanager
    async def person(self, tenant: str, *scopes: str) -> AsyncIterator[Tab]:
        """Somebody of a tenant who has logged in; at the end, the page has complained about nothing."""
        async with opened_tab(self.browser, self.url) as tab:
            await tab.log_in(await self.key(tenant, *scopes))
            yield tab
            assert tab.errors == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with running_browser() as browser:
        folder: Path = tmp_path_factory.mktemp("page")
        key_file = folder / "first-key"
        key_file.write_text(new_key())
        async with stand_in_bench(bootstrap_servers, folder) as bench:
            worker = bench.start(**UNHURRIED)
            with gateway_beside(bench, folder, bootstrap_key_file=key_file) as gateway:
                await worker.wait_ready()
                yield World(browser, gateway.url, key_file.read_text())


@pytest.fixture
def tenant() -> str:
    return unique_name("tenant")


async def create(tab: Tab, prompt: str, **fields: str) -> Locator:
    """Send a task by the form; returns its card."""
    page = tab.page
    await page.get_by_label("Prompt", exact=True).fill(prompt)
    for label, value in {"Width": "64", "Height": "64", "Steps": "8", **fields}.items():
        await page.get_by_label(label, exact=True).fill(value)
    await page.get_by_role("button", name="Create", exact=True).click()
    await page.wait_for_url("**/ui/create?from=*")
    return page.locator("li.task", has=page.get_by_role("link", name=prompt, exact=True))


async def test_a_task_is_followed_over_a_reload_to_its_image_and_another_is_canceled_as_it_runs(
    world: World, tenant: str
) -> None:
    async with world.person(tenant) as tab:
        with Gate() as gate:
            card = await create(tab, f"a fox {gate.prompt}")
            await expect(card).to_contain_text("Running")
            await expect(card).to_contain_text("step 1 of 8")
            await tab.page.reload()
            await expect(card).to_contain_text("step 1 of 8")
            await expect(card.get_by_role("progressbar")).to_have_js_property("value", 12)
        await expect(card).to_contain_text("Succeeded")
        await expect(tab.page.locator("#announcements")).to_have_text("A task succeeded.")
        await expect(card.locator("img")).to_have_js_property("naturalWidth", 64)

        with Gate() as gate:
            card = await create(tab, f"a hare {gate.prompt}")
            await expect(card).to_contain_text("step 1 of 8")
            await card.get_by_role("button", name="Cancel").click()
            await expect(card).to_contain_text("Canceled")
        await card.get_by_role("link").click()
        await expect(tab.page.get_by_role("main")).to_contain_text("canceled by API key")
        await tab.page.get_by_role("button", name="Retry").click()
        await expect(tab.page.get_by_role("main")).to_contain_text("Retry of")
        await expect(tab.page.get_by_role("main")).to_contain_text("Succeeded")
        await expect(tab.page.get_by_role("table")).to_contain_text("Published")


async def test_waiting_tasks_are_canceled_at_once_while_the_one_that_runs_is_kept(world: World, tenant: str) -> None:
    async with world.person(tenant) as tab:
        page = tab.page
        with Gate() as gate:
            runs = await create(tab, f"a fox {gate.prompt}")
            await expect(runs).to_contain_text("step 1 of 8")
            for number in range(3):
                waits = await create(tab, f"a hare {number}")
                await expect(waits).to_contain_text("Waiting")
            await page.get_by_role("link", name="Queue").click()
            await page.get_by_label("Choose all on this page").check()
            await expect(page.get_by_text("4 chosen")).to_be_visible()
            await page.get_by_role("button", name="Cancel waiting, keep running …").click()
            await expect(page.get_by_role("main")).to_contain_text("3 of 4 tasks are changed")
            await page.get_by_role("button", name="Cancel waiting, keep running: 3").click()
            await expect(page.get_by_role("heading", name="Cancel waiting, keep running: 3 of 4")).to_be_visible()
            await expect(page.get_by_role("cell", name="cancel requested")).to_have_count(3)
            await expect(page.get_by_role("cell", name="keeps running")).to_have_count(1)
            await page.get_by_role("link", name="Tasks").click()
            await expect(runs).to_contain_text("step 1 of 8")
        await expect(runs).to_contain_text("Succeeded")
        await expect(page.locator("li.task[data-status=canceled]")).to_have_count(3)


async def test_two_tenants_do_not_see_each_other(world: World) -> None:
    async with world.person(unique_name("left")) as left, world.person(unique_name("right")) as right:
        mine = await create(left, "a fox")
        await expect(mine).to_contain_text("Succeeded")
        await mine.get_by_role("link").first.click()
        await left.page.wait_for_url("**/ui/tasks/*")
        path = urlsplit(left.page.url).path
        await right.open("ui/create")
        theirs = await create(right, "a hare")
        # The events of both tasks have passed by now.
        await expect(theirs).to_contain_text("Succeeded")
        for view in ("tasks", "gallery", "queue"):
            shown = (await right.open(f"ui/{view}")).get_by_role("main")
            await expect(shown).to_contain_text("a hare")
            await expect(shown).not_to_contain_text("a fox")
        # Asked for beside the view: a browser logs an address that is answered with 404.
        for address in (path, f"{path}/images/0"):
            assert (await left.page.request.get(world.url[:-1] + address)).status == 200
            assert (await right.page.request.get(world.url[:-1] + address)).status == 404


async def test_a_dead_letter_is_edited_tried_and_replayed_to_its_image(world: World, tenant: str) -> None:
    async with world.person(tenant, *PERSON, "admin") as tab:
        page = tab.page
        card = await create(tab, "a fox ends=error")
        await expect(card).to_contain_text("Failed")
        request_id = await card.get_attribute("data-task")
        await tab.open(f"ui/dead-letters?request_id={request_id}")
        # Dead letters are read from a topic of their own, beside the results.
        await wait_until(lambda: shown_again(page, "1 dead letter"), deadline_seconds=60, what="the dead letter")
        await page.get_by_role("link", name="Sample of generation-failed").click()
        await expect(page.get_by_role("main")).to_contain_text("told to fail")
        await page.get_by_role("link", name="Edit and replay …").click()
        await page.get_by_label("Patch for each task").fill('{"width": 1000}')
        await page.get_by_role("button", name="Dry run").click()
        await expect(page.get_by_role("heading", name="Dry run: 0 would be sent, 1 refused")).to_be_visible()
        await page.get_by_label("Patch for each task").fill('{"prompt": "a fox", "width": 96}')
        await page.get_by_role("button", name="Dry run").click()
        await expect(page.get_by_role("heading", name="Dry run: 1 would be sent, 0 refused")).to_be_visible()
        await page.get_by_role("button", name="Replay 1").click()
        await expect(page.get_by_role("heading", name="Replay: 1 of 1 sent")).to_be_visible()
        await tab.open(f"ui/tasks/{request_id}")
        await expect(page.get_by_role("main")).to_contain_text("Succeeded")
        await expect(page.locator("figure img")).to_have_js_property("naturalWidth", 96)


async def shown_again(page: Page, text: str) -> bool:
    """Whether the view has this text after a reload."""
    await page.reload()
    return text in await page.get_by_role("main").inner_text()


async def test_two_images_of_one_prompt_are_judged_blind_by_a_key_and_rated_and_the_win_rates_show_both(
    world: World, tenant: str
) -> None:
    async with world.person(tenant, *PERSON, "rate") as tab:
        page, main = tab.page, tab.page.get_by_role("main")
        for steps in ("8", "12"):
            await create(tab, "an owl", Steps=steps)
        await expect(page.locator("li.task[data-status=succeeded]")).to_have_count(2)
        await tab.open("ui/compare")
        await expect(page.get_by_role("heading", name="Which is better for “an owl”?")).to_be_visible()
        for side in "AB":
            await expect(page.get_by_role("img", name=f"Image {side}")).to_have_js_property("naturalWidth", 64)
        await expect(main).not_to_contain_text(re.compile(r"\d steps"))
        await page.keyboard.press("1")
        told = page.locator("#round")
        await expect(told).to_contain_text("Last time A was better.")
        await expect(main).to_contain_text("No pair is left to judge.")
        made = re.search(r"A: .*?(\d+) steps.* B: .*?(\d+) steps", await told.inner_text())
        assert made is not None
        better, worse = made.groups()
        assert {better, worse} == {"8", "12"}

        await tab.open("ui/tasks")
        await page.locator("li.task").first.get_by_role("link").first.click()
        await page.wait_for_url("**/ui/tasks/*")
        await page.keyboard.press("4")
        await expect(page.locator("#announcements")).to_have_text("Rated 4 of 5.")
        await main.get_by_role("button", name="Star").click()
        await expect(page.locator("#announcements")).to_have_text("Starred.")
        await page.reload()
        await expect(main.get_by_role("radio", name="4 of 5")).to_be_checked()
        await expect(main.get_by_role("button", name="Star")).to_have_attribute("aria-pressed", "true")
        await tab.open("ui/gallery?starred=true")
        await wait_until(lambda: shown_again(page, "an owl"), deadline_seconds=60, what="the star in the search")
        await expect(page.locator("[data-tile]")).to_have_count(1)

        await tab.open("ui/compare/results?by=steps")
        # Judgements are read from a topic of their own, beside the results.
        await wait_until(
            lambda: shown_again(page, "1 comparison and 1 score "), deadline_seconds=60, what="the judgements"
        )
        rows = page.get_by_role("table").locator("tbody tr")
        await expect(rows).to_have_count(2)
        await expect(rows.nth(0)).to_contain_text(re.compile(rf"{better}\s+100\s%\s+1, 0, 0"))
        await expect(rows.nth(1)).to_contain_text(re.compile(rf"{worse}\s+0\s%\s+0, 1, 0"))
        await expect(page.get_by_role("cell", name="4.0 of 1")).to_be_visible()


async def test_a_lost_connection_is_made_again_and_shows_what_was_missed(world: World, tenant: str) -> None:
    port = urlsplit(world.url).port
    assert port is not None
    async with TcpProxy(port) as link, opened_tab(world.browser, f"http://127.0.0.1:{link.port}/") as tab:
        await tab.log_in(await world.key(tenant))
        with Gate() as gate:
            card = await create(tab, f"a fox {gate.prompt}")
            await expect(card).to_contain_text("step 1 of 8")
            await link.refuse()
            await expect(tab.page.get_by_role("status").get_by_text("Connecting again …")).to_be_visible()
        async with world.person(tenant) as other:
            await other.open("ui/tasks")
            await expect(other.page.locator("li.task")).to_contain_text("Succeeded")
        await link.pass_all()
        await expect(card).to_contain_text("Succeeded")
        await expect(tab.page.get_by_text("Connecting again …")).to_have_count(0)
        # The browser logs lost connections, and htmx that it could not ask for the estimate.
        assert [error for error in tab.errors if not re.search("net::ERR_|htmx:", error)] == []
