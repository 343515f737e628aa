"""What a demo shows: its time while the stack starts, and the contact sheet at its end."""

import asyncio
import contextlib
import time
from pathlib import Path

from fluxpool_cli.local.demo.contact_sheet import write_contact_sheet
from fluxpool_cli.local.demo.demo import show_time
from fluxpool_cli.watch.display import Displayed, LiveDisplay
from fluxpool_contract.messages import GenerationResult, ImageDescription, ResultStatus


def result(request_id: str, *images: ImageDescription) -> GenerationResult:
    status = ResultStatus.SUCCESS if images else ResultStatus.FAILED
    return GenerationResult(
        request_id=request_id, image_url=None, status=status, images=images, steps=4, model="/m/tiny"
    )


def image(name: str, seed: int) -> ImageDescription:
    return ImageDescription(
        index=0, url="http://images/0", object=name, width=64, height=48, seed=seed, format="png",
        content_type="image/png", bytes=1, sha256="0" * 64,
    )  # fmt: skip


def test_a_contact_sheet_has_each_picture_with_prompt_and_seed_in_the_order_of_the_requests(tmp_path: Path) -> None:
    submitted = {"one": {"prompt": 'a <b>fox</b> & "friends"'}, "two": {"prompt": "an owl"}, "none": {"prompt": "lost"}}
    results = [result("none"), result("two", image("a #1/0.png", 8)), result("one", image("b/0.png", 7))]
    file = write_contact_sheet(tmp_path, submitted, results=results, images=tmp_path / "images")
    assert file == tmp_path / "contact-sheet.html"
    sheet = file.read_text()
    assert "2 pictures of tiny" in sheet
    assert '<img src="images/b/0.png" alt="a &lt;b&gt;fox&lt;/b&gt; &amp; &quot;friends&quot;"' in sheet
    assert "seed 7, 64 by 48 pixels, 4 steps" in sheet
    assert sheet.index("images/b/0.png") < sheet.index("images/a%20%231/0.png")
    assert "lost" not in sheet


def test_there_is_no_contact_sheet_without_pictures(tmp_path: Path) -> None:
    submitted = {"none": {"prompt": "lost"}}
    assert write_contact_sheet(tmp_path, submitted, results=[result("none")], images=tmp_path / "images") is None
    assert list(tmp_path.iterdir()) == []


class Shown(LiveDisplay):
    """Keeps what it is to show."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self.is_moving = asyncio.Event()

    def update(self, snapshot: Displayed) -> None:
        self.seconds.append(snapshot.elapsed_seconds or 0)
        if len(set(self.seconds)) > 2:
            self.is_moving.set()


async def test_the_time_of_a_demo_moves_while_its_stack_starts() -> None:
    display = Shown()
    clock = asyncio.create_task(show_time(display, began_at=time.monotonic(), interval_seconds=0))
    async with asyncio.timeout(30):
        await display.is_moving.wait()
    clock.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await clock
    assert display.seconds == sorted(display.seconds)
