"""`fluxpool wait`: waits for the end of tasks, and saves their images."""

from pathlib import Path
from typing import Annotated

import typer

from fluxpool_cli.exit_codes import interruptible
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.options import finite, printable_path, with_option_groups
from fluxpool_cli.output import ImageOutputOptions, write_result
from fluxpool_cli.submit.image_files import check_folder, save_images
from fluxpool_cli.submit.polling import Deadline
from fluxpool_cli.submit.task_end import TaskWait
from fluxpool_cli.submit.waited_task import raise_unless_succeeded, task_result
from fluxpool_cli.tasks.options import IdsArgument, checked_ids
from fluxpool_cli.tasks.view import tasks_result


@with_option_groups
def wait(
    ids: IdsArgument,
    *,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait at most, in all.", callback=finite)] = 600.0,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", callback=printable_path, help="Save the images into this folder.")
    ] = None,
    gateway: GatewayOptions,
    output: ImageOutputOptions,
) -> None:
    """Wait until tasks have ended; save images.

    Follows the events of each, and asks for its state where there is no stream of them.

    Exits 0 when all succeeded, 1 when one failed or expired, 2 for an unknown id, 5 when one was not finished in time,
    6 when none did worse than being canceled.
    """
    wanted = checked_ids(ids)
    if output_dir is not None:
        check_folder(output_dir)
    with interruptible("the tasks go on"), gateway.client() as client:
        waiting = TaskWait(gateway=client, open_stream=gateway.stream_client, deadline=Deadline.after(timeout))
        tasks, files = [], []
        for request_id in wanted:
            # An unknown id is told at once; what comes after is repeated while the gateway is away.
            task = waiting.until_ended(client.get(request_id))
            tasks.append(task)
            if output_dir is not None and task.succeeded:
                files += save_images(client, task, output_dir, deadline=waiting.deadline)
    write_result(
        task_result(tasks[0], files) if len(tasks) == 1 else tasks_result(tasks, notes=[*map(str, files)]), output
    )
    raise_unless_succeeded(*tasks)
