"""How soon a view of the page can be used, in a browser, with 10,000 tasks stored; and how much it loads.

Browser, gateway with API keys, projector and broker are real; the tasks and results are written to Kafka as workers
write them, and the newest have images. Each run is a browser that was never here (`cold`), which then opens the
view again (`warm`). A view can be used when its document is parsed and its scripts have run: `DOMContentLoaded` has
ended. The page's weight is what the cold view transfers without images.
"""

import argparse
import asyncio
import hashlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from PIL import Image
from playwright.async_api import Browser
from report import Cell, print_report, quiet_logs

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fluxpool_contract.messages import GenerationResult, ImageDescription, ResultStatus
from fluxpool_gateway.identity import new_key
from kit.brokers.kafka import produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway
from kit.http.browser import Tab, opened_tab, running_browser
from kit.waiting import wait_until

GOAL_MS: Final = 300
GOAL_KIB: Final = 100
GOALS: Final = f"goals: create, cold_ms <= {GOAL_MS} (cold_to_goal <= 1) and kib <= {GOAL_KIB} (weight_to_goal <= 1)"
GROUP: Final = "first-view"
WAITING: Final = 50
PICTURES: Final = 50
"""Of the newest tasks; no view shows more."""
DOCUMENTS: Final = 50
_READ: Final = """() => {
  const [view] = performance.getEntriesByType("navigation");
  const loaded = performance.getEntriesByType("resource").filter((entry) => !/\\/images\\//.test(entry.name));
  return {
    usable_ms: view.domContentLoadedEventEnd,
    answered_ms: view.responseEnd,
    bytes: [view, ...loaded].reduce((sum, entry) => sum + entry.transferSize, 0),
  };
}"""


async def main() -> int:
    """Measure each view; returns the exit status, 1 when a view logs an error."""
    options = _options()
    quiet_logs("aiokafka")
    with tempfile.TemporaryDirectory(prefix="fluxpool-first-view-") as name:
        folder = Path(name)
        async with KafkaCluster(folder / "kafka", libs=provide_kafka_libs()) as kafka, running_browser() as browser:
            (folder / "key").write_text(new_key())
            settings = gateway_settings(
                kafka.bootstrap_servers,
                folder / "gateway",
                await gateway_topics(kafka.bootstrap_servers),
                bootstrap_key_file=folder / "key",
            )
            with running_gateway(settings) as gateway:
                key = (folder / "key").read_text()
                await _store_tasks(gateway, key, tasks=options.tasks)
                rows, errors = await _measure(browser, gateway, key, runs=options.runs)
    first = rows[0]
    ratios: dict[str, Cell] = {
        "cold_to_goal": round(float(first["cold_ms"] or 0) / GOAL_MS, 2),
        "weight_to_goal": round(float(first["kib"] or 0) / GOAL_KIB, 2),
        "tasks": options.tasks,
    }
    sys.stderr.write("".join(f"{line}\n" for line in (GOALS, *errors)))
    print_report(ratios=ratios, rows=rows, as_json=options.json)
    return int(bool(errors))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", type=int, default=10_000, help="that are stored")
    parser.add_argument("--runs", type=int, default=9, help="of each view; medians are shown")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()


async def _store_tasks(gateway: GatewayProcess, key: str, *, tasks: int) -> None:
    """Write all to Kafka, and return once they are projected."""
    topics, servers = gateway.settings.topics, ",".join(gateway.settings.kafka.bootstrap_servers)
    names = [f"0195e3c0-0000-7000-8000-{number:012x}" for number in range(tasks)]
    await produce(servers, topics.tasks, [(name.encode(), _task(number)) for number, name in enumerate(names)])
    picture = _picture()
    ended = names[: tasks - WAITING]
    _store_pictures(Path(gateway.settings.storage.url.removeprefix("file://")), ended[-PICTURES:], picture)
    await produce(servers, topics.results, [(name.encode(), _result(name, picture)) for name in ended])
    async with httpx.AsyncClient(base_url=gateway.url, headers={"authorization": f"Bearer {key}"}) as client:

        async def all_stored() -> bool:
            answer = await client.get(f"v1/groups/{GROUP}", timeout=60)
            return answer.is_success and answer.json()["counts"]["succeeded"] == len(ended)

        await wait_until(all_stored, deadline_seconds=300, what="the projection of all tasks")


