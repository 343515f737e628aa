"""`fluxpool submit`: one prompt to a gateway, and with `--wait` its images into a folder; or straight to Kafka."""

import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway_client import GatewayClient, Generation
from fluxpool_cli.kafka_target import DEFAULT_DATA_DIR, find_target
from fluxpool_cli.local.discovery import default_gateway_url
from fluxpool_cli.terminal import (
    JsonOption,
    OutputFormat,
    chosen_format,
    progress_console,
    results_console,
    say,
    write_json,
)

_POLL_INTERVAL_SECONDS = 0.25
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")

UrlOption = Annotated[
    str | None,
    typer.Option(
        envvar="FLUXPOOL_URL",
        help="The gateway; by default the one that `fluxpool local up` runs in this folder, else http://127.0.0.1:8000.",
    ),
]


def submit(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    *,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid; needs --true-cfg-scale above 1.")] = None,
    size: Annotated[str | None, typer.Option(help="Width x height in pixels, multiples of 16: 1024x768.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="How many images.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Distilled guidance.")] = None,
    true_cfg_scale: Annotated[float | None, typer.Option(help="Classifier-free guidance; doubles the cost.")] = None,
    image_format: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")] = None,
    priority: Annotated[str | None, typer.Option(help="standard or vip.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key with the same request is one task, however often it is sent.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the images and save them.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait at most.")] = 600.0,
    output_dir: Annotated[
        Path | None,
        typer.Option("-o", "--output-dir", help="Folder for the images; implies --wait. The current one by default."),
    ] = None,
    output: Annotated[OutputFormat, typer.Option("--output", help="Form of the result.")] = OutputFormat.TABLE,
    as_json: JsonOption = False,
    url: UrlOption = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(help="Kafka, as host:port[,host:port]: write the task to its topic, without a gateway."),
    ] = None,
) -> None:
    """Send a prompt to the gateway; with --wait, show its progress and save its images.

    With --bootstrap-servers the task goes straight to Kafka, to a partition of the worker that will be free first;
    topics, groups and credentials are those of the FLUXPOOL_KAFKA_*, FLUXPOOL_TOPICS_*, FLUXPOOL_CONSUMER_GROUP and
    FLUXPOOL_LANES variables.

    Exits 0 when the task was accepted (with --wait: succeeded), 1 when it failed, 2 when it was refused, 3 when no
    gateway serves, 4 without permission, 5 when it was not finished in time.
    """
    fields: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "steps": steps,
        "seed": seed,
        "n": n,
        "guidance": guidance,
        "true_cfg_scale": true_cfg_scale,
        "output_format": image_format,
        "priority": priority,
    }
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    body = {name: value for name, value in fields.items() if value is not None}
    as_format = chosen_format(output, as_json=as_json)
    if bootstrap_servers is not None:
        if wait or output_dir is not None:
            raise typer.BadParameter(
                "needs a gateway; leave out --wait and --output-dir", param_hint="--bootstrap-servers"
            )
        _show(_submit_to_kafka(bootstrap_servers, body, idempotency_key=idempotency_key), [], as_format)
        return
    with GatewayClient(url or default_gateway_url()) as gateway:
        accepted = gateway.submit(body, idempotency_key=idempotency_key)
        if not wait and output_dir is None:
            _show(accepted, [], as_format)
            return
        say(f"accepted as {accepted.request_id}")
        finished = _wait(gateway, accepted, timeout_seconds=timeout)
        files = gateway.download(finished, output_dir or Path()) if finished.succeeded else []
    _show(finished, files, as_format)
    if not finished.succeeded:
        raise CommandError(ExitCode.FAILED, finished.failure)


def _submit_to_kafka(bootstrap_servers: str, body: dict[str, Any], *, idempotency_key: str | None) -> Generation:
    # Imported here: Kafka's clients take a tenth of a second, which the usual way need not wait for.
    from fluxpool_cli.kafka_run import run_on  # noqa: PLC0415
    from fluxpool_cli.kafka_submission import submit_to_kafka  # noqa: PLC0415

    target = find_target(bootstrap_servers, DEFAULT_DATA_DIR)
    return Generation(run_on(target, submit_to_kafka(target, body, idempotency_key=idempotency_key)))


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels out of `1024x768`; raises `typer.BadParameter`."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} must be width x height in pixels, such as 1024x768", param_hint="--size")
    return int(found[1]), int(found[2])


def _wait(gateway: GatewayClient, generation: Generation, *, timeout_seconds: float) -> Generation:
    """Poll until the task has ended, showing every change."""
    deadline = time.monotonic() + timeout_seconds
    console = progress_console()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    shown = ""
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(generation.status, total=None)
        while True:
            generation = gateway.generation(generation.request_id)
            steps = generation.steps_done
            bar.update(task, description=generation.status, completed=steps[0] if steps else 0)
            if steps:
                bar.update(task, total=steps[1])
            line = generation.status + (f" step {steps[0]} of {steps[1]}" if steps and not generation.finished else "")
            if line != shown and not console.is_terminal:
                say(line)
            shown = line
            if generation.finished:
                return generation
            if time.monotonic() >= deadline:
                raise CommandError(
                    ExitCode.TIMED_OUT,
                    f"{generation.request_id} is still {generation.status} after {timeout_seconds:g} s; "
                    "it goes on, ask for it later or wait longer with --timeout",
                )
            time.sleep(_POLL_INTERVAL_SECONDS)


def _show(generation: Generation, files: list[Path], as_format: OutputFormat) -> None:
    if as_format is OutputFormat.JSON:
        extra = {"files": [str(file) for file in files]} if files else {}
        write_json({**generation.document, **extra})
        return
    console = results_console()
    console.print(f"{generation.request_id} {generation.status}", markup=False)
    for file in files:
        console.print(str(file), markup=False)
    for warning in generation.document.get("warnings") or []:
        say(f"warning: {warning}")
