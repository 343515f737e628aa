"""The AsyncAPI document: valid by the specification's schema, with the topics, headers and groups of the code."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from fluxpool_contract import header_names
from fluxpool_contract.asyncapi import CLOUD_EVENT_HEADERS, TASK_HEADERS, render_asyncapi
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_contract.messages.headers import Envelope, parse_envelope, render_envelope
from fluxpool_contract.settings.worker import DEFAULT_CONSUMER_GROUP, WorkerSettings, serving_groups
from kit.gateways.keyed_gateway import keyed_gateway, keyed_settings

SPECIFICATION = Path(__file__).parents[1] / "asyncapi" / "asyncapi-3.0.0.schema.json"
CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    topics = TopicNames()
    return render_asyncapi(topics, serving_groups(DEFAULT_CONSUMER_GROUP, (), topics))


@pytest.fixture(scope="module")
def specification() -> jsonschema_rs.Draft7Validator:
    return jsonschema_rs.Draft7Validator(json.loads(SPECIFICATION.read_text()))


def test_the_document_is_valid_asyncapi(document: dict[str, Any], specification: jsonschema_rs.Draft7Validator) -> None:
    assert [(error.instance_path, error.message) for error in specification.iter_errors(document)] == []


@pytest.mark.parametrize(
    "broken",
    [
        {"asyncapi": "2.6.0"},
        {"channels": {"tasks": {"bindings": {"kafka": {"partitions": 0, "bindingVersion": "0.5.0"}}}}},
        {"operations": {"take_tasks": {"action": "publish", "channel": {"$ref": "#/channels/tasks"}}}},
    ],
)
def test_the_specification_refuses_what_is_not_asyncapi(
    document: dict[str, Any], specification: jsonschema_rs.Draft7Validator, broken: dict[str, Any]
) -> None:
    assert not specification.is_valid(document | broken)


def references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_every_reference_leads_to_something(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) > 20
    for reference in found:
        place: Any = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]
        assert place


def test_every_topic_is_a_channel_with_its_layout(document: dict[str, Any]) -> None:
    channels = {channel["address"]: channel["bindings"]["kafka"] for channel in document["channels"].values()}
    specs = {spec.name: spec for spec in topic_specs(TopicNames())}
    assert channels.keys() == specs.keys()
    for name, spec in specs.items():
        assert (channels[name]["partitions"], channels[name]["replicas"]) == (spec.partitions, spec.replication_factor)
        assert channels[name]["topicConfiguration"].keys() == spec.config.keys()


def test_the_groups_are_those_of_workers_with_the_default_settings(document: dict[str, Any]) -> None:
    settings = WorkerSettings.model_validate(
        {"kafka": {"bootstrap_servers": ["a:1"]}, "storage": {"url": "file:///images"}}
    )
    named = {
        operation["bindings"]["kafka"]["groupId"]["const"]
        for operation in document["operations"].values()
        if "bindings" in operation
    }
    assert {settings.consumer_group, settings.retry_group} <= named
    assert named == {settings.consumer_group, f"{settings.consumer_group}-vip", settings.retry_group}


def test_every_header_of_a_task_is_described_and_takes_what_is_written(document: dict[str, Any]) -> None:
    all_names = {value for name, value in vars(header_names).items() if name.isupper() and name != "HEADER_PREFIX"}
    described = document["components"]["messages"]["GenerationTask"]["headers"]
    assert described["properties"].keys() == {name for name in all_names if not name.startswith("dev.fluxpool.")}
    assert TASK_HEADERS.keys() | CLOUD_EVENT_HEADERS.keys() == described["properties"].keys()
    every = Envelope(attempt=3, crashes=1, epoch=2, tenant="acme", tenant_proof="0" * 32, priority="vip")
    headers = render_envelope(every)
    assert parse_envelope(headers) == every
    texts = {name: value.decode() for name, value in headers}
    assert jsonschema_rs.Draft202012Validator(described).is_valid(texts)
    assert not jsonschema_rs.Draft202012Validator(described).is_valid(texts | {header_names.EPOCH: "two"})


@pytest.mark.parametrize(
    ("message", "record"),
    [
        ("GenerationTask", "task-full.json"),
        ("GenerationTask", "task-smallest.json"),
        ("GenerationResult", "result-full.json"),
        ("ProgressEvent", "progress-event.json"),
        ("PoolState", "pool-state.json"),
        ("CancelCommand", "cancel-command.json"),
        ("Resolution", "resolution.json"),
    ],
)
def test_payloads_take_the_records_of_released_versions(document: dict[str, Any], message: str, record: str) -> None:
    # Its references are to the document.
    schema = {"$ref": f"#/components/schemas/{message}", "components": document["components"]}
    jsonschema_rs.Draft202012Validator(schema).validate(json.loads((CORPUS / record).read_text()))


async def test_a_gateway_serves_it_with_the_topics_and_groups_of_its_settings(
    tmp_path: Path, specification: jsonschema_rs.Draft7Validator
) -> None:
    settings = keyed_settings(tmp_path).model_copy(
        update={"topics": TopicNames(tasks="eu-tasks"), "consumer_group": "eu-workers"}
    )
    async with keyed_gateway(settings) as gateway:
        served = (await gateway.one.ask("GET", "/asyncapi.json")).json()
    assert specification.is_valid(served)
    assert served["channels"]["tasks"]["address"] == "eu-tasks"
    groups = {
        name: operation["bindings"]["kafka"]["groupId"]["const"]
        for name, operation in served["operations"].items()
        if "bindings" in operation
    }
    assert (groups["take_tasks"], groups["take_vip_tasks"]) == ("eu-workers", "eu-workers-vip")
    assert groups["take_retry_1"] == "eu-workers-retry"
