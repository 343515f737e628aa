"""What a server process counts, as `/metrics` shows it."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fluxpool_gateway.http.request_context import METRICS
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.store.task_store import Heartbeat
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.http.event_streams import serving

ROOT = Path(__file__).parents[3]
PREFIX = "fluxpool_gateway_"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


async def shown(gateway: Gateway, prefix: str = PREFIX) -> dict[str, float]:
    """Each sample with this prefix, by what comes after it."""
    text = (await gateway.one.ask("GET", "/metrics")).text
    samples = (line.rpartition(" ") for line in text.splitlines() if line.startswith(prefix))
    return {name.removeprefix(prefix): float(value) for name, _, value in samples}


def requests(method: str, route: str, status: int) -> str:
    return f'requests_total{{method="{method}",route="{route}",status="{status}"}}'


async def test_requests_are_counted_by_their_route_and_not_by_their_path(gateway: Gateway) -> None:
    admin, one = gateway.admin, gateway.one
    for number in range(3):
        await one.ask("GET", f"/v1/generations/unknown-{number}", admin)
        await one.ask("GET", f"/nowhere/{number}", admin)
        await one.ask("GET", f"/v1/generations/r-{number}/images/0")
    await one.ask("HEAD", "/healthz")
    await one.ask("PROPFIND", "/healthz")
    await one.submit(admin)
    await one.ask("PUT", "/v1/generations/01890a5d-ac96-774b-bcce-b302099a8057", admin, json={"prompt": "a"})
    samples = await shown(gateway)
    assert {name: value for name, value in samples.items() if name.startswith("requests_total")} == {
        requests("GET", "/v1/generations/{request_id}", 404): 3,
        requests("GET", "none", 404): 3,
        # Who has no key learns nothing of routes.
        requests("GET", "none", 401): 3,
        requests("HEAD", "/healthz", 200): 1,
        requests("other", "/healthz", 405): 1,
        requests("POST", "/v1/generations", 202): 1,
        requests("PUT", "/v1/generations/{request_id}", 202): 1,
    }


async def test_refusals_are_counted_by_their_code_those_in_batches_as_well(gateway: Gateway) -> None:
    admin, one = gateway.admin, gateway.one
    await one.submit(None)
    await one.ask("GET", "/v1/generations/unknown")
    await one.ask("GET", "/v1/generations/unknown", admin)
    await one.ask("POST", "/v1/generations", admin, json={"prompt": ""})
    batch = {"requests": [{"prompt": "a"}, {"prompt": "a", "n": 0}, {"prompt": "a", "priority": "standard"}]}
    assert (await one.ask("POST", "/v1/generations/batch", admin, json=batch)).json()["accepted"] == 2
    gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no acknowledgement")
    await one.submit(admin)
    samples = await shown(gateway)
    assert {name: value for name, value in samples.items() if name.startswith("refusals_total")} == {
        'refusals_total{code="unauthorized"}': 2,
        'refusals_total{code="not_found"}': 1,
        'refusals_total{code="invalid_request"}': 2,
        'refusals_total{code="queue_unavailable"}': 1,
    }


async def test_accepted_tasks_are_counted_with_the_time_to_their_acknowledgement(gateway: Gateway) -> None:
    for priority in ("standard", "vip", "vip"):
        answer = await gateway.one.ask(
            "POST", "/v1/generations", gateway.admin, json={"prompt": "a", "priority": priority}
        )
        assert answer.status_code == 202
    samples = await shown(gateway)
    assert samples['accepted_tasks_total{priority="standard"}'] == 1
    assert samples['accepted_tasks_total{priority="vip"}'] == 2
    assert samples["produce_seconds_count"] == samples['produce_seconds_bucket{le="+Inf"}'] == 3
    assert 0 <= samples["produce_seconds_sum"] < 60
    assert samples["processes"] == 1


async def test_what_the_connection_refuses_is_counted(gateway: Gateway) -> None:
    metrics: GatewayMetrics = gateway.one.app.metrics
    async with serving(gateway.one.app, {METRICS: metrics}) as server, httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/" + "a" * 20_000)).status_code == 414
        assert (await client.get("/healthz", headers={"a": "b" * 40_000})).status_code == 431
    samples = await shown(gateway)
    assert samples[requests("GET", "none", 414)] == samples['refusals_total{code="uri_too_long"}'] == 1
    assert samples[requests("GET", "none", 431)] == samples['refusals_total{code="headers_too_large"}'] == 1


async def test_the_lag_of_the_projection_in_seconds_grows_when_the_projector_is_gone(gateway: Gateway) -> None:
    assert "lag_seconds" not in await shown(gateway, "fluxpool_projection_")
    long_ago_ms = time.time_ns() // 1_000_000 - 90_000
    gateway.tasks.beat(
        Heartbeat(pid=1, beat_at_ms=long_ago_ms, caught_up_at_ms=long_ago_ms, lag_records=0, rebuilt_because=None)
    )
    samples = await shown(gateway, "fluxpool_projection_")
    assert samples["lag_records"] == 0
    assert 90 <= samples["lag_seconds"] < 300


async def test_the_documentation_lists_every_metric(gateway: Gateway) -> None:
    await gateway.one.submit(gateway.admin)
    await gateway.one.submit(None)
    gateway.one.app.metrics.count_feedback("rating")
    gateway.tasks.beat(Heartbeat(pid=1, beat_at_ms=1, caught_up_at_ms=1, lag_records=0, rebuilt_because=None))
    text = (await gateway.one.ask("GET", "/metrics")).text
    types = re.findall(r"^# TYPE (fluxpool_\S+) (\S+)$", text, re.MULTILINE)
    documented = re.findall(
        r"^\| `(fluxpool_\w+)` \| (\w+) \|", (ROOT / "docs" / "reference" / "http.md").read_text(), re.MULTILINE
    )
    # The exposition has a gauge beside each counter and histogram: when it was made.
    assert sorted(documented) == sorted((name, kind) for name, kind in types if not name.endswith("_created"))
