"""Runs kubectl: it knows the user's contexts, and the programs that log in to a cluster."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode

DEADLINE_SECONDS: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """Which cluster and namespace, as options of kubectl."""

    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Namespace; by default that of the context.")
    ] = None
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Pools of all namespaces.")] = False
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig.")] = None
    kubeconfig: Annotated[Path | None, typer.Option(help="File of contexts; by default that of kubectl.")] = None

    def get(self, *words: str, deadline_seconds: float = DEADLINE_SECONDS) -> Any:
        """The document of `kubectl get`.

        Raises `CommandError`: 3 when the cluster does not answer or there is no kubectl, 4 without permission, else 2.
        """
        if shutil.which("kubectl") is None:
            raise CommandError(ExitCode.UNREACHABLE, "there is no kubectl on the PATH; install it")
        scope = (
            ["--all-namespaces"] if self.all_namespaces else [f"--namespace={self.namespace}"] * bool(self.namespace)
        )
        chosen = {"--context": self.context, "--kubeconfig": self.kubeconfig}
        options = [f"{name}={value}" for name, value in chosen.items() if value is not None]
        command = [
            "kubectl",
            "get",
            *words,
            *scope,
            *options,
            "-o",
            "json",
            f"--request-timeout={deadline_seconds:.0f}s",
        ]
        try:
            ended = subprocess.run(  # noqa: S603 - no shell; an option cannot become another one
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                # JSON is UTF-8, whatever the locale.
                encoding="utf-8",
                errors="replace",
                check=False,
                # A program that logs in may hang as well.
                timeout=deadline_seconds + 5,
            )
        except subprocess.TimeoutExpired:
            raise CommandError(
                ExitCode.UNREACHABLE, f"kubectl did not end within {deadline_seconds + 5:.0f} s; check the context"
            ) from None
        if ended.returncode:
            # Before its sentence it may log every attempt.
            raise _failure(ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "it said nothing")
        return json.loads(ended.stdout)


def _failure(reason: str) -> CommandError:
    if "Forbidden" in reason or "Unauthorized" in reason or "must be logged in" in reason:
        return CommandError(ExitCode.UNAUTHORIZED, f"kubectl: {reason}")
    if "doesn't have a resource type" in reason:
        return CommandError(
            ExitCode.USAGE, f"the cluster has no FluxWorkerPools ({reason}); install the chart with its CRD"
        )
    refused = "NotFound" in reason or "does not exist" in reason
    return CommandError(ExitCode.USAGE if refused else ExitCode.UNREACHABLE, f"kubectl: {reason}")
