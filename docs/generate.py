"""Writes what comes from the code into the docs: topics, fields, settings, routes, metrics, the pool, the chart.

A table lies between `<!-- begin NAME -->` and `<!-- end NAME -->`. `python docs/generate.py` writes all of them in
place, and `llms.txt` from the index; `--check` compares and exits 1 when one differs. Knows nothing of the text around
the tables.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, SecretStr

from command_pages import command_sections
from fluxpool_contract.asyncapi import CLOUD_EVENT_HEADERS, TASK_HEADERS
from fluxpool_contract.kafka.topics import DAY_MS, HOUR_MS, TopicNames, topic_specs
from fluxpool_contract.schemas import MESSAGES
from fluxpool_contract.settings.environment import ENVIRONMENT_PREFIX, EnvironmentSettings
from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_operator.access import access_rules
from llms_text import llms_text
from reference_tables import (
    one_line,
    operator_metrics_table,
    pool_tables,
    problems_table,
    routes_table,
    table,
    worker_metrics_table,
)

FOLDER: Final = Path(__file__).parent
CHART_VALUES: Final = FOLDER.parent / "charts" / "fluxpool" / "values.yaml"
_SECTION: Final = re.compile(r"(<!-- begin (?P<name>[a-z-]+) -->\n).*?(<!-- end (?P=name) -->)", re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    """Command-line entry; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="folder of the Markdown files")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a table differs")
    options = parser.parse_args(arguments)
    tables = render_tables()
    placed: set[str] = set()
    differing: list[str] = []
    for path in sorted(options.folder.rglob("*.md")):
        before = path.read_text()
        placed |= {found["name"] for found in _SECTION.finditer(before)}
        after = _SECTION.sub(lambda found: f"{found[1]}{tables.get(found['name'], '')}{found[3]}", before)
        if before != after:
            differing.append(str(path.relative_to(options.folder)))
            if not options.check:
                path.write_text(after)
    listing = options.folder / "llms.txt"
    if (index := options.folder / "index.md").exists() and listing.read_text() != (after := llms_text(index)):
        differing.append(listing.name)
        if not options.check:
            listing.write_text(after)
    if placed != tables.keys():
        sys.stderr.write(f"tables without a place or places without a table: {sorted(placed ^ tables.keys())}\n")
        return 1
    if options.check and differing:
        sys.stderr.write(f"{', '.join(differing)}: tables differ from the code; run `python docs/generate.py`\n")
        return 1
    return 0


def render_tables() -> dict[str, str]:
    """Section name to its Markdown."""
    worker, gateway = _variables(WorkerSettings), _variables(GatewaySettings)
    shared = {name: row for name, row in worker.items() if gateway.get(name) == row}
    return {
        "topics": _topics_table(),
        "chart-values": _chart_values_table(CHART_VALUES.read_text()),
        "access-rules": _access_table(),
        "commands": command_sections(),
        "routes": routes_table(),
        "problems": problems_table(),
        "metrics-operator": operator_metrics_table(),
        "metrics-worker": worker_metrics_table(),
        **pool_tables(),
        "headers-task": table(
            ("Header", "Meaning"),
            [(f"`{name}`", meaning) for name, (_, meaning) in (TASK_HEADERS | CLOUD_EVENT_HEADERS).items()],
        ),
        **{f"fields-{name}": _fields_table(model) for name, model in MESSAGES.items()},
        "settings-shared": _settings_table(shared),
        "settings-worker": _settings_table({name: row for name, row in worker.items() if name not in shared}),
        "settings-gateway": _settings_table({name: row for name, row in gateway.items() if name not in shared}),
    }


# Topics


def _topics_table() -> str:
    rows = []
    for spec in topic_specs(TopicNames()):
        retention_ms = int(spec.config.get("retention.ms", 0))
        policy = spec.config.get("cleanup.policy", "delete")
        if policy != "delete":
            kept = "the latest of each key" + (f", {retention_ms // DAY_MS} days" if retention_ms else "")
        elif retention_ms >= DAY_MS:
            kept = f"{retention_ms // DAY_MS} days"
        else:
            kept = f"{retention_ms // HOUR_MS} hours"
        rows.append((f"`{spec.name}`", str(spec.partitions), str(spec.replication_factor), kept))
    return table(("Topic", "Partitions", "Replicas", "Kept"), rows)


# Message fields


