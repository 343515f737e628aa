"""The AsyncAPI 3.0 document of the topics: what lies on them, with which keys and headers, and who reads or writes it.

Generated from the models. `fluxpool_contract.schemas` writes it with the default names of topics and groups; a gateway
serves it with those of its settings.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from fluxpool_contract import header_names as names
from fluxpool_contract.kafka.retries import retry_group
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.dead_letter import DEAD_LETTER_PREFIX, DeadLetter
from fluxpool_contract.messages.feedback import Comparison, Rating
from fluxpool_contract.messages.pool_state import PoolState
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_contract.messages.resolution import RESOLUTION, Resolution, ResolutionAction
from fluxpool_contract.messages.result import GenerationResult
from fluxpool_contract.messages.task import GenerationTask

Document = dict[str, Any]

ASYNCAPI_VERSION: Final = "3.0.0"
_BINDING_VERSION: Final = "0.5.0"
_TIME: Final[Document] = {"type": "string", "format": "date-time"}
_COUNT: Final[Document] = {"type": "string", "pattern": "^[0-9]{1,18}$"}
_TEXT: Final[Document] = {"type": "string"}

TASK_HEADERS: Final[dict[str, tuple[Document, str]]] = {
    names.FIRST_SEEN: (
        _TIME,
        "When the task entered the system; decides the day in the object key. Absent: the record's timestamp.",
    ),
    names.TENANT: (
        {"type": "string", "pattern": "^[a-z0-9][a-z0-9-]{0,62}$", "default": "default"},
        "First segment of the object key, `a-z 0-9 -`, at most 63 characters. Absent: `default`.",
    ),
    names.TENANT_PROOF: (
        {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "Proof that a gateway decided the tenant; workers pass it on to results and progress.",
    ),
    names.PRIORITY: (
        {"type": "string", "examples": ["standard", "vip"]},
        "`standard` or `vip`, informational: the topic decides.",
    ),
    names.ATTEMPT: (_COUNT, "Number of the next attempt, from 1."),
    names.CRASHES: (
        _COUNT,
        "Engines and workers that have died during this task, from 0; at `FLUXPOOL_MAX_CRASHES` it is a `crash-loop`.",
    ),
    names.EPOCH: (_COUNT, "Incremented by a replay, so that it has its own folder and event id; from 0."),
    names.REPLAY_OF: (_TEXT, "Dead letter that a replay came from: topic, partition/offset."),
    names.DEADLINE: (
        _TIME,
        (
            "Time after which the images are useless: the task then ends as `expired`, and is not begun when it cannot "
            "be in time."
        ),
    ),
    names.NOT_BEFORE: (_TIME, "On a retry topic: when the task is due."),
    names.ORIGIN_TOPIC: (
        _TEXT,
        (
            "On a retry topic: the lane topic that the task came from and returns to; used only if it is a lane of the "
            "pool that relays the record."
        ),
    ),
    names.ORIGIN_PARTITION: (_COUNT, "On a retry topic: partition of the task's first record in that topic."),
    names.ORIGIN_OFFSET: (_COUNT, "On a retry topic: offset of that record."),
    names.ERROR_CLASS: (_TEXT, "On retry topics: class of the failure."),
    names.ERROR_CODE: (_TEXT, "On retry topics: code of the failure."),
    names.TRACEPARENT: (_TEXT, "W3C trace context, passed from the HTTP request to the record."),
    names.TRACESTATE: (_TEXT, "Its second header."),
}
"""Each header of a task but those of CloudEvents, with its schema and meaning; none is required."""

CLOUD_EVENT_HEADERS: Final[dict[str, tuple[Document, str]]] = {
    names.CE_SPECVERSION: ({"type": "string", "const": "1.0"}, "CloudEvents 1.0 in binary mode."),
    names.CE_ID: (_TEXT, "Id of the event; the same for a record that is written again."),
    names.CE_TYPE: (_TEXT, "Type of the event."),
    names.CE_SOURCE: (_TEXT, "Who wrote the record."),
    names.CE_SUBJECT: (_TEXT, "The `request_id`."),
    names.CE_TIME: (_TIME, "When it happened."),
    names.CONTENT_TYPE: (_TEXT, "Media type of the value."),
}
_CARRIED_ON: Final = (names.TENANT, names.TENANT_PROOF, names.EPOCH, names.TRACEPARENT, names.TRACESTATE)
_KEY: Final = "The `request_id`."
_OPTIONAL_KEY: Final = "The `request_id`; may be absent: the task names itself."


def render_asyncapi(topics: TopicNames, groups: Mapping[str, str]) -> Document:
    """The document; `groups` are the workers' consumer groups with their topics, that of the first lane first."""
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "info": {
            "title": "Fluxpool",
            "version": "1",
            "description": "Text to image through Kafka: tasks in, results out. New versions only add fields; readers "
            "ignore and keep unknown ones.",
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrap_servers}",
                "protocol": "kafka",
                "description": "The Kafka cluster of gateways and workers.",
                "variables": {"bootstrap_servers": {"default": "localhost:9092"}},
            }
        },
        "channels": _channels(topics),
        "operations": _operations(topics, groups),
        "components": {"messages": _messages(), "schemas": _schemas()},
    }


