"""`python -m fluxpool_operator.self_check`: whether the operator can work here. `helm test` runs it.

One line for each check: the CRD is served, the account has every right of `access` in every namespace, and the given
brokers can be reached. Reads the operator's own settings and changes nothing. Exits 1 when a check fails, whose line
names the remedy, and 2 when the settings are invalid.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kubernetes.aio.config import ConfigException
from pydantic import TypeAdapter, ValidationError

from fluxpool_contract.settings import SettingsError
from fluxpool_contract.text_rules import BrokerAddress
from fluxpool_operator.access import AccessRule, access_rules
from fluxpool_operator.api import GROUP, PLURAL, VERSION
from fluxpool_operator.cluster import ClusterClient, ClusterError, ClusterUnreachableError, connect
from fluxpool_operator.settings import OperatorSettings
from fluxpool_operator.startup import definition_problem

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

CONNECT_DEADLINE_SECONDS: Final = 10.0
"""Long enough for DNS, which tries every search domain of a pod first."""
_ACCESS_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check."""

    subject: str
    problem: str = ""
    """What is wrong and its remedy; empty when the check passed."""

    def __str__(self) -> str:
        return f"FAILED  {self.subject}: {self.problem}" if self.problem else f"ok      {self.subject}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command-line entry; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m fluxpool_operator.self_check", description=__doc__)
    parser.add_argument(
        "--kafka-bootstrap-servers", default="", metavar="HOST:PORT,...", help="brokers to reach; none when absent"
    )
    options = parser.parse_args(arguments)
    try:
        settings = OperatorSettings.from_environment(os.environ)
        brokers = [_broker(part.strip()) for part in options.kafka_bootstrap_servers.split(",") if part.strip()]
    except (SettingsError, ValueError) as error:
        sys.stderr.write(f"self_check: {error}\n")
        return EXIT_USAGE
    return EXIT_FAILED if asyncio.run(_report(settings, brokers)) else 0


async def _report(settings: OperatorSettings, brokers: Sequence[tuple[str, int]]) -> int:
    """Print every check as soon as it is done; returns how many failed."""
    failed = 0
    async for check in _checks(settings, brokers):
        failed += bool(check.problem)
        sys.stdout.write(f"{check}\n")
        sys.stdout.flush()
    return failed


async def _checks(settings: OperatorSettings, brokers: Sequence[tuple[str, int]]) -> AsyncIterator[Check]:
    try:
        async with await connect(deadline_seconds=settings.api_deadline_seconds) as cluster:
            subject = f"{PLURAL}.{GROUP} is served as {VERSION}"
            yield Check(subject=subject, problem=await definition_problem(cluster) or "")
            for namespace in settings.watch_namespaces or (None,):
                for rule in access_rules(pod_monitors=settings.pod_monitors):
                    yield await check_access(cluster, rule, namespace=namespace)
    except (ConfigException, ClusterError, ClusterUnreachableError) as error:
        yield Check(
            subject="the Kubernetes API answers",
            problem=f"{_first_line(error)}; check the network policies of this namespace and the pod's service account",
        )
    for host, port in brokers:
        yield await check_broker(host, port)


async def check_access(cluster: ClusterClient, rule: AccessRule, *, namespace: str | None) -> Check:
    """Whether this account has the verbs of a rule in a namespace, or in all of them."""
    place = f"namespace {namespace}" if namespace else "every namespace"

    async def is_allowed(verb: str) -> bool:
        attributes = {
            "group": rule.group,
            "resource": rule.resource,
            "subresource": rule.subresource,
            "verb": verb,
            "namespace": namespace or "",
        }
        review = {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": attributes}}
        answer = await cluster.create(_ACCESS_REVIEWS, {"apiVersion": "authorization.k8s.io/v1", **review})
        return bool(answer.get("status", {}).get("allowed"))

    answers = await asyncio.gather(*map(is_allowed, rule.verbs))
    refused = [verb for verb, allowed in zip(rule.verbs, answers, strict=True) if not allowed]
    subject = f"{place}: {', '.join(rule.verbs)} {rule.qualified}"
    if not refused:
        return Check(subject=subject)
    return Check(
        subject=subject,
        problem=f"{', '.join(refused)} is not allowed; it is needed {rule.why}. Install the chart with "
        "rbac.create=true and the namespace in watch.namespaces, or grant the account this right",
    )


async def check_broker(host: str, port: int) -> Check:
    """Whether a TCP connection can be opened; tests neither encryption nor credentials."""
    subject = f"Kafka listens on {host}:{port}"
    try:
        async with asyncio.timeout(CONNECT_DEADLINE_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        reason = _first_line(error) or f"no answer within {CONNECT_DEADLINE_SECONDS:.0f} s"
        return Check(
            subject=subject,
            problem=f"{reason}; check the address, the brokers' listeners and the network policies",
        )
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return Check(subject=subject)


def _broker(address: str) -> tuple[str, int]:
    try:
        valid = TypeAdapter[str](BrokerAddress).validate_python(address)
    except ValidationError as error:
        raise ValueError(
            f"--kafka-bootstrap-servers: {error.errors()[0]['msg'].removeprefix('Value error, ')}"
        ) from None
    host, _, port = valid.rpartition(":")
    return host.strip("[]"), int(port)


def _first_line(error: Exception) -> str:
    return str(error).split("\n", 1)[0] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