async def _measure(
    browser: Browser, gateway: GatewayProcess, key: str, *, runs: int
) -> tuple[list[dict[str, Cell]], list[str]]:
    base = gateway.url
    async with opened_tab(browser, base) as tab:
        await tab.log_in(key)
        session = (await tab.page.context.storage_state())["cookies"]
        links = await tab.page.locator("nav a").all()
        views = [str(await link.get_attribute("href")).removeprefix("/ui/") for link in links]
    rows: list[dict[str, Cell]] = []
    errors: list[str] = []
    for view in views:
        cold: list[dict[str, Any]] = []
        warm: list[dict[str, Any]] = []
        for _ in range(runs):
            async with opened_tab(browser, base) as tab:
                await tab.page.context.add_cookies(session)  # type: ignore[arg-type]
                cold.append(await _read(tab, view))
                warm.append(await _read(tab, view))
                errors += tab.errors
        rows.append(
            {
                "view": view,
                "cold_ms": _median(cold, "usable_ms"),
                "cold_max_ms": max(run["usable_ms"] for run in cold),
                "warm_ms": _median(warm, "usable_ms"),
                "answered_ms": _median(warm, "answered_ms"),
                "server_cpu_ms": await _server_cpu_ms(gateway, view, session),
                "kib": round(_median(cold, "bytes") / 1024, 1),
                "warm_kib": round(_median(warm, "bytes") / 1024, 1),
            }
        )
    return rows, errors


async def _server_cpu_ms(gateway: GatewayProcess, view: str, session: Sequence[Any]) -> float:
    """Processor time of the server for one document, which does not depend on what else the machine does."""
    server = psutil.Process(gateway.server.pid)
    cookies = {cookie["name"]: cookie["value"] for cookie in session}
    async with httpx.AsyncClient(base_url=gateway.url, cookies=cookies, timeout=60) as client:
        before = server.cpu_times()
        for _ in range(DOCUMENTS):
            (await client.get(f"ui/{view}")).raise_for_status()
        after = server.cpu_times()
    return round(1000 * (after.user + after.system - before.user - before.system) / DOCUMENTS, 1)


async def _read(tab: Tab, view: str) -> dict[str, Any]:
    await tab.open(f"ui/{view}")
    found: dict[str, Any] = await tab.page.evaluate(_READ)
    return found


def _median(runs: list[dict[str, Any]], name: str) -> float:
    return round(statistics.median(float(run[name]) for run in runs), 1)


def _task(number: int) -> bytes:
    prompt = f"a lighthouse at dusk, long exposure, number {number}, with a keeper who looks out at the sea"
    body = {"prompt": prompt, "width": 1024, "height": 1024, "steps": 28, "seed": number, "group_id": GROUP}
    return json.dumps({"request_id": f"0195e3c0-0000-7000-8000-{number:012x}", **body}).encode()


def _picture() -> bytes:
    stream = BytesIO()
    Image.linear_gradient("L").resize((1024, 1024)).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _store_pictures(folder: Path, names: Sequence[str], picture: bytes) -> None:
    for name in names:
        file = folder / _object_of(name)
        file.parent.mkdir(parents=True)
        file.write_bytes(picture)


def _object_of(name: str) -> str:
    return f"default/2026/04/05/{name}/0.png"


def _result(name: str, picture: bytes) -> bytes:
    image = ImageDescription(
        index=0, url=f"http://images/{name}/0.png", object=_object_of(name), width=1024, height=1024, seed=7,
        format="png", content_type="image/png", bytes=len(picture), sha256=hashlib.sha256(picture).hexdigest(),
    )  # fmt: skip
    result = GenerationResult(
        request_id=name, image_url=image.url, status=ResultStatus.SUCCESS, images=(image,), seed=7, steps=28,
        model="black-forest-labs/FLUX.1-dev", completed_at=datetime.now(UTC),
    )  # fmt: skip
    return result.to_json()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
