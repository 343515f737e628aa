"""Tables of the reference that come from larger descriptions: the pool's schema, the gateway's routes, metrics, errors.

Knows Markdown as far as a table needs it, and nothing of the pages; `generate.py` places what is rendered here.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from fluxpool_gateway.http.problem import ProblemCode
from fluxpool_gateway.openapi import openapi_document
from fluxpool_operator.crd import custom_resource_definition, open_api_schema
from fluxpool_operator.metrics import OperatorMetrics
from fluxpool_worker.agent.engine.client import EngineClient, EngineLimits
from fluxpool_worker.agent.metrics import WorkerMetrics
from fluxpool_worker.agent.task.holds import Holds
from fluxpool_worker.agent.task.publisher import ReliablePublisher
from fluxpool_worker.engine.protocol import EngineSpec

_PASSED_THROUGH: Final = frozenset({"affinity", "labelSelector"})
"""Kubernetes' own types, whose fields its documentation has."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def one_line(text: str) -> str:
    """Text for a cell."""
    return " ".join(text.split()).replace("|", "\\|")


# The pool


def pool_tables() -> dict[str, str]:
    """Section name to the fields of a pool."""
    schema = open_api_schema()["properties"]
    return {
        "pool-spec": "\n".join(_sections(schema["spec"])),
        "pool-status": _fields_table(schema["status"], "status"),
        "pool-columns": _columns_table(),
    }


def _sections(spec: Mapping[str, Any]) -> Iterator[str]:
    """A table of the plain fields, then a section for each object."""
    objects = {name: field for name, field in spec["properties"].items() if "properties" in field}
    plain = {name: field for name, field in spec["properties"].items() if name not in objects}
    without_objects = {**spec, "properties": plain}
    yield _fields_table(without_objects, "spec") + _rules(without_objects, "spec")
    for name, field in objects.items():
        required = ", required" if name in spec.get("required", ()) else ""
        heading = f"### `{name}`{required}\n\n{one_line(field.get('description', ''))}\n\n"
        yield heading + _fields_table(field, name) + _rules(field, name)


def _fields_table(schema: Mapping[str, Any], path: str) -> str:
    rows = [
        (f"`{where}`", _type(field), default, one_line(field.get("description", "")))
        for where, field, default in _walk(schema, path)
    ]
    return table(("Field", "Type", "Default", "Meaning"), rows)


def _walk(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Each field below an object with its path and default, depth first."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        default = "required" if name in required else _default(field)
        yield here, field, default
        if name in _PASSED_THROUGH:
            continue
        yield from _walk(field, here)
        yield from _walk(field.get("items", {}), f"{here}[]")


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    if value is None or value in ({}, []) or "properties" in field:
        return ""
    return f"`{json.dumps(value)}`"


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    match field.get("type"):
        case "array":
            items = field["items"]
            return "list of objects" if "properties" in items else f"list of {_type(items)}"
        case "object":
            return "object" if "properties" in field or "additionalProperties" not in field else "map"
        case "integer" | "number":
            low, high = field.get("minimum"), field.get("maximum")
            return f"{low:,} to {high:,}" if low is not None and high is not None else "whole number"
        case "string":
            return "time" if field.get("format") == "date-time" else "text"
        case "boolean":
            return "true or false"
        case _:
            return "whole number or text"


def _rules(schema: Mapping[str, Any], path: str) -> str:
    """What the API server checks across the fields of an object and of those below it."""
    messages = list(dict.fromkeys(_messages(schema, path)))
    return "".join(("\nThe API server checks:\n\n", *(f"- {message}\n" for message in messages))) if messages else ""


def _messages(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"`{path}`: {one_line(rule['message'])}"
    for name, field in schema.get("properties", {}).items():
        if name in _PASSED_THROUGH:
            continue
        yield from _messages(field, f"{path}.{name}")
        yield from _messages(field.get("items", {}), f"{path}.{name}[]")


def _columns_table() -> str:
    (version,) = custom_resource_definition()["spec"]["versions"]
    rows = [
        (column["name"], "always" if column["priority"] == 0 else "`-o wide`", column["description"])
        for column in version["additionalPrinterColumns"]
    ]
    return table(("Column", "Shown", "Meaning"), rows)


# The gateway


def routes_table() -> str:
    """Every route of the OpenAPI document with the scopes it needs."""
    paths = openapi_document()["paths"]
    rows = [
        (f"`{method.upper()} {path}`", _scopes(operation), one_line(operation["summary"]))
        for path, operations in sorted(paths.items())
        for method, operation in operations.items()
    ]
    return table(("Route", "Scope", "Purpose"), rows)


def _scopes(operation: Mapping[str, Any]) -> str:
    scopes = [f"`{scope}`" for choice in operation.get("security", ()) for names in choice.values() for scope in names]
    return ", ".join(scopes) or "none"


def problems_table() -> str:
    """The gateway's refusals with their HTTP status."""
    rows = [(f"`{code.value}`", str(code.status.value), one_line(code.summary)) for code in ProblemCode]
    return table(("Code", "Status", "Title"), rows)


# Metrics


def operator_metrics_table() -> str:
    """The metrics of `/metrics` of the operator."""
    return _metrics_table(OperatorMetrics().registry)


def worker_metrics_table() -> str:
    """The metrics of `/metrics` of a worker; nothing is started."""
    engine = EngineClient(EngineSpec(model=""), limits=EngineLimits(job=1, silence_soft=1, silence_hard=1, load=1))
    holds = Holds(limit_seconds=1.0)
    publisher = ReliablePublisher(AIOKafkaProducer, holds=holds)
    return _metrics_table(WorkerMetrics(engine=engine, publisher=publisher, holds=holds).registry)


def _metrics_table(registry: CollectorRegistry) -> str:
    rows = [
        (
            f"`{metric.name}_total`" if metric.type == "counter" else f"`{metric.name}`",
            metric.type,
            ", ".join(f"`{label}`" for label in _labels(metric, registry)) or "none",
            one_line(metric.documentation),
        )
        for metric in sorted(registry.collect(), key=lambda metric: metric.name)
    ]
    return table(("Metric", "Kind", "Labels", "Meaning"), rows)


def _labels(metric: Metric, registry: CollectorRegistry) -> Sequence[str]:
    """Without a sample only the collector knows them, or the family that a collector of our own made."""
    collector = registry._names_to_collectors.get(metric.name)  # noqa: SLF001 - there is no public way to them
    labels: Sequence[str] = getattr(metric, "_labelnames", ()) or getattr(collector, "_labelnames", ())
    return labels
