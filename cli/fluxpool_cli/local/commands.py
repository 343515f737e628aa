"""`fluxpool local`: the commands that start, show and end a stack on this machine.

The stack itself imports Kafka's clients and the operator, nearly a second: only commands that run one import it.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from fluxpool_cli.exit_codes import CommandError, ExitCode, interruptible
from fluxpool_cli.local.data_dir import DEFAULT_NAME, AlreadyRunningError, DataDir, DataDirError
from fluxpool_cli.local.lifecycle import end_stack, start_detached, wait_for_other
from fluxpool_cli.local.options import StackOptions, default_max_workers
from fluxpool_cli.local.state_file import StackState
from fluxpool_cli.local.workers.model_check import ModelError, checked_model, licensed_model
from fluxpool_cli.options import finite, printable_path, with_option_groups
from fluxpool_cli.output import OutputOptions, Part, Result, Table, write_result
from fluxpool_cli.terminal import say, say_paragraph, worker_count
from fluxpool_cli.watch.display import LiveDisplay
from fluxpool_contract.messages import EmbedParameters
from fluxpool_contract.problems import explain

if TYPE_CHECKING:
    from fluxpool_cli.local.demo.audit import Audit
    from fluxpool_cli.local.stack import LocalStack

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="A whole Fluxpool on this machine: Kafka, gateway, scaled workers.")

DataDirOption = Annotated[
    Path, typer.Option(help="Folder of the stack; stacks in different folders share nothing.", callback=printable_path)
]
ModelOption = Annotated[
    str | None, typer.Option(help="FLUX checkpoint folder or hub id; by default a tiny one with random weights.")
]

MaxWorkersOption = Annotated[
    int | None,
    typer.Option(help="Most workers (default: 3 with the tiny model, about 600 MB each; 1 with a given one)."),
]


@app.command()
@with_option_groups
def up(
    context: typer.Context,
    *,
    bootstrap_servers: Annotated[
        str | None, typer.Option(help="Use this Kafka, host:port[,host:port], instead of starting one.")
    ] = None,
    data_dir: DataDirOption = Path(DEFAULT_NAME),
    model: ModelOption = None,
    lora_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder with safetensors files of LoRAs, which `submit --lora` names without .safetensors.",
            exists=True,
            file_okay=False,
            resolve_path=True,
            callback=printable_path,
        ),
    ] = None,
    embed_parameters: Annotated[
        EmbedParameters, typer.Option(help="Parameters of the task in image files.", show_default=True)
    ] = EmbedParameters.ALL,
    signing_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder with tls.crt and tls.key that image files are signed with (C2PA).", callback=printable_path
        ),
    ] = None,
    min_workers: Annotated[int, typer.Option(help="Workers that run without lag.")] = 0,
    max_workers: MaxWorkersOption = None,
    target_lag: Annotated[int, typer.Option(help="Unfinished tasks for each worker.")] = 5,
    idle_grace: Annotated[float, typer.Option(help="Seconds without lag before the last worker is stopped.")] = 20.0,
    gateway_port: Annotated[int | None, typer.Option(help="Port of the gateway; chosen once and kept.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the stack is ready.")] = False,
    output: OutputOptions,
) -> None:
    """Start the stack; Ctrl-C ends it, or `local down` when detached.

    A second `up` shows the running stack, and is refused with other options. Exits 130 after Ctrl-C.
    """
    options = _options(
        data_dir=data_dir.resolve(),
        bootstrap_servers=bootstrap_servers,
        model=_model(model),
        lora_folder=lora_folder,
        embed_parameters=embed_parameters,
        signing_folder=None if signing_folder is None else signing_folder.resolve(),
        min_workers=min_workers,
        max_workers=default_max_workers(model) if max_workers is None else max_workers,
        target_lag=target_lag,
        idle_grace_seconds=idle_grace,
        gateway_port=gateway_port,
    )
    folder = DataDir(data_dir)
    if folder.is_locked():
        state = wait_for_other(folder)
        _refuse_changes(context, options, state)
        say(f"a stack already runs in {folder.path}; it is not changed")
        _show_addresses(state, output)
        return
    if detach:
        with interruptible("the stack was not started"):
            state = _guarded(lambda: start_detached(options, report=say))
        _show_addresses(state, output)
        return

    from fluxpool_cli.local.stack import supervise  # noqa: PLC0415

    async def serve(stack: "LocalStack") -> None:
        _show_addresses(stack.state(), output)
        say("Ctrl-C ends it")
        await asyncio.Event().wait()

    with interruptible("the stack has ended"):
        _guarded(lambda: asyncio.run(supervise(options, serve, report=say)))


@app.command()
@with_option_groups
def status(*, data_dir: DataDirOption = Path(DEFAULT_NAME), output: OutputOptions) -> None:
    """Show the parts of the stack, the lag and the last plan; exits 3 when nothing runs, 1 when something is broken."""
    folder = DataDir(data_dir)
    state = StackState.load(folder.state)
    if state is None or not state.alive():
        write_result(Result(document={"running": False, "data_dir": str(folder.path)}), output)
        raise CommandError(
            ExitCode.UNREACHABLE,
            f"nothing runs in {folder.path}; start it with `fluxpool local up --data-dir {data_dir}`",
        )
    result = Result(
        document={"running": state.supervisor.is_alive(), **state.model_dump(mode="json")},
        parts=list(_status_parts(state)),
        names=[part.name for part in state.parts],
    )
    write_result(result, output)
    if state.workers_problem is not None:
        raise CommandError(ExitCode.FAILED, f"workers cannot start: {state.workers_problem}")
    if not state.supervisor.is_alive():
        raise CommandError(
            ExitCode.FAILED,
            f"the supervisor has ended; end the parts it left with `fluxpool local down --data-dir {data_dir}`",
        )


@app.command()
@with_option_groups
def down(*, data_dir: DataDirOption = Path(DEFAULT_NAME), output: OutputOptions) -> None:
    """End the stack of this folder: workers first, then the gateway, then Kafka. Touches nothing else."""
    folder = DataDir(data_dir)
    with interruptible("the stack goes on stopping; `fluxpool local status` shows what still runs"):
        ended = end_stack(folder, report=say)
    told = f"the stack in {folder.path} has ended" if ended else f"nothing runs in {folder.path}"
    document = {"ended": ended, "data_dir": str(folder.path)}
    write_result(Result(document=document, names=[str(folder.path)] if ended else (), notes=[told]), output)


@app.command()
@with_option_groups
def demo(
    *,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder to work in; by default a temporary one.", show_default=False, callback=printable_path
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep",
            help="Leave everything running until Ctrl-C, with the page open, and results and logs in the folder; "
            "images always stay.",
        ),
    ] = False,
    model: ModelOption = None,
    tasks: Annotated[int, typer.Option(min=1, max=1000, help="Prompts to send.")] = 24,
    max_workers: MaxWorkersOption = None,
    timeout: Annotated[
        float | None, typer.Option(min=1, help="Seconds for everything (default: by model).", callback=finite)
    ] = None,
    output: OutputOptions,
) -> None:
    """Send prompts through Kafka to a FLUX pipeline, watch the workers scale, and check the results."""
    from fluxpool_cli.local.demo.demo import DemoOptions, run_demo  # noqa: PLC0415

    options = DemoOptions(
        data_dir=data_dir,
        keep=keep,
        model=_model(model),
        tasks=tasks,
        max_workers=default_max_workers(model) if max_workers is None else max_workers,
        deadline_seconds=timeout,
    )

    def conclude(found: "Audit", seconds: float) -> None:
        for problem in found.problems:
            say_paragraph(problem)
        document = {**asdict(found), "seconds": round(seconds, 1)}
        write_result(Result(document=document, parts=[found.line(seconds=seconds)]), output)

    with interruptible("the stack of the demo has ended"):
        found, _ = _guarded(lambda: run_demo(options, display=LiveDisplay(), conclude=conclude))
    if found.problems or found.succeeded != tasks or found.images != tasks or found.lost or found.doubled:
        raise typer.Exit(ExitCode.FAILED)


def _model(model: str | None) -> str | None:
    """The option's folder as an absolute path, or the hub id as it is."""
    try:
        return None if model is None else checked_model(model)
    except ModelError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from None


