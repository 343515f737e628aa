"""Requests that schemathesis makes of the OpenAPI document, sent to a real gateway: every response is as it says."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_gateway.identity import new_key
from kit.brokers.kafka import create_topics
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway

pytestmark = pytest.mark.kafka

REQUESTS = 10
"""Of each operation and kind."""
SECONDS = 30
"""Longest wait for a response; `Prefer: wait` is bounded by the document."""
STREAMS = {"/v1/generations/{request_id}/events", "/v1/events", "/v1/images/generations"}
"""Their responses end with the task, and there is no worker here."""
# Not whether a request should have been refused: rules between fields, such as those of sizes, are not in a schema.
CONFORMS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture
async def topics(kafka: KafkaCluster) -> TopicNames:
    topics = await gateway_topics(kafka.bootstrap_servers)
    control = f"{topics.tasks}-control"
    await create_topics(kafka.bootstrap_servers, {control: 1})
    return topics.model_copy(update={"control": control})


@pytest.fixture
def first_key() -> str:
    return new_key()


@pytest.fixture
def gateway(kafka: KafkaCluster, topics: TopicNames, first_key: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    (tmp_path / "key").write_text(first_key)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics, bootstrap_key_file=tmp_path / "key")
    with running_gateway(settings) as started:
        yield started


def test_every_response_is_in_the_schema_and_none_is_a_server_error(gateway: GatewayProcess, first_key: str) -> None:
    schema = schemathesis.openapi.from_url(f"{gateway.url}openapi.json")
    headers = {"authorization": f"Bearer {first_key}"}
    task = {"prompt": "a fox", "group_id": "foxes"}
    accepted = httpx.post(f"{gateway.url}v1/generations", headers=headers, json=task).raise_for_status().json()
    known = {"request_id": accepted["request_id"], "group_id": "foxes"}
    operations = [
        result.ok()
        for result in schema.get_all_operations()
        if isinstance(result, Ok) and result.ok().path not in STREAMS
    ]
    assert len(operations) >= 16
    for operation in operations:
        send(operation, GenerationMode.POSITIVE, headers)
        # Of a task that there is.
        send(operation, GenerationMode.POSITIVE, headers, known)
        if operation.body:
            send(operation, GenerationMode.NEGATIVE, headers)
    assert "request_failed" not in gateway.log()


def send(
    operation: "APIOperation[Any, Any, Any, Any]",
    mode: GenerationMode,
    headers: dict[str, str],
    known: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Send requests of an operation; `known` are values for the parameters of paths that have these names."""

    @settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: "Case[Any]") -> None:
        case.path_parameters.update({name: known[name] for name in known.keys() & case.path_parameters.keys()})
        case.call_and_validate(headers=headers, checks=CONFORMS, timeout=SECONDS)

    check()
