"""`fluxpool list`, `get`, `group` and `events`: what the gateway knows of tasks."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Final

import typer

from fluxpool_cli.exit_codes import interruptible
from fluxpool_cli.gateway import ATTEMPTS, GatewayOptions
from fluxpool_cli.options import printable_path, with_option_groups
from fluxpool_cli.output import ImageOutputOptions, OutputOptions, Result, write_result
from fluxpool_cli.repeating import WatchOption, show
from fluxpool_cli.submit.image_files import check_folder, save_images
from fluxpool_cli.submit.polling import Deadline
from fluxpool_cli.tasks.options import FilterOptions, IdsArgument, checked_group, checked_ids
from fluxpool_cli.tasks.view import event_result, group_result, task_result, tasks_result
from fluxpool_client import Client, ListFields, PreviewedTask, Task

_PAGE: Final = 200
_SAVE_SECONDS: Final = 60.0


@with_option_groups
def list_tasks(
    *,
    chosen: FilterOptions,
    starred: Annotated[bool, typer.Option("--starred", help="Only tasks with a star (`fluxpool star`).")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many, the newest first.")] = 50,
    watch: WatchOption = False,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """List the tasks of the tenant, the newest first."""
    fields: ListFields = {**chosen.fields(), "limit": min(_PAGE, limit + 1)}
    if starred:
        fields["starred"] = True

    def read() -> Result:
        found = list(islice(client.tasks(**fields), limit + 1))
        more = [f"there are more; the newest {limit} are shown"] if len(found) > limit else ()
        return tasks_result(found[:limit], notes=more)

    with gateway.client(max_attempts=ATTEMPTS if watch else 1) as client:
        show(_endless(read) if watch else read, output, watch=watch)


def _endless(read: Callable[[], Result]) -> Callable[[], Result]:
    """The same of a list, in which tasks may still appear."""
    return lambda: replace(read(), final=False)


@with_option_groups
def get(
    ids: IdsArgument,
    *,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", callback=printable_path, help="Save the images into this folder.")
    ] = None,
    watch: WatchOption = False,
    gateway: GatewayOptions,
    output: ImageOutputOptions,
) -> None:
    """Show tasks, and why they wait; save images.

    An id that is not known ends it with 2. With --watch it ends when all tasks have ended.
    """
    wanted = checked_ids(ids)
    if output_dir is not None:
        check_folder(output_dir)

    def read() -> Result:
        tasks = [client.get(request_id) for request_id in wanted]
        files = [
            file
            for task in tasks
            if output_dir is not None and task.succeeded
            for file in save_images(client, task, output_dir, deadline=Deadline.after(_SAVE_SECONDS))
        ]
        if len(tasks) == 1:
            return task_result(tasks[0], files)
        result = tasks_result(tasks)
        return replace(result, parts=[*result.parts, *map(str, files)])

    with gateway.client(max_attempts=ATTEMPTS if watch else 1) as client:
        show(read, output, watch=watch)


@with_option_groups
def group(
    group_id: Annotated[str, typer.Argument(metavar="GROUP", help="Id of the group, such as that of a batch.")],
    *,
    watch: WatchOption = False,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Show how far the tasks of a group are.

    With --watch it ends when all have ended.
    """
    checked_group(group_id, option="GROUP")
    with gateway.client(max_attempts=ATTEMPTS if watch else 1) as client:
        show(lambda: group_result(client.group(group_id)), output, watch=watch)


@with_option_groups
def events(
    request_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="Of this task; all tasks by default.")
    ] = None,
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with each change; of one task until it has ended.")
    ] = False,
    chosen: FilterOptions,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Show states of tasks; with --follow as they change.

    One line each: of a task, or of the newest ones and then of each that changes.
    With --output json each line is one object.
    """
    fields = chosen.fields()
    if request_id is not None:
        checked_ids([request_id])
        if fields:
            raise typer.BadParameter("is for all tasks; leave out the id or the filter", param_hint="ID")
    with interruptible("the tasks go on"), gateway.client(max_attempts=ATTEMPTS) as client:
        for task in _states(client, request_id, fields, follow=follow):
            write_result(event_result(task), output)


def _states(client: Client, request_id: str | None, fields: ListFields, *, follow: bool) -> Iterable[Task]:
    if not follow:
        return [client.get(request_id)] if request_id is not None else reversed(client.page(**fields).data)
    states = client.changes(**fields) if request_id is None else client.events(request_id)
    return (task for task in states if not isinstance(task, PreviewedTask))