def _refuse_changes(context: typer.Context, options: StackOptions, state: StackState) -> None:
    """Raise `CommandError` when the command line asks for another stack than the one that runs."""
    asked = options.model_dump(mode="json")
    given = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if str(context.get_parameter_source(parameter.name)).endswith("COMMANDLINE")
    }
    changes = [
        f"{option} is {running} there, not {asked[field]}"
        for option, field, running in (
            (given.get(field.removesuffix("_seconds")), field, running) for field, running in state.options.items()
        )
        if option is not None and asked.get(field) != running
    ]
    if changes:
        raise CommandError(
            ExitCode.FAILED,
            f"a stack already runs in {state.data_dir} with other options ({'; '.join(changes)}); "
            "end it first with `fluxpool local down`, or name another --data-dir",
        )


def _show_addresses(state: StackState, output: OutputOptions) -> None:
    addresses = {
        "page_url": f"{state.gateway_url}/ui/create",
        "gateway_url": state.gateway_url,
        "bootstrap_servers": state.bootstrap_servers,
        "data_dir": str(state.data_dir),
        "model": state.model,
        "pid": state.supervisor.pid,
    }
    table = Table(("", ""), [(name, str(value)) for name, value in addresses.items()])
    write_result(Result(document=addresses, parts=[table], names=[str(state.gateway_url)]), output)


def _status_parts(state: StackState) -> Iterable[Part]:
    processes = [
        (part.name, part.state if part.is_alive() else "gone", str(part.pid), str(part.log or ""))
        for part in (state.supervisor, *reversed(state.parts))
    ]
    yield Table(("PART", "STATE", "PID", "LOG"), processes, optional=("PID",))
    lanes = [
        (lane.name, lane.topic, lane.group, "?" if lane.age_seconds is None else str(lane.lag_records))
        for lane in state.lanes
    ]
    yield ""
    yield Table(("LANE", "TOPIC", "GROUP", "LAG"), lanes, optional=("GROUP",))
    yield ""
    yield f"gateway {state.gateway_url}"
    if state.model is not None:
        yield f"model {licensed_model(state.model)}"
    for lane in state.lanes:
        if lane.expired_records:
            yield f"expired {lane.expired_records} of lane {lane.name}: deleted by topic retention, never consumed"
    if state.crashed_workers:
        yield f"crashed {worker_count(state.crashed_workers)} since the start"
    if state.plan is not None:
        yield f"plan    {worker_count(state.plan.replicas)} ({state.plan.constraint}). {state.plan.reason}"


def _options(**fields: Any) -> StackOptions:
    try:
        return StackOptions(**fields)
    except ValidationError as error:
        problem = explain(error)[0]
        field, _, message = (
            problem.message.partition(": ") if not problem.field else (problem.field, "", problem.message)
        )
        option = field.split(".")[0].removesuffix("_seconds").replace("_", "-")
        raise typer.BadParameter(message, param_hint=f"--{option}") from None


def _guarded(action: Callable[[], T]) -> T:
    try:
        return action()
    except AlreadyRunningError as error:
        raise CommandError(ExitCode.FAILED, str(error)) from None
    except DataDirError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
