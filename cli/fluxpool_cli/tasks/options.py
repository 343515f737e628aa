"""Options of the commands on tasks: ids, and filters of the list."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from fluxpool_cli.options import parse_time_option
from fluxpool_client import ListFields, TaskStatus
from fluxpool_contract.messages import check_group_id, check_request_id

IdsArgument = Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the tasks.", show_default=False)]
GroupOption = Annotated[str | None, typer.Option(help="Only tasks of this group.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeOptions:
    """Which tasks are meant, by group and time of acceptance."""

    group: GroupOption = None
    since: Annotated[
        str | None,
        typer.Option(
            help="Only tasks that were accepted from then on: 24h or 7d ago, or a time such as 2026-04-05T10:00:00Z."
        ),
    ] = None
    until: Annotated[str | None, typer.Option(help="Only tasks that were accepted before; written as --since.")] = None

    def fields(self) -> ListFields:
        """The same for the client; raises `typer.BadParameter`."""
        now = datetime.now(UTC)
        fields: ListFields = {}
        if self.group is not None:
            fields["group_id"] = checked_group(self.group, option="--group")
        if self.since is not None:
            fields["created_after"] = parse_time_option(self.since, now=now, option="--since")
        if self.until is not None:
            fields["created_before"] = parse_time_option(self.until, now=now, option="--until")
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions(TimeOptions):
    """The same, and by state."""

    status: Annotated[list[TaskStatus] | None, typer.Option(help="Only tasks with this status; may be repeated.")] = (
        None
    )

    def fields(self) -> ListFields:
        """The same for the client; raises `typer.BadParameter`."""
        # `super()` without arguments does not find the class that `slots` makes.
        fields = TimeOptions.fields(self)
        if self.status:
            fields["status"] = [status.value for status in self.status]
        return fields


def checked_ids(ids: Sequence[str]) -> list[str]:
    """Each id once; raises `typer.BadParameter` for what is none."""
    for request_id in ids:
        try:
            check_request_id(request_id)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="ID") from None
    return list(dict.fromkeys(ids))


def checked_group(group: str, *, option: str) -> str:
    """The id of a group; raises `typer.BadParameter`."""
    try:
        return check_group_id(group)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
