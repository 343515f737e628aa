"""`fluxpool batch`: sends the requests of a file to a gateway, waits for them, and tells what became of each."""

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from fluxpool_cli.batch.prompt_file import read_prompts
from fluxpool_cli.batch.run import BatchRun, Outcome
from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.gateway import ATTEMPTS, GatewayOptions
from fluxpool_cli.kafka.target import DEFAULT_DATA_DIR, DataDirOption
from fluxpool_cli.options import finite, printable_path, with_option_groups
from fluxpool_cli.output import ImageOutputOptions, Part, Result, Table, write_result
from fluxpool_cli.progress_bar import counting_bar
from fluxpool_cli.submit.image_files import check_folder
from fluxpool_client import TaskStatus
from fluxpool_contract.messages import check_group_id

_SHOWN_FAULTS: Final = 20
_ORDER: Final = (TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.EXPIRED, TaskStatus.CANCELED)


@with_option_groups
def batch(
    file: Annotated[Path, typer.Argument(help='Requests, one JSON object a line: {"prompt": "a fox", "seed": 7}.')],
    *,
    output_dir: Annotated[
        Path | None,
        typer.Option("--output-dir", callback=printable_path, help="Folder for the images, by line number."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Group of the tasks, by default made of the file's content; another name is another run."),
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the end of every task.")] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds in all.", callback=finite)] = 86_400.0,
    output: ImageOutputOptions,
    gateway: GatewayOptions,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
) -> None:
    """Send the requests of a file; tell what became of each.

    A batch that was interrupted is continued by the same command: nothing is made twice, and images that are there are
    kept. Where a limit of the tenant is reached it goes on as tasks end.

    Exits 0 when every request succeeded (with --no-wait: was accepted), 1 when one was refused or failed, 2 when the
    file is not valid, 3 when no gateway serves, 4 without permission, 5 when not all were finished in time.
    """
    prompts = read_prompts(file)
    try:
        group = f"batch-{prompts.name}" if name is None else check_group_id(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None
    if output_dir is not None:
        if not wait:
            raise typer.BadParameter("has no effect with --no-wait", param_hint="--output-dir")
        check_folder(output_dir)
    going_on = f"accepted tasks of {group} go on; the same command goes on with them"
    opened = gateway.client(data_dir=data_dir, max_attempts=ATTEMPTS)
    with interruptible(going_on), opened as client, counting_bar("submitted", total=len(prompts.lines)) as bar:
        until_seconds = time.monotonic() + timeout
        run = BatchRun(client, prompts, group, bar, until_seconds, output_dir)
        bar.note(f"{len(prompts.lines)} requests as batch {group}")
        refused = run.submit()
        if wait:
            outcome = run.finish(refused, run.wait())
        else:
            outcome = Outcome(group, refused, Counter(accepted=len(run.line_of)))
    write_result(_result(outcome), output)
    if outcome.refused or (wait and not outcome.succeeded):
        unhappy = len(outcome.refused) + len(outcome.failed)
        raise CommandError(ExitCode.FAILED, f"{unhappy} of {len(prompts.lines)} requests of {group} have no images")


def _place(count: tuple[str, int]) -> int:
    """What went well comes first, whatever ended first."""
    return [*_ORDER, count[0]].index(count[0])


def _result(outcome: Outcome) -> Result:
    counts = [
        *sorted(outcome.counts.items(), key=_place),
        *([("refused", len(outcome.refused))] if outcome.refused else []),
    ]
    parts: list[Part] = [f"batch {outcome.name}: " + ", ".join(f"{count} {status}" for status, count in counts)]
    faults = [(str(refused.line), "refused", refused.reason) for refused in outcome.refused]
    faults += [(str(failed.line), failed.status, failed.reason) for failed in outcome.failed]
    notes = []
    if faults:
        parts.append(Table(("LINE", "OUTCOME", "REASON"), faults[:_SHOWN_FAULTS]))
    if len(faults) > _SHOWN_FAULTS:
        notes.append(f"{len(faults) - _SHOWN_FAULTS} more; --json shows all")
    if outcome.files:
        notes.append(f"{len(outcome.files)} images in {outcome.files[0].parent}")
    document = {
        "name": outcome.name,
        "counts": dict(outcome.counts),
        "refused": [asdict(refused) for refused in outcome.refused],
        "failed": [asdict(failed) for failed in outcome.failed],
        "files": [str(file) for file in outcome.files],
    }
    return Result(document=document, parts=parts, names=[outcome.name], notes=notes)
