"""The examples of docs/how-to/client.md and the README, with a real gateway and broker and a stand-in engine."""

import asyncio
import re
from pathlib import Path

import pytest
from PIL import Image

from fluxpool_client import AsyncClient, TaskStatus
from kit.gateways.gateway_process import GatewayProcess
from kit.workers.worker import WorkerBench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "client.md"


def examples_of(page: Path) -> list[str]:
    return re.findall(r"^```python client\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


EXAMPLES = examples_of(PAGE)
(README_EXAMPLE,) = examples_of(ROOT / "README.md")


async def test_the_examples_run(
    bench: WorkerBench,
    gateway: GatewayProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLUXPOOL_URL", gateway.url)
    assert len(EXAMPLES) == 4
    await bench.start_ready()
    for example in EXAMPLES:
        await asyncio.to_thread(exec, compile(example, str(PAGE), "exec"), {"__name__": "example"})
    shown = capsys.readouterr().out
    with Image.open("fox-0.png") as picture:
        assert picture.size == (96, 64)
    assert str([TaskStatus.SUCCEEDED] * 8) in shown
    assert "'succeeded': 8" in shown
    assert "succeeded None\n" in shown
    assert "invalid_size width: 100 is not a multiple of 16" in shown
    async with AsyncClient() as client:
        assert len([task async for task in client.tasks(limit=2)]) == 10
    await asyncio.to_thread(exec, compile(README_EXAMPLE, "README.md", "exec"), {"__name__": "example"})
    with Image.open("fox.png") as picture:
        assert picture.size == (256, 256)
