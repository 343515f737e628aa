"""`fluxpool keys`: create, list, rotate and revoke the API keys of a gateway, by its HTTP routes.

By HTTP, not in the database: on Kubernetes that is a file in the volume of the gateway's pod, whose image has no
command line, and the gateway logs who changed which key. Its first key comes from a file (`generate` makes one).
"""

import re
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.options import parse_duration_option, with_option_groups
from fluxpool_cli.submit.commands import UrlOption
from fluxpool_cli.submit.gateway_client import API_KEY_VARIABLE, GatewayClient, default_gateway_url
from fluxpool_cli.terminal import OutputOptions, say, write_json, write_line, write_table
from fluxpool_gateway.identity import KeyScope, new_key, parse_key

PATH: Final = "/v1/keys"
_KEY_ID: Final = re.compile(r"[0-9A-Za-z]{12}")
_PAGE: Final = "1000"
_DEFAULT: Final = tuple(scope for scope in KeyScope if scope is not KeyScope.ADMIN)

app = typer.Typer(no_args_is_help=True, help="API keys of a gateway: create, list, rotate and revoke them.")

KeyIdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `list` shows it, or the key.")]


@app.command()
def generate() -> None:
    """Print a new random key, without any gateway: for the Secret or file that a gateway takes its first key from."""
    write_line(new_key())


@app.command()
@with_option_groups
def create(
    name: Annotated[str, typer.Argument(help="Who uses the key, and for what.")],
    *,
    scope: Annotated[
        list[KeyScope] | None,
        typer.Option(help="What the key allows; may be repeated. All but admin by default."),
    ] = None,
    tenant: Annotated[str, typer.Option(help="Whose tasks are submitted and seen with the key.")] = "default",
    expires: Annotated[str | None, typer.Option(help="When it expires: 12h or 90d from now. Never by default.")] = None,
    priority: Annotated[
        list[str] | None,
        typer.Option(help="standard or vip: what its tasks may be; may be repeated. standard by default."),
    ] = None,
    quality: Annotated[
        list[str] | None,
        typer.Option(help="exact or fast: what its tasks may be, and have to name; may be repeated. All by default."),
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="LoRA that its tasks may use; may be repeated. All by default.")
    ] = None,
    url: UrlOption = None,
    output: OutputOptions,
) -> None:
    """Create a key and print it. It is shown this once; the gateway keeps only its hash.

    FLUXPOOL_API_KEY is a key with the scope admin, as for all commands that change or list keys.
    """
    body: dict[str, Any] = {"name": name, "tenant": tenant, "scopes": [one.value for one in scope or _DEFAULT]}
    rights = {"priorities": priority, "qualities": quality, "loras": lora}
    body |= {field: values for field, values in rights.items() if values}
    if expires is not None:
        body["expires_in_seconds"] = parse_duration_option(expires, option="--expires")
    _show_new(_ask("POST", PATH, url=url, body=body), output)


@app.command("list")
@with_option_groups
def list_keys(*, url: UrlOption = None, output: OutputOptions) -> None:
    """List the keys of all tenants, also expired and revoked ones; the keys themselves are not shown."""
    keys: list[Mapping[str, Any]] = []
    after: str | None = ""
    with closing(_client(url)) as gateway:
        while after is not None:
            page = gateway.document("GET", PATH, query={"after": after, "limit": _PAGE})
            keys += _objects(page.get("keys"))
            following = page.get("next")
            # Ids rise from page to page; a server that is no gateway must not keep this in a loop.
            after = following if isinstance(following, str) and following > after else None
    keys.sort(key=lambda key: str(key.get("created_at")))
    if output.json:
        write_json({"keys": keys})
        return
    columns = ("ID", "NAME", "TENANT", "STATE", "SCOPES", "CREATED", "EXPIRES", "LAST USED")
    rows = [
        (
            str(key.get("id")),
            str(key.get("name")),
            str(key.get("tenant")),
            str(key.get("state")),
            ",".join(map(str, key.get("scopes") or ())),
            *(_minute(key.get(field)) for field in ("created_at", "expires_at", "last_used_at")),
        )
        for key in keys
    ]
    write_table(columns, rows, optional=("CREATED", "LAST USED", "EXPIRES"))


@app.command()
@with_option_groups
def rotate(
    key_id: KeyIdArgument,
    *,
    overlap: Annotated[str, typer.Option(help="How long the old key is still accepted, at most 30d.")] = "24h",
    url: UrlOption = None,
    output: OutputOptions,
) -> None:
    """Replace a key by a new one with the same name, tenant, scopes and lifetime, and print the new one."""
    body = {"overlap_seconds": parse_duration_option(overlap, option="--overlap")}
    _show_new(_ask("POST", f"{PATH}/{_checked_id(key_id)}/rotate", url=url, body=body), output)
    say(f"key {_checked_id(key_id)} is accepted for {overlap} more")


@app.command()
@with_option_groups
def revoke(key_id: KeyIdArgument, *, url: UrlOption = None, output: OutputOptions) -> None:
    """Revoke a key: within seconds no process of the gateway accepts it. This cannot be undone."""
    document = _ask("DELETE", f"{PATH}/{_checked_id(key_id)}", url=url)
    if output.json:
        write_json(document)
    else:
        write_line(f"{document.get('id')} {document.get('state')}")


def _client(url: str | None) -> GatewayClient:
    return GatewayClient(url or default_gateway_url())


def _ask(method: str, path: str, *, url: str | None, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    with closing(_client(url)) as gateway:
        return gateway.document(method, path, body=body)


def _checked_id(text: str) -> str:
    """The id in the argument, which may be a whole key: of a leaked one that is often all there is."""
    presented = parse_key(text)
    if presented is not None:
        return presented.key_id
    if not _KEY_ID.fullmatch(text):
        raise typer.BadParameter("must be the id of a key, as `fluxpool keys list` shows it", param_hint="ID")
    return text


def _show_new(document: Mapping[str, Any], output: OutputOptions) -> None:
    key = document.get("key")
    if not isinstance(key, str) or parse_key(key) is None:
        raise CommandError(ExitCode.UNREACHABLE, "the answer holds no key; check --url")
    if output.json:
        write_json(document)
        return
    # Alone on standard output, for a pipe into a Secret.
    write_line(key)
    say(
        f"key {document.get('id')} of tenant {document.get('tenant')} for {', '.join(map(str, document['scopes']))}; "
        f"it is not shown again: keep it, and give it to clients as {API_KEY_VARIABLE}"
    )


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _minute(value: object) -> str:
    """A time of an answer to the minute, UTC; a dash when there is none."""
    if not isinstance(value, str):
        return "-"
    try:
        return f"{datetime.fromisoformat(value).astimezone(UTC):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError):
        return value
