"""`fluxpool feedback`: pairs to judge, mean scores and win rates, and exports for fine-tuning."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.feedback.options import RaterOption
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.options import printable_path, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, Table, write_result
from fluxpool_cli.whole_file import whole_file
from fluxpool_client import FeedbackSummary, Interval

EXPORT_SECONDS: Final = 300.0
"""Longest silence of the gateway: it may read images from a slow store."""

app = typer.Typer(no_args_is_help=True, help="What people say of images: pairs, figures, exports.")


class ExportFormat(StrEnum):
    """The form of an export."""

    JSONL = "jsonl"
    PARQUET = "parquet"


class Layout(StrEnum):
    """The data set whose columns an export has."""

    PICKAPIC = "pickapic"
    HPD = "hpd"
    IMAGEREWARD = "imagereward"


class Dimension(StrEnum):
    """What images are told apart by."""

    MODEL = "model"
    STEPS = "steps"
    PRESET = "preset"
    POOL = "pool"


@app.command("next")
@with_option_groups
def next_pair(*, rater: RaterOption = None, gateway: GatewayOptions, output: OutputOptions) -> None:
    """Print two images of a prompt that the rater has not judged, in the order in which to show them.

    Exits 1 when there are none.
    """
    with gateway.client() as client:
        pair = client.next_pair(rater=rater)
    if pair is None:
        raise CommandError(ExitCode.FAILED, "there is no pair left to judge")
    names = [f"{image.request_id}/{image.index}" for image in (pair.a, pair.b)]
    lines = [f"{name} {image.url}" for name, image in zip(names, (pair.a, pair.b), strict=True)]
    write_result(Result(document=pair.model_dump(mode="json"), parts=lines, names=names), output)


@app.command()
@with_option_groups
def summary(
    *,
    by: Annotated[Dimension, typer.Option(help="model, steps, preset or pool.")] = Dimension.PRESET,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Show mean scores and win rates; the ranges hold with 95 %."""
    with gateway.client() as client:
        found = client.feedback_summary()
    columns = (by.upper(), "SCORES", "MEAN", "COMPARED", "WINS", "LOSSES", "TIES", "WIN RATE")
    rows = _rows(found, by)
    table = Table(columns, rows, optional=("TIES", "LOSSES", "WINS"), empty="no feedback yet")
    write_result(Result(document=found.model_dump(mode="json"), parts=[table], names=[row[0] for row in rows]), output)


def _rows(found: FeedbackSummary, by: Dimension) -> list[tuple[str, ...]]:
    return [
        (
            group.value or "-",
            str(group.scores),
            _range(group.mean_score),
            str(group.comparisons),
            *map(str, (group.wins, group.losses, group.ties)),
            _range(group.win_rate),
        )
        for group in getattr(found, by.value)
    ]


def _range(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.value:.2f} ({interval.low:.2f}-{interval.high:.2f})"


@app.command()
@with_option_groups
def export(
    file: Annotated[Path, typer.Argument(callback=printable_path, help="File to write; it is replaced.")],
    *,
    layout: Annotated[Layout, typer.Option(help="Columns: pickapic, hpd or imagereward.")] = Layout.PICKAPIC,
    form: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="jsonl or parquet; by default what the file's name ends in, else jsonl."),
    ] = None,
    ties: Annotated[bool, typer.Option(help="With pickapic: also pairs without a winner.")] = False,
    images: Annotated[bool, typer.Option(help="With pickapic: the files of the images.")] = True,
    gateway: GatewayOptions,
    output: OutputOptions,
) -> None:
    """Write feedback into a file for fine-tuning, whole or not at all; needs a key with the scope admin."""
    chosen = form or (ExportFormat.PARQUET if file.suffix == ".parquet" else ExportFormat.JSONL)
    with whole_file(file) as write, gateway.client(timeout_seconds=EXPORT_SECONDS) as client:
        pieces = client.export_feedback(format=chosen.value, layout=layout.value, ties=ties, images=images)
        size = sum(map(write, pieces))
    document = {"file": str(file), "bytes": size, "layout": layout.value, "format": chosen.value}
    write_result(Result(document=document, names=[str(file)], notes=[f"{size:,} bytes in {file}"]), output)
