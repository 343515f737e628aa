"""A real Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, with kubectl and helm.

Owns the data folder, the flags, the order of starts and stops, and readiness. There is no kubelet: `kit.process_node`
and `kit.cluster.fake_nodes` take its place. Services do not route, because nothing programs a network and
EndpointSlices refuse loopback addresses.
"""

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from fluxpool_cli.local.loopback import HOST
from kit.cluster.control_plane_credentials import ClientLogin, Credentials
from kit.cluster.kubernetes_api import ApiError, KubernetesApi
from kit.ports import own_port
from kit.programs.pausable_process import PausableProcess
from kit.waiting import PATIENCE

__all__ = ["CommandError", "Component", "ControlPlane", "ControlPlaneError", "running_control_plane"]

_READINESS_INTERVAL_SECONDS = 0.05
_COMMAND_SECONDS = 120.0 * PATIENCE
# An API server waits for requests in flight, and its watches never end by themselves.
_STOP_GRACE_SECONDS = 5.0 * PATIENCE
# Metadata has user, verb and object, which is enough to check access rules; bodies are not stored.
_AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
"""


class ControlPlaneError(Exception):
    """An operation failed; the message has the reason, and the end of the log where it helps."""


class Component(StrEnum):
    """The programs, in the order they are started; they are stopped in the reverse one."""

    ETCD = "etcd"
    API_SERVER = "kube-apiserver"
    CONTROLLER_MANAGER = "kube-controller-manager"
    SCHEDULER = "kube-scheduler"


class CommandError(Exception):
    """kubectl or helm ended with an error; the message ends with what it printed."""


class ControlPlane:
    """One control plane with a data folder of its own; `async with` starts, waits until ready, and stops.

    Bound to no event loop: it may be started in one loop and stopped in another. See `PausableProcess` for the one rule
    about threads. Ports stay the same for the lifetime of the handle, so clients find a restarted API server again.
    """

    def __init__(
        self, data_dir: Path, *, binaries: Path, extra_flags: Mapping[Component, Sequence[str]] | None = None
    ) -> None:
        """Take a data folder and the folder of programs; starts nothing.

        `extra_flags` are appended to a program's own, so the last one wins.
        """
        self.data_dir = data_dir.resolve()
        self._binaries = binaries
        self._extra_flags = dict(extra_flags or {})
        self._ports: dict[Component, int] = {}
        for component in Component:
            self._ports[component] = own_port()
        self.credentials = Credentials(self.data_dir / "credentials")
        self.audit_log_path = self.data_dir / "audit.log"
        self.admin = self.credentials.admin_login(self.server)
        self.admin_kubeconfig = self.credentials.write_kubeconfig("admin", self.admin)
        self._processes = {
            component: PausableProcess(
                component,
                [str(binaries / component), *self._flags(component), *self._extra_flags.get(component, ())],
                log_path=self.data_dir / "logs" / f"{component}.log",
                error=ControlPlaneError,
            )
            for component in Component
        }

    @property
    def server(self) -> str:
        """The API server's address, `https://127.0.0.1:<port>`."""
        return f"https://{HOST}:{self._ports[Component.API_SERVER]}"

    def process(self, component: Component) -> PausableProcess:
        """Return the handle of one program, to look at its pid and log, or to pause it."""
        return self._processes[component]

    async def start(self, *, deadline_seconds: float = 60) -> None:
        """Start every program that does not run, each once the one before it serves, and return when all is ready.

        Raises `ControlPlaneError` with the end of the log when a program dies or the deadline passes; then none is
        left running.
        """
        deadline_seconds *= PATIENCE
        try:
            async with asyncio.timeout(deadline_seconds):
                for component in Component:
                    await self._start(component)
                await self._made_defaults()
        except TimeoutError:
            tails = "\n".join(str(process.error("was running")) for process in self._processes.values() if process.pid)
            await self._kill_all()
            raise ControlPlaneError(f"not ready within {deadline_seconds:.0f} s:\n{tails}") from None
        except BaseException:
            await self._kill_all()
            raise

    async def stop(self) -> None:
        """Stop schedulers and controllers, then the API server, then etcd.

        An API server whose etcd is gone hangs on SIGTERM, so the order matters.
        """
        for component in reversed(Component):
            await self._processes[component].stop(grace_seconds=_STOP_GRACE_SECONDS)

    async def start_component(self, component: Component, *, deadline_seconds: float = 30) -> None:
        """Start one program again and return once it serves."""
        deadline_seconds *= PATIENCE
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._start(component)
        except TimeoutError:
            raise self._processes[component].error(f"was not ready within {deadline_seconds:.0f} s") from None

    async def kill_component(self, component: Component) -> None:
        """SIGKILL one program."""
        await self._processes[component].kill()

    @asynccontextmanager
    async def api(self, login: ClientLogin | None = None) -> AsyncIterator[KubernetesApi]:
        """Open a client, by default the admin's."""
        async with KubernetesApi(login or self.admin) as api:
            yield api

    def login_as(self, user: str, *, group: str | None = None) -> ClientLogin:
        """Return a login for any user, such as `system:node:a` of group `system:nodes`; rights come from RBAC."""
        return self.credentials.issue_login(self.server, user=user, group=group)

    def kubeconfig_of(self, login: ClientLogin, *, name: str) -> Path:
        """Write a kubeconfig file for a login and return its path."""
        return self.credentials.write_kubeconfig(name, login)

    async def kubectl(self, *arguments: str, input: str | None = None, kubeconfig: Path | None = None) -> str:  # noqa: A002 - subprocess' own name for it
        """Run kubectl, by default as admin; returns its standard output, raises `CommandError`."""
        return await self._run("kubectl", arguments, standard_input=input, kubeconfig=kubeconfig)

    async def helm(self, *arguments: str, kubeconfig: Path | None = None) -> str:
        """Run helm with folders of its own; returns its standard output, raises `CommandError`."""
        return await self._run("helm", arguments, standard_input=None, kubeconfig=kubeconfig)

    def audit_events(self) -> list[dict[str, Any]]:
        """Return the audit log so far: audit.k8s.io/v1 events of level Metadata, oldest first."""
        try:
            lines = self.audit_log_path.read_text().splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            # The last line may be half written.
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

    async def __aenter__(self) -> Self:
        """Start and wait until ready."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        await self.stop()

    async def _start(self, component: Component) -> None:
        process = self._processes[component]
        process.spawn()
        async with httpx.AsyncClient(verify=False, trust_env=False, timeout=2) as client:  # noqa: S501 - own loopback
            while not await self._serves(component, client):
                process.check_alive()
                await asyncio.sleep(_READINESS_INTERVAL_SECONDS)

    async def _serves(self, component: Component, client: httpx.AsyncClient) -> bool:
        scheme = "http" if component is Component.ETCD else "https"
        path = {Component.ETCD: "health", Component.API_SERVER: "readyz"}.get(component, "healthz")
        try:
            answer = await client.get(f"{scheme}://{HOST}:{self._ports[component]}/{path}")
        except httpx.TransportError:
            return False
        return answer.status_code == httpx.codes.OK

    async def _made_defaults(self) -> None:
        """Wait for what the controllers make in a new namespace: pods are refused without it."""
        async with self.api() as api:
            for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
                while True:
                    try:
                        await api.get(f"/api/v1/namespaces/default/{path}")
                        break
                    except ApiError as error:
                        if error.status != httpx.codes.NOT_FOUND:
                            raise
                    self._processes[Component.CONTROLLER_MANAGER].check_alive()
                    await asyncio.sleep(_READINESS_INTERVAL_SECONDS)

    async def _kill_all(self) -> None:
        for process in self._processes.values():
            await process.kill()

    async def _run(
        self, program: str, arguments: Sequence[str], *, standard_input: str | None, kubeconfig: Path | None
    ) -> str:
        home = self.data_dir / "home"
        home.mkdir(exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            str(self._binaries / program),
            *arguments,
            stdin=subprocess.DEVNULL if standard_input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Do not use caches and plugins of the person who runs the tests.
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "KUBECONFIG": str(kubeconfig or self.admin_kubeconfig),
            },
        )
        try:
            async with asyncio.timeout(_COMMAND_SECONDS):
                output, errors = await process.communicate(None if standard_input is None else standard_input.encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            command = " ".join([program, *arguments])
            printed = f"{errors.decode(errors='replace')}{output.decode(errors='replace')}".strip()
            raise CommandError(f"`{command}` ended with status {process.returncode}: {printed}")
        return output.decode()

    def _flags(self, component: Component) -> list[str]:
        match component:
            case Component.ETCD:
                return self._etcd_flags()
            case Component.API_SERVER:
                return self._api_server_flags()
            case Component.CONTROLLER_MANAGER:
                return [
                    *self._client_flags(component),
                    f"--service-account-private-key-file={self.credentials.service_account_key_file}",
                    f"--root-ca-file={self.credentials.ca_file}",
                    # Each controller acts with the rights of its own service account, as in a real cluster.
                    "--use-service-account-credentials=true",
                ]
            case Component.SCHEDULER:
                return self._client_flags(component)

    def _etcd_flags(self) -> list[str]:
        address = f"http://{HOST}:{self._ports[Component.ETCD]}"
        return [
            f"--data-dir={self.data_dir / 'etcd'}",
            f"--listen-client-urls={address}",
            f"--advertise-client-urls={address}",
            f"--listen-peer-urls=http://{HOST}:0",
            # The data need not survive a crash of the machine.
            "--unsafe-no-fsync",
        ]

    def _api_server_flags(self) -> list[str]:
        policy = self.data_dir / "audit-policy.yaml"
        policy.write_text(_AUDIT_POLICY)
        return [
            f"--etcd-servers=http://{HOST}:{self._ports[Component.ETCD]}",
            f"--bind-address={HOST}",
            f"--secure-port={self._ports[Component.API_SERVER]}",
            f"--tls-cert-file={self.credentials.serving_certificate_file}",
            f"--tls-private-key-file={self.credentials.serving_key_file}",
            f"--client-ca-file={self.credentials.ca_file}",
            f"--token-auth-file={self.credentials.token_file}",
            "--authorization-mode=Node,RBAC",
            # PodSecurity and ServiceAccount are on by default.
            "--enable-admission-plugins=NodeRestriction",
            "--service-cluster-ip-range=10.0.0.0/24",
            # The `kubernetes` Service cannot point to a loopback address; pods are told the real one instead.
            "--endpoint-reconciler-type=none",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self.credentials.service_account_key_file}",
            f"--service-account-signing-key-file={self.credentials.service_account_key_file}",
            "--allow-privileged=true",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit_log_path}",
        ]

    def _client_flags(self, component: Component) -> list[str]:
        return [
            f"--kubeconfig={self.admin_kubeconfig}",
            f"--authentication-kubeconfig={self.admin_kubeconfig}",
            f"--authorization-kubeconfig={self.admin_kubeconfig}",
            f"--bind-address={HOST}",
            f"--secure-port={self._ports[component]}",
            "--leader-elect=false",
            # Tests of width would otherwise measure the client-side rate limits of these programs.
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ]


@contextmanager
def running_control_plane(data_dir: Path, *, binaries: Path) -> Iterator[ControlPlane]:
    """Run a control plane for a fixture of any scope, outside an event loop."""
    control_plane = ControlPlane(data_dir, binaries=binaries)
    # A loop factory keeps the runner from replacing the thread's current loop, which is pytest-asyncio's.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(control_plane.start())
        try:
            yield control_plane
        finally:
            runner.run(control_plane.stop())