def _channels(topics: TopicNames) -> Document:
    specs = {spec.name: spec for spec in topic_specs(topics)}
    found = {}
    for role, description, messages in _CHANNELS:
        for channel, topic in _named(role, getattr(topics, role)):
            spec = specs[topic]
            configuration: Document = {
                name: value.split(",") if name == "cleanup.policy" else int(value) if value.isdecimal() else value
                for name, value in spec.config.items()
            }
            found[channel] = {
                "address": topic,
                "description": description,
                "messages": {message: _ref("messages", message) for message in messages},
                "bindings": {
                    "kafka": {
                        "topic": topic,
                        "partitions": spec.partitions,
                        "replicas": spec.replication_factor,
                        "topicConfiguration": configuration,
                        "bindingVersion": _BINDING_VERSION,
                    }
                },
            }
    return found


def _named(role: str, topics: str | tuple[str, ...]) -> Iterable[tuple[str, str]]:
    if isinstance(topics, str):
        return [(role, topics)]
    return [(f"{role}_{number}", topic) for number, topic in enumerate(topics, start=1)]


_CHANNELS: Final = (
    ("tasks", "Standard tasks. Any producer may write them.", ("GenerationTask",)),
    ("tasks_vip", "Tasks that begin before standard ones. Any producer may write them.", ("GenerationTask",)),
    ("results", "One result for every task, however it ended.", ("GenerationResult", "Deletion")),
    ("progress", "Progress of running tasks; may be incomplete.", ("ProgressEvent",)),
    ("retry", "Tasks that wait for another attempt; workers write and read it.", ("GenerationTask",)),
    ("control", "Commands to all workers.", ("CancelCommand",)),
    ("dead_letters", "Records that could not be turned into images, and what was done.", ("DeadLetter", "Resolution")),
    ("pools", "What the operator decided for each pool, and its workers.", ("PoolState",)),
    (
        "feedback",
        "Ratings and comparisons of images; the last one of each key counts.",
        ("Rating", "Comparison", "Withdrawal"),
    ),
)
"""Role of the topic, its description and its messages."""


def _operations(topics: TopicNames, groups: Mapping[str, str]) -> Document:
    serving = {topic: group for group, topic in groups.items()}
    offsets_of_retries = retry_group(next(iter(groups)))
    retry_channels = [channel for channel, _ in _named("retry", topics.retry)]
    return {
        "take_tasks": _operation("receive", "tasks", "Workers take tasks.", group=serving.get(topics.tasks)),
        "take_vip_tasks": _operation(
            "receive", "tasks_vip", "Workers take tasks.", group=serving.get(topics.tasks_vip)
        ),
        "send_results": _operation("send", "results", "Workers write the end of every task; a gateway, deletions."),
        "send_progress": _operation("send", "progress", "Workers write each phase and step."),
        **{
            f"send_{channel}": _operation("send", channel, "Workers write tasks that failed in a way that may pass.")
            for channel in retry_channels
        },
        **{
            f"take_{channel}": _operation(
                "receive",
                channel,
                "One worker of a pool writes tasks that are due to their lane. The group only keeps offsets.",
                group=offsets_of_retries,
            )
            for channel in retry_channels
        },
        "obey_commands": _operation("receive", "control", "Every worker reads all commands, without a group."),
        "send_pool_states": _operation("send", "pools", "The operator writes the state of each pool."),
        "read_pool_states": _operation("receive", "pools", "Every gateway process reads all states, without a group."),
        "send_dead_letters": _operation(
            "send",
            "dead_letters",
            "Workers write what they refuse or give up, and the gateway and `fluxpool dlq` what was done.",
        ),
        "send_feedback": _operation("send", "feedback", "A gateway writes what people say of images."),
    }