def _fields_table(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    required = set(schema.get("required", ()))
    rows = [
        (
            f"`{name}`",
            _schema_type(field, definitions),
            "required" if name in required else _json_default(field.get("default")),
            _meaning(field.get("description"), field, definitions),
        )
        for name, field in schema["properties"].items()
    ]
    return table(("Field", "Type", "Default", "Meaning"), rows)


def _schema_type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in field:
        return _schema_type(definitions[field["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in field:
        # An open enumeration is "one of these, or any other text"; the closed part says more.
        kinds = [_schema_type(kind, definitions) for kind in field["anyOf"]]
        return " or ".join(kind for kind in dict.fromkeys(kinds) if not (kind == "text" and "`" in "".join(kinds)))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    match field.get("type"):
        case "integer" | "number" as kind:
            low, high = field.get("minimum"), field.get("maximum")
            name = "whole number" if kind == "integer" else "number"
            return name if low is None and high is None else f"{name}, {_bounds(low, high)}"
        case "string":
            longest = field.get("maxLength")
            if field.get("format") == "date-time":
                return "time (RFC 3339)"
            return f"text, at most {longest:,} characters" if longest is not None else "text"
        case "array":
            return "list"
        case "object":
            return "object"
        case "null":
            return "null"
        case "boolean":
            return "true or false"
        case kind:
            raise ValueError(f"no word for the type {kind!r} of {field}")


def _json_default(value: object) -> str:
    match value:
        case None:
            return "null"
        case [] | {}:
            return "empty"
        case _:
            return f"`{value}`"


# Settings


def _variables(model: type[EnvironmentSettings]) -> dict[str, list[str]]:
    """Variable to the cells beside it."""
    return {"_".join((ENVIRONMENT_PREFIX, *path)).upper(): cells for path, *cells in _walk(model, ())}


def _walk(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str, str, str]]:
    """The path of each field, its default, its form and its meaning."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for name, field in model.model_fields.items():
        here = (*path, name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, here)
            continue
        default = "required" if field.is_required() else _setting_default(field.get_default(call_default_factory=True))
        form = schema["properties"][name]
        yield here, default, _allowed(form, definitions), _meaning(field.description, form, definitions)


def _setting_default(value: object) -> str:
    match value:
        case None | () | "":
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case tuple() if all(isinstance(part, str) for part in value):
            return f"`{','.join(map(str, value))}`"
        case tuple():
            dumped = [part.model_dump(mode="json", exclude_defaults=True) for part in value]
            return f"`{dumped}`".replace("'", '"')
        case SecretStr():
            raise ValueError("a secret must not have a default")
        case _:
            return f"`{value}`"


def _allowed(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    kinds = [kind for kind in schema.get("anyOf", [schema]) if kind.get("type") != "null"]
    kind = kinds[0]
    if "$ref" in kind:
        kind = definitions[kind["$ref"].rpartition("/")[2]]
    if kind.get("format") in {"path", "file-path"}:
        return "path"
    if kind.get("format") == "password":
        return "secret text"
    if kind.get("type") == "array":
        items = kind.get("items", kind.get("prefixItems", {}))
        return "JSON list" if isinstance(items, Mapping) and "$ref" in items else "text, commas between"
    if "exclusiveMinimum" in kind:
        return f"{'whole number' if kind['type'] == 'integer' else 'number'}, above {kind['exclusiveMinimum']}"
    return _schema_type(kind, definitions)


def _settings_table(rows: Mapping[str, Sequence[str]]) -> str:
    return table(
        ("Variable", "Default", "Form", "Meaning"),
        [(f"`{name}`", *cells) for name, cells in rows.items()],
    )


# The chart


def _chart_values_table(text: str) -> str:
    """Each value that has a comment before it, with that comment and its default."""
    values = yaml.safe_load(text)
    rows: list[tuple[str, str, str]] = []
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        found = re.match(r"(?P<indent> *)(?P<name>[A-Za-z]+):", line)
        if line.lstrip().startswith("#"):
            comment.append(line.lstrip(" #"))
            continue
        if found:
            path = [*path[: len(found["indent"]) // 2], found["name"]]
            if comment:
                rows.append((f"`{'.'.join(path)}`", _chart_default(values, path), one_line(" ".join(comment))))
        comment = []
    return table(("Value", "Default", "Meaning"), rows)


def _chart_default(values: Any, path: Sequence[str]) -> str:
    for name in path:
        values = values[name]
    return "empty" if values in ("", [], {}) else f"`{json.dumps(values)}`"


def _access_table() -> str:
    always = access_rules(pod_monitors=False)
    rows = [
        (
            f"`{rule.qualified}`",
            ", ".join(rule.verbs),
            one_line(rule.why) + ("" if rule in always else " (with `podMonitors.enabled` only)"),
        )
        for rule in access_rules(pod_monitors=True)
    ]
    return table(("Objects", "Verbs", "Why"), rows)


# Words


def _bounds(low: float | None, high: float | None) -> str:
    match low, high:
        case None, _:
            return f"at most {high}"
        case _, None:
            return f"at least {low}"
        case _:
            return f"{low} to {high}"


def _meaning(own: str | None, field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """The field's own description, else that of its type."""
    kinds = [kind for kind in field.get("anyOf", [field]) if "$ref" in kind]
    texts = [own, *(definitions[kind["$ref"].rpartition("/")[2]].get("description") for kind in kinds)]
    return one_line(next(filter(None, texts), ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
