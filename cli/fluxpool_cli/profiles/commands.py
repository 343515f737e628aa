"""`fluxpool profile`: lists, shows, sets, chooses and removes profiles. No command prints a key."""

import sys
from typing import Annotated

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.profiles.file import (
    Profile,
    Profiles,
    check_name,
    config_file,
    remove_profile,
    set_profile,
    use_profile,
)
from fluxpool_client import connection_of

app = typer.Typer(no_args_is_help=True, help="Gateways with their API keys, by name.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]


@app.command("list")
@with_option_groups
def list_profiles(*, output: OutputOptions) -> None:
    """List the profiles; whether each has a key, not the key."""
    profiles = Profiles.load(config_file())
    rows = [
        ("*" if name == profiles.current else "", name, profile.url or "-", "yes" if profile.api_key else "no")
        for name, profile in profiles.profiles.items()
    ]
    table = Table(
        ("CURRENT", "NAME", "URL", "KEY"),
        rows,
        optional=("KEY",),
        empty=f"{profiles.file} has no profiles; create one with `fluxpool profile set NAME --url URL`",
    )
    document = {
        "file": str(profiles.file),
        "profiles": [_document(profile, profiles) for profile in profiles.profiles.values()],
    }
    write_result(Result(document=document, parts=[table], names=[*profiles.profiles]), output)


@app.command()
@with_option_groups
def show(name: NameArgument, *, output: OutputOptions) -> None:
    """Show a profile, without its key."""
    profiles = Profiles.load(config_file())
    _write(profiles.named(name, source="NAME"), profiles, output)


@app.command("set")
@with_option_groups
def set_fields(
    name: NameArgument,
    *,
    url: Annotated[str | None, typer.Option(help="The gateway.")] = None,
    key: Annotated[
        bool, typer.Option("--key", help="Ask for the API key, or read it from standard input where that is a pipe.")
    ] = False,
    output: OutputOptions,
) -> None:
    """Create a profile, or change what is given of it. The first profile becomes the current one."""
    try:
        check_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from None
    file = config_file()
    before = Profiles.load(file)
    if name not in before.profiles and url is None:
        raise typer.BadParameter("is needed for a new profile", param_hint="--url")
    fields = ({} if url is None else {"url": url}) | ({"api_key": _read_key()} if key else {})
    if not fields:
        raise typer.BadParameter("gives nothing to change; add --url or --key", param_hint=name)
    try:
        connection_of(fields.get("url") or before.profiles[name].url, fields.get("api_key"), timeout_seconds=1)
    except ValueError as error:
        argument, _, reason = str(error).partition(": ")
        raise typer.BadParameter(reason, param_hint="--key" if argument == "api_key" else "--url") from None
    set_profile(file, name, fields)
    if not before.profiles:
        use_profile(file, name)
    after = Profiles.load(file)
    _write(after.profiles[name], after, output)


@app.command()
@with_option_groups
def use(name: NameArgument, *, output: OutputOptions) -> None:
    """Make a profile the current one: used where no option and no variable names a gateway."""
    file = config_file()
    Profiles.load(file).named(name, source="NAME")
    use_profile(file, name)
    profiles = Profiles.load(file)
    _write(profiles.profiles[name], profiles, output)


@app.command()
@with_option_groups
def delete(name: NameArgument, *, output: OutputOptions) -> None:
    """Remove a profile with its key; the gateway keeps the key until `fluxpool keys revoke`."""
    file = config_file()
    Profiles.load(file).named(name, source="NAME")
    remove_profile(file, name)
    write_result(Result(document={"name": name, "deleted": True}, parts=[f"{name} deleted"], names=[name]), output)


def _read_key() -> str:
    text = typer.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read()
    key = str(text).strip()
    if not key:
        raise CommandError(ExitCode.USAGE, "--key: standard input has no key; pipe it in, or type it when asked")
    return key


def _write(profile: Profile, profiles: Profiles, output: OutputOptions) -> None:
    document = _document(profile, profiles)
    rows = [(name, "-" if value is None else str(value)) for name, value in document.items()]
    write_result(Result(document=document, parts=[Table(("", ""), rows)], names=[profile.name]), output)


def _document(profile: Profile, profiles: Profiles) -> dict[str, object]:
    return {
        "name": profile.name,
        "url": profile.url,
        "has_key": profile.api_key is not None,
        "current": profile.name == profiles.current,
        "file": str(profiles.file),
    }
