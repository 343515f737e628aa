"""The CRD matches its file, and every field has a description and bounds."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from fluxpool_operator import crd
from fluxpool_operator.api import Reason
from fluxpool_operator.api.schema import ApiModel
from kit.scaling.pool_refusals import RULE_REFUSALS
from kit.waiting import PATIENCE

ROOT = Path(__file__).parents[3]
SCHEMA = crd.open_api_schema()
DEFINITION = crd.custom_resource_definition()


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every nested schema by its path, as in `kubectl explain`."""
    for name, child in schema.get("properties", {}).items():
        below = f"{path}.{name}".removeprefix(".")
        yield below, child
        yield from _nodes(child, below)
    for inner in ("items", "additionalProperties"):
        if inner in schema:
            yield f"{path}[]", schema[inner]
            yield from _nodes(schema[inner], f"{path}[]")


NODES = dict(_nodes(SCHEMA))


def _rules() -> list[dict[str, str]]:
    return [rule for node in (SCHEMA, *NODES.values()) for rule in node.get("x-kubernetes-validations", [])]


def test_the_file_matches_the_models() -> None:
    assert (ROOT / "crds" / crd.FILE_NAME).read_text() == crd.render_definition(), "run `make schemas`"


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new"
    assert crd.main([str(folder), "--check"]) == 1
    assert crd.main([str(folder)]) == 0
    assert crd.main([str(folder), "--check"]) == 0
    path = folder / crd.FILE_NAME
    path.write_text(path.read_text() + "# edited\n")
    assert crd.main([str(folder), "--check"]) == 1
    assert "run `make schemas`" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--chek"]])
def test_the_command_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(arguments) == 2
    assert "usage: python -m fluxpool_operator.crd FOLDER [--check]" in capsys.readouterr().err


def test_another_process_writes_the_same(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "fluxpool_operator.crd", str(tmp_path)], check=True, timeout=60 * PATIENCE)
    assert (tmp_path / crd.FILE_NAME).read_text() == crd.render_definition()


@pytest.mark.parametrize("path", [path for path in NODES if not path.endswith("[]") and path != "metadata"])
def test_every_field_is_explained(path: str) -> None:
    text = NODES[path].get("description", "")
    assert text, "give the field a docstring"
    assert text.endswith(".")


def test_no_unknown_field_is_preserved() -> None:
    for path, node in {"": SCHEMA, **NODES}.items():
        assert not {key for key in node if key.startswith("x-kubernetes-preserve")}, path
        if node.get("type") == "object" and path != "metadata":
            assert "properties" in node or "additionalProperties" in node, path
        assert node.get("additionalProperties") is not True, path
        assert not {"$ref", "title", "const", "oneOf", "allOf", "$defs"} & node.keys(), path


def test_everything_is_bounded() -> None:
    unbounded = []
    for path, node in NODES.items():
        match node.get("type"):
            case "string" if "enum" not in node and node.get("format") != "date-time":
                bound = "maxLength"
            case "array":
                bound = "maxItems"
            case "object" if "additionalProperties" in node:
                bound = "maxProperties"
            case "integer" if path.startswith("spec."):
                bound = "maximum"
            case _:
                continue
        if bound not in node and path not in {"apiVersion", "kind"}:
            unbounded.append(f"{path}: {bound}")
    assert unbounded == []


def test_every_list_declares_its_list_type() -> None:
    for path, node in NODES.items():
        if node.get("type") != "array":
            continue
        kind = node["x-kubernetes-list-type"]
        if kind == "map":
            fields = node["items"]
            for key in node["x-kubernetes-list-map-keys"]:
                assert key in fields["required"], path
    assert NODES["status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]


def test_every_rule_is_broken_by_a_test() -> None:
    messages = {rule["message"] for rule in _rules()}
    assert messages == {refusal.message for refusal in RULE_REFUSALS}


def test_every_rule_names_its_field() -> None:
    for rule in _rules():
        named, _, remedy = rule["message"].partition(": ")
        if not rule["message"].startswith("the address must"):
            assert re.fullmatch(r"[A-Za-z.]+", named), rule
            assert remedy, rule
        if place := rule.get("fieldPath"):
            assert any(path.endswith(place) for path in NODES), rule


def test_it_fits_the_annotation_of_client_side_apply() -> None:
    # kubectl keeps the applied text in an annotation, and those of one object have 256 KiB together.
    assert len(json.dumps(DEFINITION)) < 256 * 1024


def test_columns_and_selectable_fields_point_to_fields() -> None:
    (version,) = DEFINITION["spec"]["versions"]
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].removeprefix(".")
        if path.startswith("metadata.") or "[?(" in path:
            continue
        assert NODES[path]["type"] == column["type"], column
    for selectable in version["selectableFields"]:
        assert NODES[selectable["jsonPath"].removeprefix(".")]["type"] in {"string", "boolean"}
    first = [column["name"] for column in version["additionalPrinterColumns"] if column["priority"] == 0]
    assert first == ["Ready", "Desired", "Pods", "Pending", "Oldest", "Age"]


def test_scale_reads_existing_fields() -> None:
    (version,) = DEFINITION["spec"]["versions"]
    assert version["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }
    # GET of the scale subresource fails while the field is absent.
    assert NODES["spec.replicas"]["default"] == 1
    assert {"status.replicas", "status.selector"} <= NODES.keys()


def test_the_short_name_and_the_category() -> None:
    names = DEFINITION["spec"]["names"]
    assert (names["kind"], names["shortNames"], names["categories"]) == ("FluxWorkerPool", ["fwp"], ["fluxpool"])


def test_the_hash_is_that_of_the_schema() -> None:
    assert DEFINITION["metadata"]["annotations"][crd.HASH_ANNOTATION] == crd.schema_hash(SCHEMA)
    assert crd.schema_hash(dict(reversed(SCHEMA.items()))) == crd.schema_hash(SCHEMA)
    assert crd.schema_hash(SCHEMA | {"description": "another"}) != crd.schema_hash(SCHEMA)


def test_status_words_may_grow_without_a_new_definition() -> None:
    condition = NODES["status.conditions[].reason"]
    assert "enum" not in condition
    assert all(len(reason) <= condition["maxLength"] for reason in Reason)


def test_a_model_with_an_open_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hole(ApiModel):
        """A pool with anything in it."""

        metadata: dict[str, str]
        spec: Annotated[dict[str, Any], Field(max_length=1)]

    monkeypatch.setattr(crd, "FluxWorkerPool", Hole)
    with pytest.raises(ValueError, match=r"FluxWorkerPool\.spec"):
        crd.open_api_schema()
