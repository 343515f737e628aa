"""`python -m screenshots [FOLDER]`: takes the documentation's pictures of the page, desktop and phone, as WebP files.

The views are those of `LOG_IN` and `views`; a view that logs an error ends the run.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.async_api import Page

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from kit.brokers.kafka_cluster import KafkaCluster
from kit.http.browser import DESKTOP, PHONE, Scheme, Tab, opened_tab, running_browser
from screenshots.ground import Ground, prepared

PICTURES: Final = Path(__file__).parents[2] / "docs" / "pictures"
MAX_BYTES: Final = 60 * 1024
MAX_TOGETHER_BYTES: Final = 1024 * 1024
_QUALITIES: Final = (75, 60, 45, 35)
"""The first of them whose file is not larger than `MAX_BYTES`."""


async def _nothing(_page: Page) -> None:
    """The view as it opens."""


async def _choose_waiting(page: Page) -> None:
    for box in (await page.locator("tr:has(.status.queued) input[name=id]").all())[:3]:
        await box.check()


async def _try_patch(page: Page) -> None:
    await page.get_by_label("Patch for each task").fill('{"prompt": "a harbour at dusk, for a book", "steps": 20}')
    await page.get_by_role("button", name="Dry run").click()
    await page.get_by_role("heading", name="Dry run:").wait_for()


async def _open_endpoint(page: Page) -> None:
    await page.get_by_role("link", name="Asset library").click()
    await page.get_by_role("heading", name="Asset library").wait_for()


async def _show_pool(page: Page) -> None:
    await page.get_by_role("heading", name="flux-dev").wait_for()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One view, and what is done in it before its pictures are taken."""

    name: str
    path: str
    prepare: Callable[[Page], Awaitable[None]] = _nothing
    schemes: tuple[Scheme, ...] = ("light",)


LOG_IN: Final = View(name="login", path="login")


def views(ground: Ground) -> list[View]:
    """Every view of the page behind the log in."""
    one = ground.ended[0].request_id
    return [
        View(name="create", path=f"create?from={one}&seed=1", schemes=("light", "dark")),
        View(name="tasks", path="tasks"),
        View(name="task", path=f"tasks/{one}"),
        View(name="gallery", path="gallery", schemes=("light", "dark")),
        View(name="compare", path="compare"),
        View(name="results", path="compare/results"),
        View(name="queue", path="queue", prepare=_choose_waiting),
        View(name="pools", path="pools", prepare=_show_pool),
        View(name="dead-letters", path="dead-letters"),
        View(name="replay", path="dead-letters/edit?all=1&error_code=generation-failed", prepare=_try_patch),
        View(name="webhooks", path="webhooks", prepare=_open_endpoint),
        View(name="keys", path="keys"),
    ]


async def main(folder: Path) -> None:
    """Take all pictures into the folder, in place of those that are there."""
    with tempfile.TemporaryDirectory(prefix="fluxpool-screenshots-") as name:
        work = Path(name)
        async with (
            KafkaCluster(work / "kafka", libs=provide_kafka_libs()) as kafka,
            running_browser() as browser,
            prepared(kafka.bootstrap_servers, work) as ground,
            opened_tab(browser, ground.url) as tab,
        ):
            pictures = dict(await _take(tab, LOG_IN))
            await tab.log_in(ground.key)
            pictures |= {file: picture for view in views(ground) for file, picture in await _take(tab, view)}
            if tab.errors:
                raise SystemExit("\n".join(tab.errors))
    _write(folder, pictures)


async def _take(tab: Tab, view: View) -> list[tuple[str, bytes]]:
    taken = []
    for scheme in view.schemes:
        await tab.page.emulate_media(color_scheme=scheme)
        for device, (width, height) in (("desktop", DESKTOP), ("phone", PHONE)):
            await tab.page.set_viewport_size({"width": width, "height": height})
            await tab.open(f"ui/{view.path}")
            await tab.page.wait_for_function(_LOADED)
            await view.prepare(tab.page)
            await tab.page.wait_for_function(_LOADED)
            name = f"{view.name}-{device}{'-dark' if scheme == 'dark' else ''}.webp"
            taken.append((name, _compressed(await tab.page.screenshot())))
            print(f"{name}  {len(taken[-1][1]) / 1024:.1f} KiB", file=sys.stderr)
    return taken


_LOADED: Final = """() => document.readyState === "complete" && [...document.images].every(
  (image) => image.complete || image.getBoundingClientRect().top > innerHeight)"""


def _compressed(png: bytes) -> bytes:
    with Image.open(BytesIO(png)) as picture:
        for quality in _QUALITIES:
            stream = BytesIO()
            picture.convert("RGB").save(stream, "WEBP", quality=quality, method=6)
            if stream.tell() <= MAX_BYTES:
                return stream.getvalue()
    raise SystemExit(f"a picture is larger than {MAX_BYTES} bytes at quality {_QUALITIES[-1]}")


def _write(folder: Path, pictures: dict[str, bytes]) -> None:
    together = sum(map(len, pictures.values()))
    if together > MAX_TOGETHER_BYTES:
        raise SystemExit(f"the pictures have {together} bytes together, more than {MAX_TOGETHER_BYTES}")
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.webp"):
        old.unlink()
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
    print(f"{len(pictures)} pictures, {together / 1024:.0f} KiB, in {folder}")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES))
