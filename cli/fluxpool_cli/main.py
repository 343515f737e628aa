"""The `fluxpool` program: its commands, and how each ends.

Results go to standard output, progress and complaints to standard error. `--output table|json` (short `--json`) is the
form of the result in every command; `-o` is short for it, but in `submit`, where `-o` names the folder for the images.
"""

import importlib.metadata
import logging
import sys
from typing import Annotated

import structlog
import typer

from fluxpool_cli import dlq, model
from fluxpool_cli.exit_codes import CommandError
from fluxpool_cli.local.commands import app as local_app
from fluxpool_cli.submit import submit
from fluxpool_cli.terminal import JsonOption, OutputFormat, OutputOption, chosen_format, say, write_json
from fluxpool_cli.trace import trace
from fluxpool_cli.watch import watch

app = typer.Typer(
    name="fluxpool",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="FLUX text-to-image through Apache Kafka: run it on this machine, send prompts, watch.",
)
app.add_typer(local_app, name="local")
app.add_typer(model.app, name="model")
app.add_typer(dlq.app, name="dlq")
app.command()(submit)
app.command()(watch)
app.command()(trace)


@app.command()
def version(*, output: OutputOption = OutputFormat.TABLE, as_json: JsonOption = False) -> None:
    """Print the version."""
    installed = importlib.metadata.version("fluxpool")
    if chosen_format(output, as_json=as_json) is OutputFormat.JSON:
        write_json({"version": installed})
    else:
        typer.echo(f"fluxpool {installed}")


@app.callback()
def _settings(
    *, verbose: Annotated[bool, typer.Option("--verbose", help="Also print the log of what is done.")] = False
) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def main() -> None:
    """Run the command line; the console script."""
    try:
        app()
    except CommandError as error:
        say(f"fluxpool: {error}")
        sys.exit(error.code)
    except KeyboardInterrupt:
        say("fluxpool: interrupted")
        sys.exit(128 + 2)


if __name__ == "__main__":
    main()
