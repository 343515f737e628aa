"""`fluxpool submit`: sends one prompt to a gateway, or to Kafka; `--wait` saves its images.

Owns the command line and its result; `task_end` waits, `image_files` writes the files.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fluxpool_cli.exit_codes import interruptible
from fluxpool_cli.gateway import GatewayOptions, named_options
from fluxpool_cli.kafka.target import DEFAULT_DATA_DIR, DataDirOption, find_target, run_on
from fluxpool_cli.local.state_file import why_workers_cannot_start
from fluxpool_cli.options import finite, printable_path, with_option_groups
from fluxpool_cli.output import ImageOutputOptions, Result, write_result
from fluxpool_cli.submit.image_files import check_folder, save_images
from fluxpool_cli.submit.input_images import image_address
from fluxpool_cli.submit.kafka_submission import submit_to_kafka
from fluxpool_cli.submit.polling import Deadline
from fluxpool_cli.submit.task_end import TaskWait
from fluxpool_cli.submit.waited_task import raise_unless_succeeded, task_result
from fluxpool_cli.terminal import say

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


@with_option_groups
def submit(
    prompt: Annotated[str, typer.Argument(help="Description of the image.")],
    *,
    negative_prompt: Annotated[str | None, typer.Option(help="What to avoid; needs --true-cfg-scale above 1.")] = None,
    size: Annotated[str | None, typer.Option(help="Width x height in pixels, multiples of 16: 1024x768.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="How many images.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Distilled guidance.", callback=finite)] = None,
    true_cfg_scale: Annotated[
        float | None, typer.Option(help="Classifier-free guidance; doubles the cost.", callback=finite)
    ] = None,
    image_format: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")] = None,
    quality: Annotated[
        str | None, typer.Option(help="exact, or fast (lossy), where the pool allows it; the pool's default.")
    ] = None,
    embed_parameters: Annotated[
        str | None,
        typer.Option(help="Parameters of the task in the image file: all, noPrompt or none; the pool limits it."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="LoRA of the pool as NAME or NAME:SCALE, scale -2 to 2 (default 1); may be repeated."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Picture to start from: a PNG, JPEG or WebP file (local stack), or its address in the pool's storage.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="How much of --image changes, above 0 and at most 1 (default 0.6).", callback=finite),
    ] = None,
    priority: Annotated[str | None, typer.Option(help="standard or vip.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset of the gateway, or auto for the one that people are likely to prefer.")
    ] = None,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Where the gateway posts the end of the task, signed; see `webhooks rotate requests`."
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key with the same request is one task, however often it is sent.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the images and save them.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait at most.", callback=finite)] = 600.0,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "--output-dir",
            callback=printable_path,
            help="Folder for the images; implies --wait. The current one by default.",
        ),
    ] = None,
    output: ImageOutputOptions,
    gateway: GatewayOptions,
    data_dir: DataDirOption = DEFAULT_DATA_DIR,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(help="Kafka, as host:port[,host:port]: write the task to its topic, without a gateway."),
    ] = None,
) -> None:
    """Send a prompt; with --wait, save its images.

    While it waits it follows the events of the task, and asks for its state where there is no stream of them; an answer
    that fails is asked for again until --timeout. Images that are there already are not written over.

    With --bootstrap-servers the task is written to Kafka, to a partition of the worker that will be free first;
    topics, groups and credentials are those of the FLUXPOOL_KAFKA_*, FLUXPOOL_TOPICS_*, FLUXPOOL_CONSUMER_GROUP and
    FLUXPOOL_LANES variables.

    Exits 0 when the task was accepted (with --wait: succeeded), 1 when it failed, 2 when it was refused, 3 when no
    gateway serves, 4 without permission, 5 when it was not finished in time, 6 when it was canceled.
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
        "quality": quality,
        "embed_parameters": embed_parameters,
        "loras": [parse_lora(text) for text in lora or ()] or None,
        "strength": strength,
        "priority": priority,
        "preset": preset,
        "webhook": None if webhook is None else {"url": webhook},
    }
    if strength is not None and image is None:
        raise typer.BadParameter("has no effect without --image", param_hint="--strength")
    if size is not None:
        fields["width"], fields["height"] = parse_size(size)
    if image is not None:
        is_local = bootstrap_servers is None and gateway.place(data_dir).is_local
        fields["image"] = image_address(image, data_dir=data_dir, is_local=is_local)
    body = {name: value for name, value in fields.items() if value is not None}
    if bootstrap_servers is not None:
        if wait or preset is not None or webhook is not None or output_dir is not None:
            raise typer.BadParameter(
                "needs a gateway; leave out --wait, --preset, --webhook and --output-dir",
                param_hint="--bootstrap-servers",
            )
        target = find_target(bootstrap_servers, data_dir)
        sent = run_on(target, submit_to_kafka(target, body, idempotency_key=idempotency_key))
        write_result(_accepted(sent), output)
        return
    folder = output_dir or Path()
    # Checked before the task is sent, not after its images are generated.
    if wait or output_dir is not None:
        check_folder(folder)
    own_stack = gateway.place(data_dir).is_local
    with gateway.client(data_dir=data_dir) as client:
        with named_options(), interruptible("the task may have been accepted; `fluxpool list` shows it"):
            accepted = client.submit(idempotency_key=idempotency_key, **body)
        if own_stack and (why := why_workers_cannot_start(data_dir)):
            say(f"the workers of the local stack cannot start: {why}")
        if not wait and output_dir is None:
            write_result(_accepted(accepted.model_dump(mode="json")), output)
            return
        waiting = TaskWait(
            gateway=client,
            open_stream=partial(gateway.stream_client, data_dir=data_dir),
            deadline=Deadline.after(timeout),
            hopeless=lambda: why_workers_cannot_start(data_dir) if own_stack else None,
        )
        with interruptible(f"the task goes on; see it with `fluxpool wait {accepted.request_id}`"):
            say(f"accepted as {accepted.request_id}")
            task = waiting.until_ended(accepted)
            files = save_images(client, task, folder, deadline=waiting.deadline) if task.succeeded else []
    write_result(task_result(task, files), output)
    raise_unless_succeeded(task)


def parse_size(text: str) -> tuple[int, int]:
    """Width and height in pixels out of `1024x768`; raises `typer.BadParameter`."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} must be width x height in pixels, such as 1024x768", param_hint="--size")
    return int(found[1]), int(found[2])


def parse_lora(text: str) -> dict[str, Any]:
    """Name and scale out of `watercolour:0.8`; raises `typer.BadParameter`."""
    name, colon, scale = text.partition(":")
    if not colon:
        return {"name": name}
    try:
        return {"name": name, "scale": finite(float(scale))}
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} must be NAME or NAME:SCALE, such as watercolour:0.8", param_hint="--lora"
        ) from None


def _accepted(document: Mapping[str, Any]) -> Result:
    request_id = document["request_id"]
    return Result(document=document, parts=[f"{request_id} {document['status']}"], names=[request_id])
