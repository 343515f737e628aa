"""`fluxpool cancel`, `retry`, `delete`, `star` and `unstar`: change tasks, one by one, and tell what became of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.confirming import YesOption, confirm
from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.gateway import ATTEMPTS, GatewayOptions, reason_of
from fluxpool_cli.options import with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.tasks.options import IdsArgument, TimeOptions, checked_ids
from fluxpool_client import (
    BadRequestError,
    CanceledTask,
    CancelFields,
    Client,
    ConflictError,
    GoneError,
    ListFields,
    NotFoundError,
    TaskStatus,
)

_OPEN: Final = (TaskStatus.QUEUED.value, TaskStatus.RUNNING.value)
_PAGE: Final = 200
_GOING_ON: Final = "what was changed stays changed; the same command goes on with the rest"
_COUNTED: Final = 10_000
"""Tasks are counted up to here before a question about all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one task."""

    request_id: str
    words: str
    document: dict[str, Any]
    failed: bool = False


@with_option_groups
def cancel(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the tasks.", show_default=False)
    ] = None,
    *,
    all_tasks: Annotated[bool, typer.Option("--all", help="Every task of the tenant that has not ended.")] = False,
    chosen: TimeOptions,
    waiting_only: Annotated[
        bool, typer.Option("--waiting-only", help="Only those that no engine has begun; running ones go on.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why; stored with the task.")] = None,
    yes: YesOption = False,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Cancel tasks by id, by filter, or all.

    A filter and --all are asked about first, with the number of tasks. A task that has ended is left as it is.
    Exits 1 when an id is not known.
    """
    fields = chosen.fields()
    given = [bool(ids), bool(fields), all_tasks]
    if sum(given) != 1:
        raise typer.BadParameter("give either ids, or a filter such as --group, or --all", param_hint="ID")
    wanted: CancelFields = {"waiting_only": waiting_only}
    if reason is not None:
        wanted["reason"] = reason
    with gateway.client(max_attempts=ATTEMPTS) as client:
        if ids:
            one_by_one = checked_ids(ids)
            if len(one_by_one) == 1:
                canceled = [client.cancel(one_by_one[0], waiting_only=waiting_only, reason=reason)]
            else:
                wanted["request_ids"] = one_by_one
                canceled = _cancel_many(client, wanted)
        else:
            listed: ListFields = {**fields, "status": _OPEN[: 1 if waiting_only else 2], "limit": _PAGE}
            found = list(islice(client.tasks(**listed), _COUNTED))
            count = f"{len(found)}{' or more' if len(found) == _COUNTED else ''}"
            confirm(f"cancel {count} task{'' if len(found) == 1 else 's'}", yes=yes)
            wanted |= {name: value for name, value in fields.items() if value is not None}  # type: ignore[typeddict-item]
            if all_tasks:
                wanted["all"] = True
            canceled = _cancel_many(client, wanted)
    _write("canceled", [_canceled(task) for task in canceled], output, single=bool(ids))


def _cancel_many(client: Client, wanted: CancelFields) -> list[CanceledTask]:
    with interruptible(_GOING_ON):
        return [*client.cancel_many(**wanted)]


def _canceled(task: CanceledTask) -> Outcome:
    match task.outcome:
        case None:
            words = "unknown id"
        case "requested":
            words = "cancel requested"
        case "running":
            words = "left alone: it is running"
        case _:
            words = f"had ended: {task.status}"
    return Outcome(
        request_id=task.request_id,
        words=words,
        document=task.model_dump(mode="json"),
        failed=task.outcome is None,
    )


@with_option_groups
def retry(ids: IdsArgument, *, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Make new tasks with the inputs of ended ones.

    A second retry of the same end is the same task. Prints the ids of the new tasks. Exits 1 when one
    of several was refused.
    """
    with gateway.client(max_attempts=ATTEMPTS) as client:

        def again(request_id: str) -> Outcome:
            accepted = client.retry(request_id)
            document = {"retry_of": request_id, **accepted.model_dump(mode="json")}
            return Outcome(request_id=accepted.request_id, words=f"retry of {request_id}", document=document)

        outcomes = _each(checked_ids(ids), again)
    _write("retried", outcomes, output, single=True)


@with_option_groups
def delete(ids: IdsArgument, *, yes: YesOption = False, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Delete ended tasks with images and prompts.

    This cannot be undone. Exits 1 when one of several was refused, as one that has not ended is: cancel it first.
    """
    wanted = checked_ids(ids)
    confirm(f"delete {len(wanted)} task{'' if len(wanted) == 1 else 's'} with images and prompts", yes=yes)
    with gateway.client(max_attempts=ATTEMPTS) as client:

        def remove(request_id: str) -> Outcome:
            client.delete(request_id)
            return Outcome(request_id=request_id, words="deleted", document={"request_id": request_id, "deleted": True})

        outcomes = _each(wanted, remove)
    _write("deleted", outcomes, output, single=True)


@with_option_groups
def star(ids: IdsArgument, *, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Star tasks that succeeded.

    A star is the tenant's: all its keys and the page see it, and `fluxpool list --starred` lists such tasks. Exits 1
    when one of several was refused.
    """
    _star(ids, gateway, output, starred=True)


@with_option_groups
def unstar(ids: IdsArgument, *, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Take stars of tasks back.

    Exits 1 when one of several was refused.
    """
    _star(ids, gateway, output, starred=False)


def _star(ids: Sequence[str], gateway: GatewayOptions, output: OutputOptions, *, starred: bool) -> None:
    words = "starred" if starred else "unstarred"
    with gateway.client(max_attempts=ATTEMPTS) as client:

        def change(request_id: str) -> Outcome:
            (client.star if starred else client.unstar)(request_id)
            document = {"request_id": request_id, "starred": starred}
            return Outcome(request_id=request_id, words=words, document=document)

        outcomes = _each(checked_ids(ids), change)
    _write(words, outcomes, output, single=True)


def _each(ids: Sequence[str], change: Callable[[str], Outcome]) -> list[Outcome]:
    """What became of each; of a single one the refusal is raised."""
    with interruptible(_GOING_ON):
        return [_one(request_id, change, is_alone=len(ids) == 1) for request_id in ids]


def _one(request_id: str, change: Callable[[str], Outcome], *, is_alone: bool) -> Outcome:
    try:
        return change(request_id)
    except (NotFoundError, ConflictError, GoneError, BadRequestError) as error:
        if is_alone:
            raise
        reason = reason_of(error)
        document = {"request_id": request_id, "error": {"code": error.code, "message": reason}}
        return Outcome(request_id=request_id, words=f"refused: {reason}", document=document, failed=True)


def _write(verb: str, outcomes: Sequence[Outcome], output: OutputOptions, *, single: bool) -> None:
    done = [outcome for outcome in outcomes if not outcome.failed]
    is_one = single and len(outcomes) == 1
    rows = [(outcome.request_id, outcome.words) for outcome in outcomes]
    result = Result(
        document=outcomes[0].document if is_one else {"tasks": [outcome.document for outcome in outcomes]},
        parts=[Table(("REQUEST ID", "OUTCOME"), rows, empty=f"no task was {verb}")],
        names=[outcome.request_id for outcome in done],
    )
    write_result(result, output)
    if len(done) < len(outcomes):
        raise CommandError(ExitCode.FAILED, f"{len(outcomes) - len(done)} of {len(outcomes)} tasks were not {verb}")
