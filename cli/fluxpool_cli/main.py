"""The `fluxpool` program: its commands, and how their errors become exit codes.

Results are written to standard output, progress and errors to standard error. `--output table|json|yaml|name` (short
`-o`; `--json`) is the form of the result in every command.
Every failing command writes one sentence and exits with a code of `exit_codes`; only `--verbose` shows tracebacks.
"""

import importlib
import importlib.metadata
import io
import logging
import os
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Annotated, Any, Final, Protocol, cast

import structlog
import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.options import check_arguments, with_option_groups
from fluxpool_cli.output import OutputOptions, Result, write_result
from fluxpool_cli.terminal import say, say_paragraph, write_line
from fluxpool_transport.process import end_process

COMMANDS: Final = {
    "submit": (
        "submit.commands:submit",
        "Send a prompt; with --wait, save its images.",
    ),
    "batch": ("batch.commands:batch", "Send the requests of a file; tell what became of each."),
    "list": ("tasks.reading:list_tasks", "List the tasks of the tenant, the newest first."),
    "get": (
        "tasks.reading:get",
        "Show tasks, and why they wait; save images.",
    ),
    "wait": ("tasks.waiting:wait", "Wait until tasks have ended; save images."),
    "events": (
        "tasks.reading:events",
        "Show states of tasks; with --follow as they change.",
    ),
    "group": ("tasks.reading:group", "Show how far the tasks of a group are."),
    "cancel": (
        "tasks.changing:cancel",
        "Cancel tasks by id, by filter, or all.",
    ),
    "retry": (
        "tasks.changing:retry",
        "Make new tasks with the inputs of ended ones.",
    ),
    "delete": (
        "tasks.changing:delete",
        "Delete ended tasks with images and prompts.",
    ),
    "queue": (
        "service.commands:queue",
        "Show what waits and runs, and how long a task takes.",
    ),
    "pools": (
        "service.commands:pools",
        "Show workers of pools, and the plan with its reason.",
    ),
    "workers": ("workers.commands:workers", "Show who works on what."),
    "models": (
        "service.commands:models",
        "List models with licences, defaults and limits.",
    ),
    "usage": ("service.commands:usage", "Show images, megapixels and GPU seconds used."),
    "top": (
        "service.commands:top",
        "Show pools, lanes, lag and throughput live.",
    ),
    "watch": ("watch.commands:watch", "Show lag, workers and the newest results of Kafka."),
    "trace": (
        "trace.commands:trace",
        "Show a task's life across topics and workers.",
    ),
    "verify": ("verify.commands:verify", "Tell which image files say that a model made them."),
    "local": ("local.commands:app", "A whole Fluxpool on this machine: Kafka, gateway, scaled workers."),
    "rate": ("feedback.rate:rate", "Rate an image."),
    "star": ("tasks.changing:star", "Star tasks that succeeded."),
    "unstar": ("tasks.changing:unstar", "Take stars of tasks back."),
    "compare": ("feedback.compare:compare", "Say which of two images of a prompt is better."),
    "feedback": ("feedback.commands:app", "What people say of images: pairs, figures, exports."),
    "keys": ("keys.commands:app", "API keys of a gateway."),
    "webhooks": (
        "webhooks.commands:app",
        "Endpoints that are told when tasks and groups end.",
    ),
    "profile": ("profiles.commands:app", "Gateways with their API keys, by name."),
    "doctor": ("doctor.commands:doctor", "Check Kafka, storage, model, gateway and cluster."),
    "topics": (
        "topics.commands:app",
        "Create the topics, or compare them with what is needed.",
    ),
    "store": (
        "store.commands:app",
        "Migrate a gateway's databases, rebuild its task store.",
    ),
    "serve": ("serve.commands:serve", "Run one program of the product until SIGTERM."),
    "bench": ("bench.commands:bench", "Measure how fast a gateway accepts tasks."),
    "schema": ("schema.commands:app", "What messages, routes and pools look like."),
    "completion": ("completion:completion", "Print the completion script of a shell."),
    "model": ("model:app", "Model folders for workers."),
    "dlq": ("dlq.commands:app", "List and export dead letters, replay their tasks, discard them."),
}
"""Module and name of each, imported when the command is named, and line of the help: all together take a second."""


PROGRAM: Final = "fluxpool"
PLUGIN: Final = "kubectl fluxpool"
COMPLETE_VARIABLE: Final = "_FLUXPOOL_COMPLETE"
ONE_LINE: Final = "10000"
"""As `COLUMNS` while a shell completes words: each line is a completion, and typer would wrap the help of an option."""
_OF_PLUGIN: Final = {
    "pools": ("cluster.commands:pools", COMMANDS["pools"][1]),
    "workers": ("cluster.workers:workers", COMMANDS["workers"][1]),
}
"""What are other commands as a plugin of kubectl: they ask the cluster, with the options of kubectl."""


