"""A process node with a namespace for one test, and queries of its pods."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.cluster.control_plane import ControlPlane
from kit.cluster.kubernetes_api import Body, KubernetesApi
from kit.cluster.manifests import container_status, create_pod, get_pod, is_ready, pod, wait_gone
from kit.process_node import ProcessImage, ProcessNode
from kit.waiting import wait_until

SLEEP = "import time; time.sleep(600)"
# Ends only when it is killed, like its child in a separate session.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(f"child={child.pid} ", flush=True)
time.sleep(600)
"""
POLITE = """
import signal, sys, time
def leave(*_):
    print("farewell", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("serving", flush=True)
time.sleep(600)
"""
# Broken as long as /state/broken exists.
SERVER = """
import http.server, os, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(500 if pathlib.Path("/state/broken").exists() else 200)
        self.end_headers()
        self.wfile.write(os.environ["HOSTNAME"].encode())
    def log_message(self, *_): pass
http.server.HTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""
STATE_VOLUME: Body = {"name": "state", "emptyDir": {}}
STATE_MOUNT: Body = {"name": "state", "mountPath": "/state"}
POD_IP: Body = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def python_image(**environment: str) -> ProcessImage:
    """Return an image whose `python` is the one that runs the tests."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return ProcessImage(
        entrypoint=("python",),
        cmd=("-c", "print('of the image')"),
        environment={"PATH": path, **environment},
        folders=(str(Path(__file__).parents[3]),),
    )


@dataclass(slots=True)
class Bench:
    """A process node, the admin's client and a namespace of one test."""

    control_plane: ControlPlane
    api: KubernetesApi
    namespace: str
    node: ProcessNode
    folder: Path

    async def create(self, name: str, script: str = SLEEP, **spec: Any) -> Body:
        """Create a pod that runs a Python script."""
        spec.setdefault("command", ["python", "-c", script])
        return await create_pod(self.api, self.namespace, pod(name, node=self.node.name, **spec))

    async def wait(self, name: str, reached: Callable[[Body], Any], what: str, *, deadline_seconds: float = 30) -> Body:
        """Wait until a pod satisfies the predicate and return it."""

        async def check() -> Body | None:
            found = await get_pod(self.api, self.namespace, name)
            return found if reached(found) else None

        seen = await wait_until(check, deadline_seconds=deadline_seconds, what=f"pod {name}: {what}")
        assert seen is not None
        return seen

    async def wait_ready(self, name: str) -> Body:
        """Wait until a pod is Ready."""
        return await self.wait(name, is_ready, "Ready")

    async def wait_phase(self, name: str, phase: str) -> Body:
        """Wait for a phase."""
        return await self.wait(name, lambda found: found["status"]["phase"] == phase, phase)

    async def wait_waiting(self, name: str, reason: str) -> Body:
        """Wait until the container waits for that reason."""

        def waits(found: Body) -> bool:
            return bool(container_status(found).get("state", {}).get("waiting", {}).get("reason") == reason)

        return await self.wait(name, waits, reason)

    async def wait_log(self, name: str, text: str, *, container: str = "main") -> str:
        """Wait for a text in a container's output."""
        await wait_until(
            lambda: text in self.log(name, container), deadline_seconds=30, what=f"{text!r} in the log of {name}"
        )
        return self.log(name, container)

    def log(self, name: str, container: str = "main") -> str:
        """A container's output so far."""
        return self.node.container_log(self.namespace, name, container)

    def pid(self, name: str, container: str = "main") -> int:
        """A running container's main process."""
        pid = self.node.container_pid(self.namespace, name, container)
        assert pid is not None
        return pid

    def path(self, name: str) -> str:
        """A pod's API path."""
        return f"/api/v1/namespaces/{self.namespace}/pods/{name}"

    async def gone(self, name: str, *, deadline_seconds: float = 30) -> None:
        """Wait until a pod does not exist any more."""
        await wait_gone(self.api, self.path(name), deadline_seconds=deadline_seconds)
