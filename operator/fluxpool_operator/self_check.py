"""`python -m fluxpool_operator.self_check`: can the operator work here? `helm test` asks so with its account.

Three kinds of checks, one line each: the definition of pools is served, every right of `access` is given in every
namespace, and brokers can be reached if addresses are given. Reads the operator's own settings, changes nothing, and
exits 1 when a check fails, after a line that says what to do; 2 when the settings are wrong.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException, NotFoundException
from kubernetes.aio.config.config_exception import ConfigException
from pydantic import TypeAdapter, ValidationError

from fluxpool_contract.settings import SettingsError
from fluxpool_contract.text_rules import BrokerAddress
from fluxpool_operator.access import AccessRule, access_rules
from fluxpool_operator.api import GROUP, PLURAL, VERSION
from fluxpool_operator.settings import OperatorSettings

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2

CONNECT_DEADLINE_SECONDS: Final = 10.0
"""Long enough for a name service that first asks every search domain of a pod."""
_APPLY_DEFINITION: Final = "kubectl apply --server-side --force-conflicts -f crds/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    subject: str
    problem: str = ""
    """What is wrong and what to do; empty when all is well."""

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
        async with _kubernetes() as connection:
            yield await check_definition(connection, settings)
            for namespace in settings.watch_namespaces or (None,):
                for rule in access_rules(pod_monitors=settings.pod_monitors):
                    yield await check_access(connection, rule, settings=settings, namespace=namespace)
    except (ConfigException, ApiException, aiohttp.ClientError, TimeoutError) as error:
        reason = _first_line(error)
        yield Check(
            subject="the Kubernetes API answers",
            problem=f"{reason}; look at the network policies of this namespace and at the pod's service account",
        )
    for host, port in brokers:
        yield await check_broker(host, port)


async def check_definition(connection: client.ApiClient, settings: OperatorSettings) -> Check:
    """Whether the API server knows pools, in the version that this operator speaks."""
    subject = f"{PLURAL}.{GROUP} is served as {VERSION}"
    found: set[str] = set()
    with suppress(NotFoundException):
        resources = await client.CustomObjectsApi(connection).get_api_resources(
            GROUP, VERSION, _request_timeout=settings.api_deadline_seconds
        )
        found = {resource.name for resource in resources.resources}
    missing = {PLURAL, f"{PLURAL}/status", f"{PLURAL}/scale"} - found
    if not missing:
        return Check(subject=subject)
    return Check(subject=subject, problem=f"{', '.join(sorted(missing))} is not; run `{_APPLY_DEFINITION}`")


async def check_access(
    connection: client.ApiClient, rule: AccessRule, *, settings: OperatorSettings, namespace: str | None
) -> Check:
    """Whether this account has the verbs of a rule in a namespace, or in all of them."""
    place = f"namespace {namespace}" if namespace else "every namespace"
    reviews = client.AuthorizationV1Api(connection)

    async def allowed(verb: str) -> bool:
        attributes = client.V1ResourceAttributes(
            group=rule.group,
            resource=rule.resource,
            subresource=rule.subresource or None,
            verb=verb,
            namespace=namespace,
        )
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        )
        answer = await reviews.create_self_subject_access_review(review, _request_timeout=settings.api_deadline_seconds)
        return answer.status is not None and answer.status.allowed

    answers = await asyncio.gather(*(allowed(verb) for verb in rule.verbs))
    refused = [verb for verb, is_allowed in zip(rule.verbs, answers, strict=True) if not is_allowed]
    subject = f"{place}: {', '.join(rule.verbs)} {rule.qualified}"
    if not refused:
        return Check(subject=subject)
    return Check(
        subject=subject,
        problem=f"{', '.join(refused)} is not allowed; it is needed {rule.why}. Install the chart with "
        "rbac.create=true and the namespace in watch.namespaces, or give this right to the account",
    )


async def check_broker(host: str, port: int) -> Check:
    """Whether a TCP connection can be opened; says nothing of encryption and credentials."""
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


@asynccontextmanager
async def _kubernetes() -> AsyncIterator[client.ApiClient]:
    """A client with the pod's account; outside a cluster that of the kubeconfig."""
    configuration = client.Configuration()
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)
    async with client.ApiClient(configuration) as connection:
        yield connection


def _first_line(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"{error.status} {error.reason}"
    return str(error).split("\n", 1)[0] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
