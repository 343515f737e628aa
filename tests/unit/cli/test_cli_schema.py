"""`fluxpool schema`: what it prints is what the models, the gateway and the operator have."""

import json
from pathlib import Path

import pytest
import yaml

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import run
from fluxpool_cli.schema.commands import _NAMES
from fluxpool_contract.schemas import render_schemas
from fluxpool_gateway.openapi import openapi_document
from kit.commands.every_form import Case, assert_every_form

ROOT = Path(__file__).parents[3]


def printed(name: str, capsys: pytest.CaptureFixture[str], *form: str) -> str:
    assert run(["schema", "print", name, *form]) == ExitCode.OK
    return capsys.readouterr().out


def test_messages_and_topics_are_those_of_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    for file, text in render_schemas().items():
        name = file.removesuffix(".json").removesuffix(".schema")
        assert printed(name, capsys) == text
        assert json.loads(printed(name, capsys, "--json")) == json.loads(text)


def test_the_definition_of_pools_is_the_one_of_the_chart(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = yaml.safe_load((ROOT / "crds" / "fluxworkerpools.fluxpool.dev.yaml").read_text())
    # As kubectl takes it, and for programs.
    assert yaml.safe_load(printed("crd", capsys)) == json.loads(printed("crd", capsys, "-o", "json")) == shipped


def test_the_openapi_document_is_the_one_of_the_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed("openapi", capsys)) == json.loads(json.dumps(openapi_document()))


def test_a_name_that_is_none_is_refused_with_all_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "print", "generation"]) == ExitCode.USAGE
    told = capsys.readouterr().err
    assert all(name in told for name in _NAMES)


@pytest.mark.parametrize(
    "case",
    [
        Case("schema list", "asyncapi", "[a-z-]+"),
        Case("schema print rating", '"artifacts"', "rating", prose=True),
        Case("schema print crd", "kind: CustomResourceDefinition", "crd", prose=True),
    ],
    ids=lambda case: case.line,
)
async def test_the_output_has_every_form(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    async def filled(line: str) -> list[str]:
        return line.split()

    await assert_every_form(case, filled)