def _operation(action: str, channel: str, summary: str, *, group: str | None = None) -> Document:
    operation: Document = {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}
    if group is not None:
        operation["bindings"] = {
            "kafka": {"groupId": {"type": "string", "const": group}, "bindingVersion": _BINDING_VERSION}
        }
    return operation


def _messages() -> Document:
    carried = {name: TASK_HEADERS[name] for name in _CARRIED_ON}
    tenant = {name: TASK_HEADERS[name] for name in (names.TENANT, names.TENANT_PROOF)}
    return {
        "GenerationTask": _message(GenerationTask, key=_OPTIONAL_KEY, headers={**TASK_HEADERS, **CLOUD_EVENT_HEADERS}),
        "GenerationResult": _message(GenerationResult, key=_KEY, headers={**carried, **CLOUD_EVENT_HEADERS}),
        "Deletion": {
            "name": "Deletion",
            "summary": "Deletes the task with this key, its images and its result: a record without a value.",
            "headers": _headers(tenant),
            "payload": {"type": "null"},
            "bindings": _key_binding(_KEY),
        },
        "ProgressEvent": _message(ProgressEvent, key=_KEY, headers={**carried, **CLOUD_EVENT_HEADERS}),
        "CancelCommand": _message(
            CancelCommand,
            key=_KEY,
            headers={
                names.CONTENT_TYPE: CLOUD_EVENT_HEADERS[names.CONTENT_TYPE],
                names.TENANT: TASK_HEADERS[names.TENANT],
                names.EPOCH: (_COUNT, "The replay that is canceled."),
            },
        ),
        "DeadLetter": {
            "name": "DeadLetter",
            "summary": "A record that was refused or given up, as it was; its headers say why.",
            "headers": _dead_letter_headers(),
            # Whatever anybody wrote to a task topic.
            "payload": {},
            "bindings": _key_binding("That of the original, if any."),
        },
        "Resolution": _message(
            Resolution,
            key="The `request_id`, if the dead letter has one.",
            headers={
                RESOLUTION: (
                    {"type": "string", "enum": [str(action) for action in ResolutionAction]},
                    "Tells a resolution from a dead letter; what was done.",
                ),
                **CLOUD_EVENT_HEADERS,
            },
        ),
        "PoolState": _message(
            PoolState,
            key="`namespace/pool`; a record without a value says that the pool was deleted.",
            headers=CLOUD_EVENT_HEADERS,
        ),
        "Rating": _message(Rating, key="The `rating_id`.", headers=tenant),
        "Comparison": _message(Comparison, key="The `rating_id`.", headers=tenant),
        "Withdrawal": {
            "name": "Withdrawal",
            "summary": "Takes back the rating or comparison with this key: a record without a value.",
            "headers": _headers(tenant),
            "payload": {"type": "null"},
            "bindings": _key_binding("The `rating_id`."),
        },
    }


def _message(model: type, *, key: str, headers: Mapping[str, tuple[Document, str]]) -> Document:
    return {
        "name": model.__name__,
        "summary": (model.__doc__ or "").strip().partition("\n")[0],
        "headers": _headers(headers),
        "payload": _ref("schemas", model.__name__),
        "bindings": _key_binding(key),
    }


def _headers(headers: Mapping[str, tuple[Document, str]]) -> Document:
    properties = {name: {**schema, "description": meaning} for name, (schema, meaning) in headers.items()}
    return {"type": "object", "properties": properties}


def _dead_letter_headers() -> Document:
    """The model's fields, which are headers; values are text, as of all headers."""
    fields = DeadLetter.model_fields
    headers = {
        f"{DEAD_LETTER_PREFIX}{name.replace('_', '-')}": (_TEXT, field.description or name.replace("_", " "))
        for name, field in fields.items()
    }
    required = [header for header, field in zip(headers, fields.values(), strict=True) if field.is_required()]
    return {**_headers(headers), "required": required}


def _key_binding(description: str) -> Document:
    return {"kafka": {"key": {"type": "string", "description": description}, "bindingVersion": _BINDING_VERSION}}


def _schemas() -> Document:
    models = (
        GenerationTask,
        GenerationResult,
        ProgressEvent,
        CancelCommand,
        PoolState,
        Resolution,
        Rating,
        Comparison,
    )
    _, schema = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    definitions: Document = schema["$defs"]
    return definitions


def _ref(kind: str, name: str) -> Document:
    return {"$ref": f"#/components/{kind}/{name}"}
