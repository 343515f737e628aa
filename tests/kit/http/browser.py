"""A real browser for tests of the page: Chromium without a window, driven by Playwright.

`hack/browser/provide` finds or installs it. Errors that a view logs, among them violations of its content policy, and
findings of axe-core are for tests to look at.
"""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

import pytest
from playwright.async_api import Browser, ConsoleMessage, Error, Page, async_playwright

from kit.waiting import PATIENCE

_PROVIDE: Final = Path(__file__).parents[3] / "hack" / "browser" / "provide"
_ACTION_SECONDS: Final = 60.0
DESKTOP: Final = (1280, 900)
PHONE: Final = (390, 844)
_AXE: Final = "axe_playwright_python"
Scheme = Literal["light", "dark"]
# Live parts are replaced while axe-core looks at them: what it says of an element that is gone by then is of no view.
_FIND: Final = """async () => (await axe.run({ elementRef: true })).violations.flatMap(({ id, help, nodes }) => nodes
  .filter((node) => node.element.isConnected)
  .map((node) => `${id}: ${help}: ${node.html}: ${node.failureSummary}`))"""


def provided_browser() -> str:
    """Path of the browser.

    Skips the test where there is none and it cannot be installed; with TEST_REQUIRE_BROWSER=1 the test fails instead.
    """
    provided = subprocess.run([_PROVIDE], capture_output=True, text=True, check=False)
    if provided.returncode == 0:
        return provided.stdout.strip()
    if os.environ.get("TEST_REQUIRE_BROWSER") == "1":
        pytest.fail(f"TEST_REQUIRE_BROWSER=1, but {provided.stderr}")
    pytest.skip(provided.stderr)


@asynccontextmanager
async def running_browser() -> AsyncIterator[Browser]:
    """Run a browser for a block."""
    path = provided_browser()
    # Root has no sandbox for it; what it opens are the tests' own pages.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*arguments, "--disable-gpu"])
        try:
            yield browser
        finally:
            await browser.close()


@dataclass(slots=True)
class Tab:
    """One person at the page: a profile of its own, with one tab."""

    page: Page
    base: str
    """Address of the gateway, ending in a slash."""
    errors: list[str] = field(default_factory=list)
    """What the page logged as an error, or failed with."""

    async def open(self, path: str = "") -> Page:
        """Show the view at a path below the gateway's address."""
        await self.page.goto(self.base + path)
        return self.page

    async def log_in(self, key: str) -> None:
        """Log in by the form."""
        await self.open()
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Log in").click()
        await self.page.wait_for_url("**/ui/create")

    async def findings(self, scheme: Scheme) -> list[str]:
        """What axe-core finds in the view as it is shown in a colour scheme."""
        await self.page.emulate_media(color_scheme=scheme)
        if not await self.page.evaluate("'axe' in window"):
            await self.page.evaluate(files(_AXE).joinpath("axe.min.js").read_text(encoding="utf-8"))
        found: list[str] = await self.page.evaluate(_FIND)
        return [f"{self.page.url} ({scheme}): {finding}" for finding in found]


@asynccontextmanager
async def opened_tab(browser: Browser, base: str, *, scripts: bool = True) -> AsyncIterator[Tab]:
    """A new profile for a block."""
    width, height = DESKTOP
    context = await browser.new_context(
        viewport={"width": width, "height": height}, java_script_enabled=scripts, reduced_motion="reduce"
    )
    context.set_default_timeout(_ACTION_SECONDS * 1000 * PATIENCE)
    page = await context.new_page()
    tab = Tab(page, base)

    def on_console(message: ConsoleMessage) -> None:
        # A violation of the content security policy is one as well.
        if message.type == "error":
            tab.errors.append(f"{page.url}: {message.text} {message.location}")

    def on_error(error: Error) -> None:
        tab.errors.append(f"{page.url}: {error}")

    page.on("console", on_console)
    page.on("pageerror", on_error)
    try:
        yield tab
    finally:
        await context.close()
