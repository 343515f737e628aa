"""Probes of a container: one request at a time, and thresholds of consecutive results.

Owns HTTP, TCP and exec probes of the pod's address. The container loop acts on a verdict.
"""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import httpx

from kit.cluster.kubernetes_api import Body
from kit.process_node.container import ContainerProcess

_THREADS: Final = ThreadPoolExecutor(max_workers=64, thread_name_prefix="probe")
"""Each waits for one answer; a container has at most three probes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeVerdict:
    """The result after enough equal results in a row; `message` is that of the last failure."""

    healthy: bool
    message: str


class Prober:
    """Runs one probe of one run of a container."""

    def __init__(self, probe: Body, *, container: Body, process: ContainerProcess, pod_ip: str) -> None:
        """Take the probe of the pod; sends no request yet."""
        self._probe = probe
        self._container = container
        self._process = process
        self._pod_ip = pod_ip
        self._pause_seconds = float(probe.get("initialDelaySeconds", 0))
        self._successes = 0
        self._failures = 0

    async def verdict(self) -> ProbeVerdict:
        """Probe until the threshold of equal results in a row is reached, and return the verdict."""
        while True:
            await asyncio.sleep(self._pause_seconds)
            self._pause_seconds = float(self._probe.get("periodSeconds", 10))
            complaint = await ask(self._probe, container=self._container, process=self._process, pod_ip=self._pod_ip)
            if complaint is None:
                self._successes, self._failures = self._successes + 1, 0
                if self._successes >= int(self._probe.get("successThreshold", 1)):
                    return ProbeVerdict(healthy=True, message="")
            else:
                self._successes, self._failures = 0, self._failures + 1
                if self._failures >= int(self._probe.get("failureThreshold", 3)):
                    return ProbeVerdict(healthy=False, message=complaint)


async def ask(probe: Body, *, container: Body, process: ContainerProcess, pod_ip: str) -> str | None:
    """Probe once; return None on success, else the failure."""
    timeout_seconds = float(probe.get("timeoutSeconds", 1))
    if "exec" in probe:
        code = await process.execute(probe["exec"]["command"], timeout_seconds=timeout_seconds)
        return None if code == 0 else f"command ended with {code}"
    try:
        async with asyncio.timeout(timeout_seconds):
            if "tcpSocket" in probe:
                return await _ask_tcp(pod_ip, port_number(probe["tcpSocket"]["port"], container))
            # In a thread: a connection whose opening is cancelled can stay open until it is collected.
            request = partial(_ask_http, probe["httpGet"], container=container, pod_ip=pod_ip, seconds=timeout_seconds)
            return await asyncio.get_running_loop().run_in_executor(_THREADS, request)
    except LookupError as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {timeout_seconds:g} s"


def port_number(port: Any, container: Body) -> int:
    """Return a port by number or by its name in the container; raises `LookupError` for an unknown name."""
    if isinstance(port, int):
        return port
    for declared in container.get("ports", []):
        if declared.get("name") == port:
            return int(declared["containerPort"])
    raise LookupError(f"container {container['name']!r} declares no port named {port!r}")


async def _ask_tcp(host: str, port: int) -> str | None:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return str(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


def _ask_http(get: Body, *, container: Body, pod_ip: str, seconds: float) -> str | None:
    scheme = get.get("scheme", "HTTP").lower()
    url = f"{scheme}://{pod_ip}:{port_number(get['port'], container)}{get.get('path', '/')}"
    headers = {entry["name"]: entry["value"] for entry in get.get("httpHeaders", [])}
    try:
        # A kubelet checks no certificates either.
        with httpx.Client(verify=False, trust_env=False, timeout=seconds) as client:  # noqa: S501
            answer = client.get(url, headers={"User-Agent": "kube-probe/1.36", **headers})
    except httpx.TimeoutException as error:
        raise TimeoutError from error
    except httpx.TransportError as error:
        return f"Get {url!r}: {error!r}"
    if 200 <= answer.status_code < 400:
        return None
    return f"HTTP probe failed with statuscode: {answer.status_code}"
