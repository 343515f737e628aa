"""Sends fuzzed HTTP requests to a real gateway on a real broker: failures, hangs, memory growth, restarts.

Each connection sends bytes of `fuzz_parts.http_requests` and reads the responses. Counts responses by status, hanging
connections, errors in the log, and the memory of the server processes before and after. At the end a plain request
must be accepted. Called by `fuzz.py http`.
"""

import argparse
import asyncio
import re
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final
from urllib.parse import urlsplit

import httpx
from report import Cell, print_report

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from fuzz_parts.http_requests import ConnectionScript, Ending, make_connection_script
from fuzz_parts.routes import fuzz_routes
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway
from kit.waiting import wait_until

CONNECTIONS: Final = 50
WARM_UP_SHARE: Final = 0.1
"""Share of the requests after which memory is measured, when caches and pools are full."""
HANG_SECONDS: Final = 40.0
"""The longest deadline of the gateway is 30 s."""
MAX_GROWTH_MEGABYTES: Final = 48
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_NO_FAULT: Final = frozenset({b"queue_unavailable", b"store_unavailable", b"too_many_connections"})
_CODE: Final = re.compile(rb'"code":"([a-z_]+)"')


@dataclass(slots=True)
class Counts:
    """What came back."""

    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Connections with a forbidden response: request and response."""
    hangs: list[bytes] = field(default_factory=list)
    longest_seconds: float = 0.0


def main(arguments: Sequence[str]) -> int:
    """Run everything; return the exit status, 1 when a check fails."""
    options = _options(arguments)
    if options.in_process:
        return fuzz_routes(requests=options.requests, seed=options.seed, as_json=options.json)
    return asyncio.run(_fuzz_process(options))


async def _fuzz_process(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="fluxpool-fuzz-http-") as name:
        folder = Path(name)
        async with KafkaCluster(folder / "kafka", libs=provide_kafka_libs()) as kafka:
            topics = await gateway_topics(kafka.bootstrap_servers)
            settings = gateway_settings(kafka.bootstrap_servers, folder / "gateway", topics, processes=2)
            with running_gateway(settings) as gateway:
                await _wait_ready(gateway)
                return await _fuzz(gateway, requests=options.requests, seed=options.seed, as_json=options.json)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("fuzz.py http", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--in-process", action="store_true", help="every route with API keys, without Kafka and sockets"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args(arguments)


async def _fuzz(gateway: GatewayProcess, *, requests: int, seed: int, as_json: bool) -> int:
    counts = Counts()
    servers = sorted(gateway.servers())
    began = time.monotonic()
    await _send_all(gateway.url, counts, until=int(requests * WARM_UP_SHARE), seed=seed)
    before = [_resident_megabytes(pid) for pid in servers]
    await _send_all(gateway.url, counts, until=requests, seed=seed + CONNECTIONS)
    seconds = time.monotonic() - began
    kept = sorted(gateway.servers()) == servers
    after = [_resident_megabytes(pid) for pid in servers] if kept else []
    accepts = await _accepts(gateway.url)
    failures = gateway.log().count("Traceback") + gateway.log().count("request_failed")
    growth = max((end - start for start, end in zip(before, after, strict=True)), default=0) if kept else None
    ratios: dict[str, Cell] = {
        "requests": counts.requests,
        "requests_per_second": round(counts.requests / seconds),
        "answers": counts.statuses.total(),
        "answers_5xx": sum(number for status, number in counts.statuses.items() if status >= 500),
        "faults": len(counts.faults),
        "hangs": len(counts.hangs),
        "longest_connection_seconds": round(counts.longest_seconds, 2),
        "answer_bytes_per_request_byte": round(counts.received_bytes / max(1, counts.sent_bytes), 2),
        "resident_megabytes": "/".join(map(str, before)) + " -> " + "/".join(map(str, after)),
        "processes_kept": kept,
        "failures_logged": failures,
        "accepts_at_the_end": accepts,
    }
    rows: list[dict[str, Cell]] = [
        {"status": str(status), "answers": number} for status, number in sorted(counts.statuses.items())
    ]
    rows += [{"status": code, "answers": number} for code, number in sorted(counts.codes.items())]
    print_report(ratios=ratios, rows=rows, as_json=as_json)
    for sent, came in counts.faults[:5]:
        sys.stderr.write(f"FAULT\n  sent {sent[:400]!r}\n  came {came[:600]!r}\n")
    for sent in counts.hangs[:5]:
        sys.stderr.write(f"HANG\n  sent {sent[:400]!r}\n")
    if failures:
        sys.stderr.write(gateway.log()[-4000:])
    good = not counts.faults and not counts.hangs and kept and accepts and not failures
    return 0 if good and growth is not None and growth <= MAX_GROWTH_MEGABYTES else 1


async def _send_all(url: str, counts: Counts, *, until: int, seed: int) -> None:
    address = urlsplit(url)

    async def one(number: int) -> None:
        random = Random(seed + number)  # noqa: S311 - repeatable, not secret
        while counts.requests < until:
            script = make_connection_script(random)
            counts.requests += script.requests
            counts.sent_bytes += len(script.data)
            await _run_connection(address.hostname or "", address.port or 0, script, counts)

    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(one(number))


async def _run_connection(host: str, port: int, script: ConnectionScript, counts: Counts) -> None:
    began = time.monotonic()
    came = bytearray()
    try:
        async with asyncio.timeout(HANG_SECONDS):
            await _converse(host, port, script, came)
    except TimeoutError:
        counts.hangs.append(script.data)
    except OSError:
        # The gateway closes connections on bytes that are no request; earlier responses count.
        pass
    counts.longest_seconds = max(counts.longest_seconds, time.monotonic() - began)
    counts.received_bytes += len(came)
    _count(script, bytes(came), counts)


async def _converse(host: str, port: int, script: ConnectionScript, came: bytearray) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        if script.ending is Ending.RESET:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        reading = asyncio.ensure_future(_read(reader, came)) if script.ending is Ending.HALF_CLOSE else None
        size = -(-len(script.data) // script.pieces) or 1
        try:
            for start in range(0, len(script.data), size):
                writer.write(script.data[start : start + size])
                await writer.drain()
            if reading is not None:
                writer.write_eof()
        finally:
            if reading is not None:
                await reading
    finally:
        writer.close()


async def _read(reader: asyncio.StreamReader, came: bytearray) -> None:
    try:
        while part := await reader.read(65536):
            came += part
    except ConnectionError:
        return


def _count(script: ConnectionScript, came: bytes, counts: Counts) -> None:
    statuses = [int(status) for status in _STATUS.findall(came)]
    codes = _CODE.findall(came)
    counts.statuses.update(statuses)
    counts.codes.update(code.decode() for code in codes)
    faulty = any(status >= 500 and status != 503 for status in statuses)
    # A response without a body has no code.
    explained = b"HEAD " in script.data or b'"ready":false' in came or not _NO_FAULT.isdisjoint(codes)
    if faulty or (503 in statuses and not explained):
        counts.faults.append((script.data, came))


async def _accepts(url: str) -> bool:
    async with httpx.AsyncClient(base_url=url, timeout=10) as client:
        answer = await client.post("v1/generations", json={"prompt": "a kite"})
    return answer.status_code == 202


async def _wait_ready(gateway: GatewayProcess) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:

        async def ready() -> bool:
            return (await client.get("readyz")).status_code == 200

        await wait_until(ready, deadline_seconds=60, what="readiness")


def _resident_megabytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmRSS"))
