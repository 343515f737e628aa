"""`fluxpool schema`: prints the JSON Schemas of messages, the OpenAPI and AsyncAPI documents, and the pools' CRD.

All are made from the models of this release, so they need no gateway and no network.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputFormat, OutputOptions, Result, Table, write_result, yaml_text
from fluxpool_cli.serve.rooms import require_room
from fluxpool_contract.schemas import MESSAGES, asyncapi_document, message_schema

app = typer.Typer(no_args_is_help=True, help="What messages, routes and pools look like.")


def _openapi() -> dict[str, Any]:
    require_room("gateway", purpose="the OpenAPI document")
    # All routes of the gateway: a second, for this document alone.
    from fluxpool_gateway.openapi import openapi_document  # noqa: PLC0415

    return openapi_document()


def _crd() -> dict[str, Any]:
    # As above.
    from fluxpool_operator.crd import custom_resource_definition  # noqa: PLC0415

    return custom_resource_definition()


_DOCUMENTS: Final[Mapping[str, tuple[Callable[[], dict[str, Any]], str]]] = {
    "openapi": (_openapi, "OpenAPI: the routes of the gateway."),
    "asyncapi": (asyncapi_document, "AsyncAPI: the topics of Kafka, with their messages and headers."),
    "crd": (_crd, "CustomResourceDefinition of FluxWorkerPools."),
}
_NAMES: Final = (*MESSAGES, *_DOCUMENTS)


def _name(text: str) -> str:
    """The name of a document; raises `typer.BadParameter`."""
    if text not in _NAMES:
        raise typer.BadParameter(f"{text!r} must be one of {', '.join(_NAMES)}")
    return text


@app.command(name="list")
@with_option_groups
def list_schemas(*, output: OutputOptions) -> None:
    """List what `schema print` can print."""
    rows = [
        *((name, f"JSON Schema: {_first_line(model.__doc__)}") for name, model in MESSAGES.items()),
        *((name, summary) for name, (_, summary) in _DOCUMENTS.items()),
    ]
    document = {"schemas": [{"name": name, "summary": summary} for name, summary in rows]}
    write_result(Result(document=document, parts=[Table(("NAME", "WHAT"), rows)], names=_NAMES), output)


@app.command(name="print")
@with_option_groups
def print_schema(
    name: Annotated[
        str,
        typer.Argument(
            parser=_name, metavar="NAME", autocompletion=lambda: list(_NAMES), help="A name of `schema list`."
        ),
    ],
    *,
    output: OutputOptions,
) -> None:
    """Print one schema or document.

    Without --output in its usual form: JSON, and for the CRD YAML, as in `fluxpool schema print crd | kubectl apply -f
    -`.
    """
    document = message_schema(name) if name in MESSAGES else _DOCUMENTS[name][0]()
    if output.form is OutputFormat.TABLE:
        text = yaml_text(document) if name == "crd" else json.dumps(document, indent=2, ensure_ascii=False)
        parts = text.rstrip("\n").split("\n")
    else:
        parts = []
    write_result(Result(document=document, parts=parts, names=[name]), output)


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]
