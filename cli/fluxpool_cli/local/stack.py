"""A whole Fluxpool on one machine: Kafka, topics, model, gateway and a scaled fleet of workers, up and down in order.

Owns the order of start and stop, restarts, and the state file. `stack_parts` makes each part's settings.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TypeVar

import httpx
import typer

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.target import KafkaTarget, find_target
from fluxpool_cli.local.child_process import ChildProcess
from fluxpool_cli.local.data_dir import DataDir, private_files
from fluxpool_cli.local.kafka.broker import KafkaStartError
from fluxpool_cli.local.kafka.jars import KafkaJarsError, provide_kafka_libs
from fluxpool_cli.local.kafka.local_kafka import LocalKafka
from fluxpool_cli.local.options import DRAIN_GRACE_SECONDS, StackOptions
from fluxpool_cli.local.stack_parts import PartSettings
from fluxpool_cli.local.state_file import Phase, ProcessRecord, StackState
from fluxpool_cli.local.workers.fleet import WorkerFleet
from fluxpool_cli.local.workers.scaler import FleetScaler
from fluxpool_cli.model import tiny_model_command
from fluxpool_contract.kafka import explain_create_time, topic_specs
from fluxpool_operator.backlog import lane_targets_of
from fluxpool_transport.kafka import (
    KafkaCredentialsError,
    KafkaUnavailableError,
    TopicError,
    ensure_topics,
    find_create_time_topics,
)

T = TypeVar("T")

_POLL_INTERVAL_SECONDS = 0.1
_MODEL_DEADLINE_SECONDS = 300.0
_GATEWAY_READY_SECONDS = 60.0
_GATEWAY_GRACE_SECONDS = 15.0
_KAFKA_READY_SECONDS = 90.0
_RESTART_DELAY_SECONDS = 1.0
_GATEWAY_PROGRAMS = {
    "gateway": "fluxpool_gateway",
    "projector": "fluxpool_gateway.projector",
    "dispatcher": "fluxpool_gateway.dispatcher",
}
"""Started in this order and stopped in it, so that what the server accepted last is still projected."""


class StackError(CommandError):
    """A part of the stack failed and is not restarted; the message names it and ends with its log, if there is one."""

    def __init__(self, message: str) -> None:
        super().__init__(ExitCode.FAILED, message)


class LocalStack:
    """One stack; `supervise` starts and stops it."""

    def __init__(self, options: StackOptions, *, report: Callable[[str], None]) -> None:
        """Take the options; `report` gets a sentence about every change. Touches nothing yet."""
        self.data_dir = DataDir(options.data_dir)
        self._options = options
        self._report = report
        self._phase = Phase.STARTING
        self._unsaved = False
        self._folder = ExitStack()
        self._kafka: LocalKafka | None = None
        self._parts: PartSettings | None = None
        self._gateway: tuple[ChildProcess, ...] = ()
        self._fleet: WorkerFleet | None = None
        self._scaler: FleetScaler | None = None

    @property
    def parts(self) -> PartSettings:
        """Addresses and settings; raises `RuntimeError` before the start."""
        if self._parts is None:
            raise RuntimeError("the stack has no addresses before it was started")
        return self._parts

    @property
    def fleet(self) -> WorkerFleet:
        """The workers; raises `RuntimeError` before the start."""
        if self._fleet is None:
            raise RuntimeError("the stack has no workers before it was started")
        return self._fleet

    def state(self) -> StackState:
        """What runs now."""
        parts = list(self._fleet.records()) if self._fleet else []
        parts += [program.record() for program in self._gateway if program.pid is not None]
        if self._kafka is not None and self._kafka.broker.pid is not None:
            parts.append(self._kafka.broker.record())
        return StackState(
            phase=self._phase,
            data_dir=self.data_dir.path,
            bootstrap_servers=",".join(self._parts.target.kafka.bootstrap_servers) if self._parts else None,
            gateway_url=self._parts.gateway_url if self._parts else None,
            model=self._parts.model if self._parts else None,
            supervisor=ProcessRecord.of("supervisor", os.getpid()),
            parts=tuple(parts),
            lanes=self._scaler.lane_states() if self._scaler else (),
            plan=self._scaler.summary() if self._scaler else None,
            crashed_workers=self._fleet.crashed if self._fleet else 0,
            workers_problem=self._fleet.problem if self._fleet else None,
            options=self._options.model_dump(mode="json"),
        )

    async def start(self) -> None:
        """Bring everything up and return when the gateway is ready.

        Raises `StackError` or `DataDirError`; call `stop` then, too.
        """
        self.data_dir.create()
        # Locked before the first write: the state file belongs to the supervisor that holds the lock.
        self._folder.enter_context(self.data_dir.lock())
        self._save()
        port = self.data_dir.gateway_port(self._options.gateway_port)
        try:
            async with asyncio.TaskGroup() as starting:
                target = starting.create_task(self._provide_kafka())
                starting.create_task(self._provide_model())
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        self._parts = PartSettings(
            data_dir=self.data_dir, target=target.result(), gateway_port=port, options=self._options
        )
        await self._start_gateway()
        self._fleet = WorkerFleet(
            environment=self.parts.worker_environment,
            log_dir=self.data_dir.logs,
            drain_grace_seconds=DRAIN_GRACE_SECONDS,
            report=self._report,
        )
        self._scaler = FleetScaler(
            targets=lane_targets_of(self.parts.worker_settings()),
            config=self._options.scaling(),
            fleet=self._fleet,
            report=self._report,
            on_round=self._save,
        )
        self._phase = Phase.READY
        self._save()

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Scale, and restart parts that end, while `work` runs; returns its result.

        Raises what `work` raises, and `StackError` when a part cannot be restarted.
        """
        if self._scaler is None:
            raise RuntimeError("start the stack before running it")
        try:
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(self._scaler.run(self.parts.target.kafka)),
                    *(group.create_task(self._keep(program)) for program in self._gateway),
                    group.create_task(self._keep_kafka()),
                ]
                result = await work()
                for loop in loops:
                    loop.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return result

    async def stop(self) -> None:
        """Stop workers, then the gateway, then Kafka, and remove the state file. A second call does nothing."""
        self._phase = Phase.STOPPING
        try:
            if self._fleet is not None:
                self._save()
                if self._fleet.running:
                    self._report(f"stopping {self._fleet.running} workers")
                await self._fleet.stop()
            for program in self._gateway:
                await program.stop(grace_seconds=_GATEWAY_GRACE_SECONDS)
                self._report(f"{program.name} ended")
            if self._kafka is not None:
                await self._kafka.stop()
                self._report("kafka ended")
        finally:
            self._fleet = self._kafka = None
            self._gateway = ()
            # Without the lock, the file is that of the supervisor which has it; it is left alone.
            state = StackState.load(self.data_dir.state)
            if state is not None and state.supervisor.pid == os.getpid():
                self.data_dir.state.unlink(missing_ok=True)
            self._folder.close()

    def log_tails(self) -> str:
        """The last lines of the logs of gateway and workers, with headings."""
        gateway = (f"--- {program.log_path}\n{program.log_tail()}\n" for program in self._gateway)
        return "".join(gateway) + (self._fleet.log_tails() if self._fleet else "")

    def kill_workers(self) -> None:
        """SIGKILL the workers, so that `stop` no longer waits for their tasks."""
        if self._fleet is not None:
            self._fleet.kill()

    def _save(self) -> None:
        try:
            self.state().save(self.data_dir.state)
        except OSError as error:
            # A disk that is full for a while must not end what runs; the file is written again twice a second.
            if not self._unsaved:
                self._report(f"{self.data_dir.state} cannot be written ({error.strerror}); the stack continues")
            self._unsaved = True
        else:
            self._unsaved = False

    async def _provide_kafka(self) -> KafkaTarget:
        """A Kafka with all topics: the one whose address was given, else one of the stack's own.

        Topics have the names of `FLUXPOOL_TOPICS_*`, as for the other commands.
        """
        servers = self._options.bootstrap_servers
        # Credentials come from the environment, never from a command line; the stack's own broker has none.
        read = "FLUXPOOL_TOPICS_" if servers is None else ""
        environment = {name: text for name, text in os.environ.items() if name.startswith(read)}
        address = servers or await self._start_kafka()
        try:
            target = find_target(address, self.data_dir.path, environment)
        except (CommandError, typer.BadParameter) as error:
            raise StackError(f"kafka: {error}") from error
        # A factor above the number of brokers is lowered to it.
        specs = topic_specs(target.topics, replication_factor=1 if servers is None else 3)
        try:
            await ensure_topics(target.kafka, specs)
            for topic in await find_create_time_topics(target.kafka, [spec.name for spec in specs]):
                self._report(f"warning: {explain_create_time(topic)}")
        except (TopicError, KafkaUnavailableError, KafkaCredentialsError) as error:
            raise StackError(f"topics: {error}") from error
        return target

    async def _start_kafka(self) -> str:
        """Start the stack's own broker; returns its address."""
        try:
            libs = await asyncio.to_thread(provide_kafka_libs)
            self._report("starting kafka")
            self._kafka = LocalKafka(self.data_dir.kafka, libs=libs)
            await self._kafka.start(deadline_seconds=_KAFKA_READY_SECONDS)
            self._save()
        except (KafkaStartError, KafkaJarsError) as error:
            raise StackError(f"kafka: {error}") from error
        self._report(f"kafka is ready at {self._kafka.bootstrap_servers}")
        return self._kafka.bootstrap_servers

    async def _provide_model(self) -> None:
        if self._options.model is not None:
            return
        self._report("writing the tiny model")
        log_path = self.data_dir.logs / "tiny-model.log"
        command = tiny_model_command(self.data_dir.tiny_model)
        child = ChildProcess("tiny-model", command, log_path=log_path, error=StackError)
        child.spawn()
        try:
            async with asyncio.timeout(_MODEL_DEADLINE_SECONDS):
                if await child.wait():
                    child.check_alive()
        except TimeoutError:
            raise child.error(f"was not written in {_MODEL_DEADLINE_SECONDS:.0f} s") from None
        finally:
            child.send_kill()

    async def _start_gateway(self) -> None:
        self._report("starting the gateway")
        self._gateway = tuple(
            ChildProcess(
                name,
                (sys.executable, "-m", module),
                environment=self.parts.gateway_environment(),
                log_path=self.data_dir.logs / f"{name}.log",
                error=StackError,
            )
            for name, module in _GATEWAY_PROGRAMS.items()
        )
        for program in self._gateway:
            program.spawn()
        self._save()
        await self._gateway_ready(*self._gateway)
        self._report(f"gateway is ready at {self.parts.gateway_url}")

    async def _gateway_ready(self, *started: ChildProcess) -> None:
        """Return once the server says that it is ready; raises `StackError` when one of `started` ends before."""
        try:
            async with asyncio.timeout(_GATEWAY_READY_SECONDS), httpx.AsyncClient(trust_env=False) as http:
                while not await _is_ready(http, f"{self.parts.gateway_url}/readyz"):
                    for program in started:
                        program.check_alive()
                    await asyncio.sleep(_POLL_INTERVAL_SECONDS)
        except TimeoutError:
            raise started[0].error(f"was not ready within {_GATEWAY_READY_SECONDS:.0f} s") from None

    async def _keep(self, program: ChildProcess) -> None:
        while True:
            status = await program.wait()
            self._report(f"{program.name} ended with status {status}; it is started again (log: {program.log_path})")
            await asyncio.sleep(_RESTART_DELAY_SECONDS)
            program.spawn()
            self._save()
            await self._gateway_ready(program)

    async def _keep_kafka(self) -> None:
        while self._kafka is not None:
            await asyncio.sleep(_RESTART_DELAY_SECONDS)
            try:
                self._kafka.broker.check_alive()
            except KafkaStartError as error:
                self._report(f"{str(error).partition(';')[0]}; it is started again")
                try:
                    await self._kafka.start()
                except KafkaStartError as again:
                    raise StackError(str(again)) from again


