"""The custom resource definition, generated from the models.

`python -m fluxpool_operator.crd FOLDER` writes it, `--check` compares and exits 1 when it differs.
Owns the translation of pydantic's JSON Schema into the structural schemas of Kubernetes; must not know a field by name.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from fluxpool_operator.api.pool import GROUP, KIND, PLURAL, VERSION, FluxWorkerPool

FILE_NAME: Final = f"{PLURAL}.{GROUP}.yaml"
HASH_ANNOTATION: Final = f"{GROUP}/schema-hash"

_DROPPED: Final = frozenset({"title", "$defs", "additionalProperties"})
"""Pydantic's own; pruning and strict field validation do what `additionalProperties: false` says."""

_READY: Final = '.status.conditions[?(@.type=="Ready")]'
_COLUMNS: Final = (
    ("Ready", "string", f"{_READY}.status", "Status of the Ready condition.", 0),
    ("Desired", "integer", ".status.desiredReplicas", "Desired number of pods.", 0),
    ("Pods", "integer", ".status.readyReplicas", "Number of ready pods.", 0),
    ("Pending", "integer", ".status.pending", "Tasks that no worker has started.", 0),
    ("Oldest", "integer", ".status.oldestAgeSeconds", "Age of the oldest pending task, in seconds.", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the pool was created.", 0),
    ("Mode", "string", ".spec.scaling.mode", "What sets the number of workers.", 1),
    ("Min", "integer", ".spec.scaling.minReplicas", "Minimum number of workers.", 1),
    ("Max", "integer", ".spec.scaling.maxReplicas", "Maximum number of workers.", 1),
    ("InFlight", "integer", ".status.inFlight", "Tasks that workers have started.", 1),
    ("Limit", "string", ".status.plan.constraint", "Constraint that determined the number of workers.", 1),
    ("Model", "string", ".status.modelFamily", "Family of the model.", 1),
    ("License", "string", ".status.license", "License of the family's published weights.", 1),
    ("Group", "string", ".spec.kafka.consumerGroup", "Consumer group of the first lane.", 1),
    ("Message", "string", f"{_READY}.message", "Message of the Ready condition.", 1),
)
_SELECTABLE: Final = (".spec.kafka.consumerGroup", ".spec.model.id", ".spec.paused", ".spec.scaling.mode")


def open_api_schema() -> dict[str, Any]:
    """The structural schema of a pool; raises `ValueError` for a model that would leave a hole in it."""
    document = FluxWorkerPool.model_json_schema(by_alias=True)
    schema = _structural(document, definitions=document.get("$defs", {}), path=KIND)
    properties = schema["properties"]
    properties["metadata"] = {"type": "object"}
    properties["status"].pop("default", None)
    # Only objects that exist are validated, and these two texts are what `kubectl explain` shows for any kind.
    properties["apiVersion"] = {"type": "string", "description": "Version of the schema of this object."}
    properties["kind"] = {"type": "string", "description": f"Kind of this object: {KIND}."}
    schema["required"] = ["spec"]
    return schema


def custom_resource_definition() -> dict[str, Any]:
    """The complete definition; equal models give equal definitions."""
    schema = open_api_schema()
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": description, "priority": priority}
            for name, kind, path, description, priority in _COLUMNS
        ],
        "selectableFields": [{"jsonPath": path} for path in _SELECTABLE],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}", "annotations": {HASH_ANNOTATION: schema_hash(schema)}},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["fwp"],
                "categories": ["fluxpool"],
            },
            "versions": [version],
        },
    }


def schema_hash(schema: Mapping[str, Any]) -> str:
    """Hash of a schema's content, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:16]


def render_definition() -> str:
    """The definition as YAML, keys sorted."""
    text: str = yaml.safe_dump(custom_resource_definition(), sort_keys=True, width=120, allow_unicode=True)
    return "# Generated from the models of fluxpool_operator.api; run `make schemas` after a change.\n" + text


def _structural(node: Mapping[str, Any], *, definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    schema = _merged(node, definitions)
    found = {name: value for name, value in schema.items() if name not in _DROPPED}
    if properties := schema.get("properties"):
        found["properties"] = {
            name: _structural(child, definitions=definitions, path=f"{path}.{name}")
            for name, child in properties.items()
        }
        found["required"] = sorted(schema.get("required", ()))
        if not found["required"]:
            del found["required"]
    elif schema.get("type") == "object":
        values = schema.get("additionalProperties")
        if not isinstance(values, Mapping):
            raise ValueError(f"{path}: an object needs typed fields or typed values")
        found["additionalProperties"] = _structural(values, definitions=definitions, path=f"{path}.*")
    if "items" in schema:
        found["items"] = _structural(schema["items"], definitions=definitions, path=f"{path}[]")
    if "type" not in found and "x-kubernetes-int-or-string" not in found:
        raise ValueError(f"{path}: has no single type")
    if found.get("type") == "integer" and "maximum" not in found:
        found["format"] = "int64"
    if "description" in found:
        found["description"] = " ".join(found["description"].split())
    if "default" in found:
        found["default"] = _omit_absent(found["default"])
        if found["default"] is None:
            del found["default"]
    return found


def _merged(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """The node with references resolved and `anyOf: [X, null]` read as X; keywords at the field itself win."""
    if "$ref" in node:
        inner = _merged(definitions[node["$ref"].removeprefix("#/$defs/")], definitions)
    elif "anyOf" in node and "x-kubernetes-int-or-string" not in node:
        kinds = [kind for kind in node["anyOf"] if kind != {"type": "null"}]
        if len(kinds) != 1:
            return dict(node)
        inner = _merged(kinds[0], definitions)
    else:
        return dict(node)
    return inner | {name: value for name, value in node.items() if name not in {"$ref", "anyOf"}}


def _omit_absent(value: Any) -> Any:
    """A default without absent fields.

    Fields with a default of their own stay, because the API server checks the rules of a default before it fills it in.
    """
    if isinstance(value, Mapping):
        return {name: _omit_absent(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [_omit_absent(item) for item in value]
    return value


def main(arguments: Sequence[str]) -> int:
    """Command-line entry; returns the exit code."""
    folders = [Path(argument) for argument in arguments if not argument.startswith("--")]
    if len(folders) != 1 or not {argument for argument in arguments if argument.startswith("--")} <= {"--check"}:
        sys.stderr.write("usage: python -m fluxpool_operator.crd FOLDER [--check]\n")
        return 2
    path = folders[0] / FILE_NAME
    text = render_definition()
    if "--check" in arguments:
        if path.is_file() and path.read_text() == text:
            return 0
        sys.stderr.write(f"{path} differs from the models; run `make schemas`\n")
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
