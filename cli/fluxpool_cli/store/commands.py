"""`fluxpool store`: migrates the databases of a gateway, and has its task store built again from Kafka.

Owns the commands and their results; the programs of the gateway do the work. Configured as they are, by the FLUXPOOL_*
variables, so these run where the gateway runs, or with the same variables.
"""

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import typer

from fluxpool_cli.confirming import YesOption, confirm
from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.serve.rooms import require_room
from fluxpool_contract.settings import SettingsError

if TYPE_CHECKING:  # the gateway's packages may be missing here, and take a second
    from fluxpool_gateway.migrate import Migrated
    from fluxpool_gateway.settings import GatewaySettings

_WHERE: Final = "run it with the variables of the gateway, such as in its container"

app = typer.Typer(no_args_is_help=True, help="Migrate a gateway's databases, rebuild its task store.")


@app.command()
@with_option_groups
def migrate(*, output: OutputOptions) -> None:
    """Bring the databases of a gateway to this release's schema.

    Of the tasks, the webhooks and the API keys, with the FLUXPOOL_* variables of the gateway. Its programs do the same
    when they start: before a rollout this says whether they will. A file that a projector holds is left to it. An older
    release cannot go on with a database that was migrated.

    Exits 0 when all have the schema, 2 when a setting or a database is not usable, 3 when the server of the database
    does not answer.
    """
    settings = _settings()
    # The gateway's room: its database libraries take a second.
    from fluxpool_gateway.migrate import migrate_databases  # noqa: PLC0415
    from fluxpool_gateway.stores import DatabaseProblemError  # noqa: PLC0415

    try:
        with interruptible("a migration is done as a whole or not at all; the same command goes on with the others"):
            migrated = migrate_databases(settings)
    except DatabaseProblemError as error:
        raise CommandError(ExitCode.UNREACHABLE if error.is_away else ExitCode.USAGE, str(error)) from None
    rows = [(item.what, item.after or "none", _outcome(item), item.database) for item in migrated]
    document = {"databases": [asdict(item) for item in migrated]}
    table = Table(("OF", "SCHEMA", "OUTCOME", "DATABASE"), rows)
    write_result(Result(document=document, parts=[table], names=[item.database for item in migrated]), output)


@app.command()
@with_option_groups
def rebuild(*, yes: YesOption = False, output: OutputOptions) -> None:
    """Empty the task store, so that the projector builds it again from Kafka.

    The gateway goes on; until the store is built, tasks may be missing from its answers. Tasks that Kafka has no longer
    are not listed afterwards; their images stay. Keys, webhooks and idempotency keys are not touched. With SQLite the
    file is deleted, with PostgreSQL the tables are emptied.

    Exits 0 when it was emptied, 2 when a setting is wrong, 3 when the server of the database does not answer.
    """
    settings = _settings()
    # As above.
    from fluxpool_gateway.rebuild import DONE, rebuild_store, store_place  # noqa: PLC0415
    from fluxpool_gateway.stores import DatabaseProblemError  # noqa: PLC0415

    place = store_place(settings)
    confirm(f"empty the task store {place}: tasks that Kafka has no longer will not be listed", yes=yes)
    try:
        rebuild_store(settings)
    except DatabaseProblemError as error:
        raise CommandError(ExitCode.UNREACHABLE if error.is_away else ExitCode.USAGE, str(error)) from None
    write_result(Result(document={"database": place, "emptied": True}, parts=[DONE], names=[place]), output)


def _outcome(item: "Migrated") -> str:
    if item.in_use:
        return "left to the projector that runs"
    if item.before == item.after:
        return "was there"
    return f"migrated from {item.before}" if item.before else "made"


def _settings() -> "GatewaySettings":
    """The settings of the gateway; raises `CommandError` (2)."""
    require_room("gateway", purpose="the store of a gateway")
    # As above.
    from fluxpool_gateway.settings import GatewaySettings  # noqa: PLC0415

    try:
        return GatewaySettings.from_environment(os.environ)
    except SettingsError as error:
        raise CommandError(ExitCode.USAGE, f"{error}; {_WHERE}") from None