async def supervise(
    options: StackOptions,
    work: Callable[[LocalStack], Awaitable[T]],
    *,
    report: Callable[[str], None],
) -> T | None:
    """Start a stack, do `work` beside it, stop it; null when SIGTERM ended the work early.

    A second signal kills the workers without waiting for their tasks. Raises what the start or the work raised, after
    everything was stopped, and `KeyboardInterrupt` after a SIGINT.
    """
    stack = LocalStack(options, report=report)
    loop = asyncio.get_running_loop()
    ended_by: list[signal.Signals] = []

    async def whole() -> T:
        await stack.start()
        return await stack.run(lambda: work(stack))

    task = asyncio.create_task(whole())

    def end(number: signal.Signals) -> None:
        if not ended_by:
            report("stopping after the tasks in flight; a second signal stops at once")
            task.cancel()
        else:
            stack.kill_workers()
        ended_by.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        with private_files():
            # `wait` does not cancel the task: a cancellation of this coroutine must not skip the ordered stop below.
            await asyncio.wait({task})
    finally:
        await stack.stop()
        for number in numbers:
            loop.remove_signal_handler(number)
    if task.cancelled() and ended_by:
        if ended_by[0] is signal.SIGINT:
            raise KeyboardInterrupt
        return None
    return task.result()


async def _is_ready(http: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await http.get(url)).is_success
    except httpx.TransportError:
        return False
