"""`fluxpool keys`: create, list, rotate and revoke the API keys of a gateway, by its HTTP routes.

By HTTP, not in the database: on Kubernetes that is a file in the volume of the gateway's pod, whose image has no
command line, and the gateway logs who changed which key. Its first key comes from a file (`generate` makes one).
"""

import re
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import UrlOption, default_gateway_url, gateway_client
from fluxpool_cli.options import parse_duration_option, with_option_groups
from fluxpool_cli.terminal import OutputOptions, say, write_json, write_line, write_table
from fluxpool_client import API_KEY_VARIABLE, ApiKey, Client, KeyFields, NewApiKey
from fluxpool_gateway.identity import KeyScope, new_key, parse_key

_KEY_ID: Final = re.compile(r"[0-9A-Za-z]{12}")
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
    fields: KeyFields = {"tenant": tenant}
    if priority:
        fields["priorities"] = priority
    if quality:
        fields["qualities"] = quality
    if lora:
        fields["loras"] = lora
    if expires is not None:
        fields["expires_in_seconds"] = parse_duration_option(expires, option="--expires")
    with _client(url) as gateway:
        created = gateway.create_key(name, [one.value for one in scope or _DEFAULT], **fields)
    _show_new(created, output)


@app.command("list")
@with_option_groups
def list_keys(*, url: UrlOption = None, output: OutputOptions) -> None:
    """List the keys of all tenants, also expired and revoked ones; the keys themselves are not shown."""
    with _client(url) as gateway:
        keys = sorted(gateway.keys(), key=lambda key: key.created_at)
    if output.json:
        write_json({"keys": [key.model_dump(mode="json") for key in keys]})
        return
    columns = ("ID", "NAME", "TENANT", "STATE", "SCOPES", "RIGHTS", "CREATED", "EXPIRES", "LAST USED")
    rows = [
        (
            key.id,
            key.name,
            key.tenant,
            key.state,
            ",".join(key.scopes),
            _rights(key),
            *map(_minute, (key.created_at, key.expires_at, key.last_used_at)),
        )
        for key in keys
    ]
    write_table(columns, rows, optional=("CREATED", "LAST USED", "EXPIRES", "RIGHTS"))


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
    overlap_seconds = parse_duration_option(overlap, option="--overlap")
    with _client(url) as gateway:
        _show_new(gateway.rotate_key(_checked_id(key_id), overlap_seconds=overlap_seconds), output)
    say(f"key {_checked_id(key_id)} is accepted for {overlap} more")


@app.command()
@with_option_groups
def revoke(key_id: KeyIdArgument, *, url: UrlOption = None, output: OutputOptions) -> None:
    """Revoke a key: within seconds no process of the gateway accepts it. This cannot be undone."""
    with _client(url) as gateway:
        revoked = gateway.revoke_key(_checked_id(key_id))
    if output.json:
        write_json(revoked.model_dump(mode="json"))
    else:
        write_line(f"{revoked.id} {revoked.state}")


def _client(url: str | None) -> AbstractContextManager[Client]:
    return gateway_client(url or default_gateway_url())


def _checked_id(text: str) -> str:
    """The id in the argument, which may be a whole key: of a leaked one that is often all there is."""
    presented = parse_key(text)
    if presented is not None:
        return presented.key_id
    if not _KEY_ID.fullmatch(text):
        raise typer.BadParameter("must be the id of a key, as `fluxpool keys list` shows it", param_hint="ID")
    return text


def _show_new(created: NewApiKey, output: OutputOptions) -> None:
    if parse_key(created.key) is None:
        raise CommandError(ExitCode.UNREACHABLE, "the answer holds no key; check --url")
    if output.json:
        write_json(created.model_dump(mode="json"))
        return
    # Alone on standard output, for a pipe into a Secret.
    write_line(created.key)
    say(
        f"key {created.id} of tenant {created.tenant} for {', '.join(created.scopes)}; "
        f"it is not shown again: keep it, and give it to clients as {API_KEY_VARIABLE}"
    )


def _rights(key: ApiKey) -> str:
    """What tasks may ask for, such as `standard quality=exact lora=ink,wash`; without a name all are allowed."""
    bound = {"quality": key.qualities, "lora": key.loras}
    named = [f"{name}={','.join(values) or '-'}" for name, values in bound.items() if values is not None]
    return " ".join([",".join(key.priorities), *named])


def _minute(moment: datetime | None) -> str:
    """A time to the minute, UTC; a dash when there is none."""
    return "-" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"
