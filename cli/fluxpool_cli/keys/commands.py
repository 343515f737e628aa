"""`fluxpool keys`: create, list, rotate and revoke the API keys of a gateway, by its HTTP routes.

By HTTP, not in the database: on Kubernetes that is a file in the volume of the gateway's pod, whose image has no
command line, and the gateway logs who changed which key. Its first key comes from a file (`generate` makes one).
"""

import re
from typing import Annotated, Final

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.options import parse_duration_option, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.terminal import minute_text
from fluxpool_client import API_KEY_VARIABLE, ApiKey, KeyFields, NewApiKey
from fluxpool_gateway.identity import KeyScope, new_key, parse_key

_KEY_ID: Final = re.compile(r"[0-9A-Za-z]{12}")
_DEFAULT: Final = tuple(scope for scope in KeyScope if scope is not KeyScope.ADMIN)

app = typer.Typer(no_args_is_help=True, help="API keys of a gateway.")

KeyIdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `list` shows it, or the key.")]


@app.command()
@with_option_groups
def generate(*, output: OutputOptions) -> None:
    """Print a new random key, without any gateway: for the Secret or file that a gateway takes its first key from."""
    key = new_key()
    write_result(Result(document={"key": key}, parts=[key], names=[key]), output)


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
    preset: Annotated[
        list[str] | None,
        typer.Option(help="Preset that its tasks may have, and have to name; may be repeated. All by default."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Family or checkpoint of the pools that may make its images; may be repeated."),
    ] = None,
    submit_limit: Annotated[
        str | None,
        typer.Option(help="Tasks in a time, as 5/second or 300/minute. As many as its tenant may by default."),
    ] = None,
    gateway: GatewayOptions,
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
    if preset:
        fields["presets"] = preset
    if model:
        fields["models"] = model
    if submit_limit is not None:
        fields["submit_limit"] = submit_limit
    if expires is not None:
        fields["expires_in_seconds"] = parse_duration_option(expires, option="--expires")
    with gateway.client() as client:
        created = client.create_key(name, [one.value for one in scope or _DEFAULT], **fields)
    _show_new(created, output)


@app.command("list")
@with_option_groups
def list_keys(*, gateway: GatewayOptions, output: OutputOptions) -> None:
    """List the keys of all tenants, also expired and revoked ones; the keys themselves are not shown."""
    with gateway.client() as client:
        keys = sorted(client.keys(), key=lambda key: key.created_at)
    columns = ("ID", "NAME", "TENANT", "STATE", "SCOPES", "RIGHTS", "CREATED", "EXPIRES", "LAST USED")
    rows = [
        (
            key.id,
            key.name,
            key.tenant,
            key.state,
            ",".join(key.scopes),
            _rights(key),
            *map(minute_text, (key.created_at, key.expires_at, key.last_used_at)),
        )
        for key in keys
    ]
    table = Table(columns, rows, optional=("CREATED", "LAST USED", "EXPIRES", "RIGHTS"), empty="no keys")
    document = {"keys": [key.model_dump(mode="json") for key in keys]}
    write_result(Result(document=document, parts=[table], names=[key.id for key in keys]), output)


@app.command()
@with_option_groups
def rotate(
    key_id: KeyIdArgument,
    *,
    overlap: Annotated[str, typer.Option(help="How long the old key is still accepted, at most 30d.")] = "24h",
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Replace a key by a new one with the same name, tenant, scopes, limit and lifetime, and print the new one."""
    overlap_seconds = parse_duration_option(overlap, option="--overlap")
    with gateway.client() as client:
        created = client.rotate_key(_checked_id(key_id), overlap_seconds=overlap_seconds)
    _show_new(created, output, f"key {_checked_id(key_id)} is accepted for {overlap} more")


@app.command()
@with_option_groups
def revoke(key_id: KeyIdArgument, *, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Revoke a key: within seconds no process of the gateway accepts it. This cannot be undone."""
    with gateway.client() as client:
        revoked = client.revoke_key(_checked_id(key_id))
    document = revoked.model_dump(mode="json")
    write_result(Result(document=document, parts=[f"{revoked.id} {revoked.state}"], names=[revoked.id]), output)


def _checked_id(text: str) -> str:
    """The id in the argument, which may be a whole key: of a leaked one that is often all there is."""
    presented = parse_key(text)
    if presented is not None:
        return presented.key_id
    if not _KEY_ID.fullmatch(text):
        raise typer.BadParameter("must be the id of a key, as `fluxpool keys list` shows it", param_hint="ID")
    return text


def _show_new(created: NewApiKey, output: OutputOptions, *notes: str) -> None:
    if parse_key(created.key) is None:
        raise CommandError(ExitCode.UNREACHABLE, "the answer holds no key; check --url")
    told = (
        f"key {created.id} of tenant {created.tenant} for {', '.join(created.scopes)}; "
        f"it is not shown again: keep it, and give it to clients as {API_KEY_VARIABLE}"
    )
    # Alone on standard output, for a pipe into a Secret.
    document = created.model_dump(mode="json")
    write_result(Result(document=document, parts=[created.key], names=[created.id], notes=[told, *notes]), output)


def _rights(key: ApiKey) -> str:
    """What tasks may ask for, such as `standard quality=exact lora=ink,wash`; without a name all are allowed."""
    bound = {"quality": key.qualities, "lora": key.loras, "preset": key.presets, "model": key.models}
    named = [f"{name}={','.join(values) or '-'}" for name, values in bound.items() if values is not None]
    if key.submit_limit is not None:
        named.append(f"submit-limit={key.submit_limit}")
    return " ".join([",".join(key.priorities), *named])
