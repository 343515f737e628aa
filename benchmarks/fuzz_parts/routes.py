"""Sends fuzzed requests to every route of the application, in this process and with API keys: failures, memory growth.

Paths, parameters, headers and bodies are made from the OpenAPI document and then changed; `http_requests` are bytes
on a socket. Tasks go to a stand-in of Kafka; keys, reservations, task store and dead letters are real. Event
streams are left out, because they do not end. Called by `fuzz.py http --in-process`.
"""

import asyncio
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import quote, urlencode

import psutil
from report import print_report, quiet_logs

from kit.gateways.dead_letter_topic import letter_at
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings, succeeded

CLIENTS: Final = 16
WARM_UP_SHARE: Final = 0.2
"""Share of the requests after which memory is measured, when caches are full."""
MAX_GROWTH_MEGABYTES: Final = 32
_TEXTS: Final = (
    "",
    " ",
    "a fox",
    "r-1",
    "0/0",
    "0/1",
    "2%2F17",
    "\0",
    "\u202eabc",
    "\ud800",
    "e\u0301",
    "🪁" * 40,
    "x" * 600,
    "x" * 20_000,
    "null",
    "-1",
    "0",
    "1",
    "7",
    "256",
    "9" * 400,
    "1e309",
    "2026-04-05T10:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "desc",
    "csv",
    "open",
    "queued",
    "hour",
    "admin",
    "read",
    "vip",
    "default",
    "*",
    "../..",
    "%",
    "%ff",
    "a\r\nb: c",
    "=1+1",
    "<script>",
    "success",
    "01890a5d-ac96-774b-bcce-b302099a8057",
    "https://127.0.0.1/hook",
    "b64_json",
    "png",
    "1024x1024",
)
_PLAUSIBLE: Final[Mapping[str, Any]] = {
    "prompt": "a fox",
    "requests": [{"prompt": "a fox"}, {"prompt": ""}],
    "request_ids": ["r-1"],
    "ids": ["0/0"],
    "patch": {"width": 96},
    "reason": "a test",
    "name": "a test",
    "scopes": ["read"],
}
_NUMBERS: Final = (0, 1, -1, 16, 100, 512, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"))
_CONTENT_TYPES: Final = (
    "application/json; charset=utf-8",
    "text/plain",
    "",
    "multipart/form-data; boundary=x",
    "application/json;;",
    "a" * 3000,
)
_HEADERS: Final = (
    "accept",
    "authorization",
    "if-none-match",
    "idempotency-key",
    "traceparent",
    "x-request-id",
    "content-length",
    "range",
    "host",
    "origin",
    "cookie",
    "content-encoding",
    "last-event-id",
    "x-forwarded-for",
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the document."""

    method: str
    path: str
    queries: Sequence[str]
    fields: Sequence[str]
    """Of its body; empty without one."""


@dataclass(slots=True)
class Counts:
    """What came back."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    routes: Counter[str] = field(default_factory=Counter)


def fuzz_routes(*, requests: int, seed: int, as_json: bool) -> int:
    """Run everything; return the exit status."""
    quiet_logs("httpx", level=logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fluxpool-fuzz-routes-") as name:
        return asyncio.run(_fuzz(Path(name), requests=requests, seed=seed, as_json=as_json))


async def _fuzz(folder: Path, *, requests: int, seed: int, as_json: bool) -> int:
    counts, process = Counts(), psutil.Process()
    async with keyed_gateway(keyed_settings(folder)) as gateway:
        gateway.project(succeeded("r-1", "default"))
        gateway.dead_letters.add(*map(letter_at, range(5)))
        keys = [gateway.admin] * 6 + [
            await gateway.create("read"),
            await gateway.create("submit", "read", "cancel"),
            "",
        ]
        operations = list(_operations(gateway.one.app.openapi()))
        started = time.monotonic()
        warm = int(requests * WARM_UP_SHARE)
        await _send(gateway, operations, keys, range(warm), seed=seed, counts=counts)
        before = process.memory_info().rss
        await _send(gateway, operations, keys, range(warm, requests), seed=seed, counts=counts)
        seconds = time.monotonic() - started
        growth = (process.memory_info().rss - before) / 2**20
        alive = (await gateway.one.submit(gateway.admin)).status_code
    is_flat = growth <= MAX_GROWTH_MEGABYTES
    print_report(
        ratios={
            "requests": counts.requests,
            "operations": len(operations),
            "operations_that_succeeded": len(+counts.routes),
            "per_second": counts.requests / seconds,
            "faults": len(counts.faults),
            "memory_megabytes": before / 2**20,
            "memory_growth_megabytes": growth,
            "plain_request_at_the_end": alive,
        },
        rows=[{"status": status, "responses": count} for status, count in sorted(counts.statuses.items())],
        as_json=as_json,
    )
    for fault in counts.faults[:20]:
        print(fault)
    return 0 if not counts.faults and is_flat and alive == 202 else 1


def _operations(document: Mapping[str, Any]) -> Iterator[Operation]:
    for path, item in document["paths"].items():
        if path.endswith("/events"):
            continue
        for method, operation in item.items():
            names = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
            content = operation.get("requestBody", {}).get("content", {})
            schemas = [_resolved(document, media.get("schema", {})) for media in content.values()]
            fields = [name for schema in schemas for name in schema.get("properties", {})]
            yield Operation(method.upper(), path, names, fields)


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


async def _send(
    gateway: Gateway, operations: Sequence[Operation], keys: Sequence[str], numbers: range, *, seed: int, counts: Counts
) -> None:
    waiting = iter(numbers)

    async def client() -> None:
        for number in waiting:
            random = Random(f"{seed}/{number}")  # noqa: S311 - the same requests for each seed
            await _send_one(gateway, random.choice(operations), random.choice(keys), random, counts)
            # What the stand-in keeps, and a clock that goes on, so that what is remembered for a time is forgotten.
            gateway.clock.now_ms += 20
            for kept in (
                gateway.records.headers,
                gateway.records.values,
                gateway.records.commands,
                gateway.records.deletions,
            ):
                kept.clear()

    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())


async def _send_one(gateway: Gateway, operation: Operation, key: str, random: Random, counts: Counts) -> None:
    path = _path(operation, random)
    headers = {"x-stainless-read-timeout": "0.1", **({"authorization": f"Bearer {key}"} if key else {})}
    content = b""
    if operation.fields or random.random() < 0.05:
        headers["content-type"] = "application/json"
        content = _body(operation.fields, random)
    if random.random() < 0.1:
        headers["content-type"] = random.choice(_CONTENT_TYPES)
    if random.random() < 0.2:
        text = random.choice(_TEXTS).encode(errors="replace")[:2000]
        headers[random.choice(_HEADERS)] = text.replace(b"\0", b"").replace(b"\r\n", b"").decode("latin-1").strip()
    method = (
        operation.method if random.random() < 0.95 else random.choice(("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"))
    )
    shown = f"{method} {path[:200]} {content[:300]!r}"
    encoded = [(name.encode(), value.encode("latin-1", errors="replace")) for name, value in headers.items()]
    try:
        answer = await gateway.one.http.request(method, path, headers=encoded, content=content)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        counts.faults.append(f"{shown}: {type(error).__name__}: {error}")
        return
    counts.requests += 1
    counts.statuses[answer.status_code] += 1
    counts.routes[f"{operation.method} {operation.path}"] += answer.status_code < 400
    is_known = operation.path == "/readyz" or '"code":"wait_timeout"' in answer.text
    if answer.status_code >= 500 and not is_known:
        counts.faults.append(f"{shown}: {answer.status_code} {answer.text[:300]}")


def _path(operation: Operation, random: Random) -> str:
    path = operation.path
    while (start := path.find("{")) >= 0:
        value = random.choice(_TEXTS).encode(errors="replace")[:2000]
        path = path[:start] + quote(value, safe="/" if random.random() < 0.5 else "") + path[path.find("}") + 1 :]
    names = [*random.sample(operation.queries, k=random.randint(0, len(operation.queries)))]
    if random.random() < 0.05:
        names.append("unknown")
    query = [(name, random.choice(_TEXTS).encode(errors="replace")[:2000]) for name in names]
    return f"{path}?{urlencode(query)}" if query else path


def _body(fields: Sequence[str], random: Random) -> bytes:
    if random.random() < 0.05:
        return random.choice(
            (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 3000, b"1" * 5000, b'"\\ud800"')
        )
    if random.random() < 0.3:
        return json.dumps({name: value for name, value in _PLAUSIBLE.items() if name in fields}).encode()
    chosen = random.sample(fields, k=random.randint(0, min(len(fields), 6))) if fields else []
    if "prompt" in fields and random.random() < 0.8:
        chosen.append("prompt")
    body = {name: _value(random, depth=0) for name in chosen}
    if random.random() < 0.1:
        body["unknown"] = 1
    return json.dumps(body).encode()


def _value(random: Random, *, depth: int) -> Any:
    kind = random.randint(0, 9 if depth < 3 else 6)
    if kind <= 3:
        return random.choice(_TEXTS)
    if kind <= 5:
        return random.choice(_NUMBERS)
    if kind == 6:
        return random.choice((None, True, False))
    if kind == 7:
        return [_value(random, depth=depth + 1) for _ in range(random.randint(0, 4))]
    return {
        random.choice((*_TEXTS, "width", "prompt", "url")): _value(random, depth=depth + 1)
        for _ in range(random.randint(0, 4))
    }