def command_line(names: Collection[str] = COMMANDS.keys(), *, program: str = PROGRAM) -> Any:
    """The command line as typer runs it; of commands that are not named it has the name and the help alone."""
    table = COMMANDS | (_OF_PLUGIN if program == PLUGIN else {})
    app = typer.Typer(
        name=program,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Plain help: rich's boxes cut the names of variables at 80 columns, and colour what `NO_COLOR` wants plain.
        rich_markup_mode=None,
        help="FLUX text-to-image through Apache Kafka: run it on this machine, send prompts, watch.",
    )
    app.callback()(_settings)
    for name, (place, summary) in table.items():
        if name not in names:
            app.command(name, help=summary)(_settings)
            continue
        module, _, attribute = place.partition(":")
        command = getattr(importlib.import_module(f"fluxpool_cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    app.command()(version)
    return typer.main.get_command(app)


@with_option_groups
def version(*, output: OutputOptions) -> None:
    """Print the version."""
    number = importlib.metadata.version("fluxpool")
    write_result(Result(document={"version": number}, parts=[_version_line()], names=[number]), output)


def _version_line() -> str:
    return f"fluxpool {importlib.metadata.version('fluxpool')}"


def _version_option(asked: bool) -> None:  # noqa: FBT001 - typer calls it with the option's value
    if asked:
        write_line(_version_line())
        raise typer.Exit


def _settings(
    *,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also print the log of what is done, and tracebacks of defects.")
    ] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_version_option, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
        ],
        # Warnings of clients repeat what the command's own sentence says.
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.CRITICAL),
        logger_factory=lambda *_names: _SayLogger(),
    )
    # Without a handler Python itself prints the warnings of libraries.
    logging.getLogger().addHandler(_SayHandler(logging.INFO) if verbose else logging.NullHandler())


class _SayLogger:
    """Writes structlog's events to standard error."""

    def msg(self, message: str) -> None:
        """Print one event."""
        say_paragraph(message)

    debug = info = warning = error = critical = msg


class _SayHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say_paragraph(f"{record.levelname.lower()} {record.name}: {record.getMessage()}")


class _Refusal(Protocol):
    """What typer raises for a wrong command line; it exports the base class without these."""

    exit_code: int

    def show(self, file: IO[str]) -> None:
        """Write usage and reason."""
        ...


def main() -> None:
    """Run the command line; the console script."""
    end_process(run(sys.argv[1:]))


def kubectl_plugin() -> None:
    """The same as `kubectl fluxpool`; the console script `kubectl-fluxpool`, which kubectl finds on the PATH."""
    end_process(run(sys.argv[1:], program=PLUGIN))


def run(arguments: Sequence[str], *, program: str = PROGRAM) -> int:
    """Run one command line and return its exit code; errors are written to standard error, never raised."""
    verbose = "--verbose" in arguments
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - lives on
        elif isinstance(stream, io.TextIOWrapper):
            # A locale may lack a character that a record holds.
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _command(arguments, program)
            sys.stdout.flush()
        except CommandError as error:
            say_paragraph(f"fluxpool: {error}")
            code = error.code
        except KeyboardInterrupt:
            say("fluxpool: interrupted")
            code = ExitCode.INTERRUPTED
        except BrokenPipeError:
            code = ExitCode.READER_GONE
        except OSError as error:
            say(f"fluxpool: {_reason(error)}")
            code = ExitCode.FAILED
        except Exception as error:  # noqa: BLE001 - the top of the program: tracebacks are shown on request only
            what = f"{type(error).__name__}: {str(error)[:300]}"
            say(f"fluxpool: this is a defect of fluxpool ({what}); report it with what `fluxpool --verbose` adds")
            code = ExitCode.DEFECT
            if verbose:
                say_paragraph("".join(traceback.format_exception(error)))
    except OSError:
        # Standard error is closed as well.
        code = ExitCode.FAILED
    except KeyboardInterrupt:
        # A second one, while the first was reported.
        code = ExitCode.INTERRUPTED
    return int(code)


def _command(arguments: Sequence[str], program: str) -> int:
    """Parse and run; returns the exit code."""
    try:
        check_arguments(arguments)
        # The options before a command have no values. A shell that completes words asks for all commands.
        named = [word for word in arguments if not word.startswith("-")][:1]
        if COMPLETE_VARIABLE in os.environ:
            os.environ["COLUMNS"] = ONE_LINE
        commands = command_line(COMMANDS.keys() if COMPLETE_VARIABLE in os.environ else named, program=program)
        ended = commands.main(list(arguments), prog_name=program, standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except SystemExit as ending:
        # What typer makes of a closed pipe.
        if isinstance(ending.__context__, BrokenPipeError):
            raise BrokenPipeError from None
        raise
    except typer.TyperException as error:
        refused = cast("_Refusal", error)
        text = io.StringIO()
        refused.show(text)
        # typer checks values with pydantic, whose words are about its own inputs.
        for line in text.getvalue().replace("Value error, ", "").replace("Input should be", "must be").splitlines():
            say(line)
        return refused.exit_code
    if ended == ExitCode.INTERRUPTED:
        raise KeyboardInterrupt  # which typer turned into that code
    return ended if isinstance(ended, int) else ExitCode.OK


def _reason(error: OSError) -> str:
    """What the system refused, and where."""
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {reason}"
    return f"the output cannot be written: {reason}" if error.errno is not None else reason


if __name__ == "__main__":
    main()
