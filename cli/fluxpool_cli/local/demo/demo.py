"""`fluxpool local demo`: sends prompts through a whole stack, waits until it scales back to zero, counts.

Owns the order of steps; `audit` compares the results with what was submitted.
"""

import asyncio
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from fluxpool_cli.gateway import reason_of
from fluxpool_cli.kafka.results_topic import ResultsTopic
from fluxpool_cli.local.data_dir import DataDir, DataDirError
from fluxpool_cli.local.demo.audit import IMAGE_SUFFIXES, Audit, audit, status_counts
from fluxpool_cli.local.demo.contact_sheet import FILE_NAME, write_contact_sheet
from fluxpool_cli.local.options import StackOptions
from fluxpool_cli.local.stack import LocalStack, StackError, supervise
from fluxpool_cli.local.workers.fleet import WorkerState
from fluxpool_cli.watch.commands import result_line
from fluxpool_cli.watch.display import LiveDisplay, PoolSnapshot, Starting
from fluxpool_client import AsyncClient, FluxpoolError
from fluxpool_transport.lag import LagReader

TINY_DEADLINE_SECONDS = 300.0
MODEL_DEADLINE_SECONDS = 3600.0
_IDLE_GRACE_SECONDS = 3.0
_COOL_DOWN_SECONDS = 5.0
_INTERVAL_SECONDS = 0.3
_SUBMIT_DEADLINE_SECONDS = 30.0
_VIP_EVERY = 6
"""One prompt in six is sent to the vip lane."""

_SUBJECTS = ("a lighthouse", "an owl", "a night train", "a teapot", "a glacier", "a market street", "a violin", "a fox")
_STYLES = ("in watercolour", "as a woodcut", "at golden hour")
_TINY_SIDES = (64, 128, 192, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The options of a demo."""

    data_dir: Path | None
    """Absent: a temporary folder."""
    keep: bool
    """Whether everything keeps running afterwards, until a signal."""
    model: str | None
    tasks: int
    max_workers: int
    deadline_seconds: float | None


def run_demo(
    options: DemoOptions, *, display: LiveDisplay, conclude: Callable[[Audit, float], None]
) -> tuple[Audit, float]:
    """Run it; returns what was found and the seconds it took, which `conclude` has been given.

    Images stay, all else does with `keep` only. Raises `KeyboardInterrupt` when ended by a signal before it was done,
    `DataDirError` for a folder that cannot be used.
    """
    given = options.data_dir
    # A folder that already has files is never cleared.
    clear = not options.keep and (given is None or _is_unused(given))
    folder = given.resolve() if given is not None else Path(tempfile.mkdtemp(prefix="fluxpool-demo-"))
    demo = _Demo(options, display=display, conclude=conclude, began_at=time.monotonic())
    try:
        with display:
            finished = asyncio.run(demo.run(folder))
    except KeyboardInterrupt:
        finished = False
    finally:
        if clear:
            _clear(DataDir(folder))
        if demo.concluded is None:
            note_kept_files(DataDir(folder), display=display)
    if demo.concluded is not None:
        return demo.concluded
    if not finished:
        raise KeyboardInterrupt
    return demo.end()


def prompts(count: int, *, tiny: bool) -> list[dict[str, Any]]:
    """Request bodies, all different; small and quick for the tiny model, the model's own defaults otherwise."""
    bodies: list[dict[str, Any]] = []
    for number in range(count):
        subject, style = _SUBJECTS[number % len(_SUBJECTS)], _STYLES[number // len(_SUBJECTS) % len(_STYLES)]
        body: dict[str, Any] = {"prompt": f"{subject} {style}, number {number + 1}", "seed": 1000 + number}
        if tiny:
            width, height = _TINY_SIDES[number % 4], _TINY_SIDES[number // 4 % 4]
            body |= {"width": width, "height": height, "steps": 2 + number % 3}
        if number % _VIP_EVERY == 0:
            body["priority"] = "vip"
        bodies.append(body)
    return bodies


def _is_unused(folder: Path) -> bool:
    """Whether there is nothing yet; raises `DataDirError` for a file and for what cannot be read."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError as error:
        raise DataDirError(f"--data-dir: {folder} cannot be used ({error.strerror}); name a folder") from None


def _clear(data_dir: DataDir) -> None:
    """Remove all but the images and their contact sheet, and those, too, when there are none."""
    if any(_pictures(data_dir)):
        for entry in data_dir.path.iterdir():
            if entry.is_dir() and entry != data_dir.images:
                shutil.rmtree(entry, ignore_errors=True)
            elif not entry.is_dir() and entry.name != FILE_NAME:
                entry.unlink(missing_ok=True)
    else:
        shutil.rmtree(data_dir.path, ignore_errors=True)


def _pictures(data_dir: DataDir) -> Iterator[Path]:
    return (file for file in data_dir.images.rglob("*") if file.suffix in IMAGE_SUFFIXES)


def note_kept_files(data_dir: DataDir, *, display: LiveDisplay) -> None:
    first = min(_pictures(data_dir), default=None)
    if first is not None:
        display.note(f"the images are in {data_dir.images}, such as {first}")
    for what, path in (("results are in", data_dir.results_export), ("logs are in", data_dir.logs)):
        if path.exists():
            display.note(f"the {what} {path}")
    if (data_dir.path / FILE_NAME).exists():
        display.note(f"the contact sheet, all pictures with prompts and seeds, is {data_dir.path / FILE_NAME}")


@dataclass(slots=True, eq=False)
class _Demo:
    """One demo; what it found stays when it fails half-way."""

    options: DemoOptions
    _: KW_ONLY
    display: LiveDisplay
    conclude: Callable[[Audit, float], None]
    """Is given what was found, and the seconds it took, once."""
    began_at: float
    concluded: tuple[Audit, float] | None = field(default=None, init=False)
    """What it was given."""
    submitted: dict[str, Mapping[str, Any]] = field(default_factory=dict, init=False)
    audit: Audit | None = field(default=None, init=False)
    problems: list[str] = field(default_factory=list, init=False)
    _peak_workers: int = field(default=0, init=False)

    async def run(self, folder: Path) -> bool:
        """Run in a stack of its own; false when a signal ended it."""
        options = StackOptions(
            data_dir=folder,
            model=self.options.model,
            max_workers=self.options.max_workers,
            idle_grace_seconds=_IDLE_GRACE_SECONDS,
            cool_down_seconds=_COOL_DOWN_SECONDS,
        )
        clock = asyncio.create_task(show_time(self.display, began_at=self.began_at))

        async def work(stack: LocalStack) -> bool:
            clock.cancel()
            return await self._run_on(stack)

        try:
            return bool(await supervise(options, work, report=self.display.note))
        except (StackError, DataDirError) as error:
            self.problems.append(str(error))
            return True
        finally:
            clock.cancel()

    def end(self) -> tuple[Audit, float]:
        """Conclude with what was found so far."""
        found = self.audit or Audit(lost=len(self.submitted))
        found.problems[:0] = self.problems
        self.concluded = found, time.monotonic() - self.began_at
        self.conclude(*self.concluded)
        return self.concluded

    async def _run_on(self, stack: LocalStack) -> bool:
        deadline_seconds = self.options.deadline_seconds or (
            TINY_DEADLINE_SECONDS if self.options.model is None else MODEL_DEADLINE_SECONDS
        )
        async with ResultsTopic(stack.parts.target.kafka, stack.parts.target.topics.results) as results:
            await results.read_to_end()
            # With a deadline of its own: cut short, it would leave tasks that are accepted and not counted.
            await self._submit(stack)
            remaining_seconds = max(1.0, deadline_seconds - (time.monotonic() - self.began_at))
            try:
                async with asyncio.timeout(remaining_seconds):
                    await self._wait(stack, results)
            except TimeoutError:
                problem = f"not finished within {deadline_seconds:g} s; the last lines of the workers' logs:"
                self.problems.append(f"{problem}\n{stack.log_tails()}")
            await self._count(stack)
        if self.options.keep:
            self.display.stop()
            note_kept_files(stack.data_dir, display=self.display)
            self.end()
            page = f"{stack.parts.gateway_url}/ui/gallery"
            self.display.note(f"everything keeps running until Ctrl-C; open the page, which needs no key here: {page}")
            await asyncio.Event().wait()
        return True

    async def _wait(self, stack: LocalStack, results: ResultsTopic) -> None:
        """Wait for every result, for committed offsets and for the end of the last worker."""
        waiting_for_all = True
        while waiting_for_all or stack.fleet.running or _lag(stack):
            await results.poll()
            ended = status_counts(results.records, self.submitted)
            waiting_for_all = sum(ended.values()) < len(self.submitted)
            self._show(stack, results)
            if stack.fleet.problem is not None:
                raise StackError(f"workers cannot start: {stack.fleet.problem}")
            await asyncio.sleep(_INTERVAL_SECONDS)
        self.display.note(f"all results are in; {self._peak_workers} workers at the most, none now")

    async def _count(self, stack: LocalStack) -> None:
        """Read results, offsets and images again and compare them with what was submitted."""
        async with (
            ResultsTopic(stack.parts.target.kafka, stack.parts.target.topics.results) as results,
            LagReader(stack.parts.target.kafka) as reader,
        ):
            await results.read_to_end()
            settings = stack.parts.worker_settings()
            groups = await reader.read({settings.group_of(lane): lane.topic for lane in settings.lanes})
        self.audit = await asyncio.to_thread(
            audit,
            self.submitted,
            results=results.records,
            image_folder=stack.data_dir.images,
            lag_records={name: group.lag_records_at_least for name, group in groups.items()},
        )
        sheet = partial(write_contact_sheet, stack.data_dir.path, self.submitted, images=stack.data_dir.images)
        await asyncio.to_thread(sheet, results=results.records)
        if results.repeats:
            self.display.note(f"{results.repeats} results came again under their event id, as readers must expect")
        if any(group.is_stale for group in groups.values()):
            self.problems.append("the offsets of some partitions could not be read")
        if self.options.keep:
            export = b"".join(value + b"\n" for value in results.values)
            await asyncio.to_thread(stack.data_dir.results_export.write_bytes, export)
        await self._check_gateway(results)

    async def _submit(self, stack: LocalStack) -> None:
        bodies = prompts(self.options.tasks, tiny=self.options.model is None)
        self.display.note(f"sending {len(bodies)} prompts to {stack.parts.gateway_url}")
        async with AsyncClient(
            stack.parts.gateway_url, timeout_seconds=_SUBMIT_DEADLINE_SECONDS, max_attempts=1
        ) as client:
            outcomes = await asyncio.gather(*(client.submit(**body) for body in bodies), return_exceptions=True)
        for body, outcome in zip(bodies, outcomes, strict=True):
            if isinstance(outcome, FluxpoolError):
                self.problems.append(f"{body['prompt']!r} was not accepted: {reason_of(outcome)}")
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self.submitted[outcome.request_id] = body

    async def _check_gateway(self, results: ResultsTopic) -> None:
        """Check that every address in a result serves the image that the result describes; `audit` checks the files."""
        async with httpx.AsyncClient(timeout=_SUBMIT_DEADLINE_SECONDS, trust_env=False, follow_redirects=True) as http:
            ours = (result for result in results.records if result.request_id in self.submitted)
            for image in (image for result in ours for image in result.images):
                try:
                    response = await http.get(image.url)
                except httpx.HTTPError as error:
                    self.problems.append(f"{image.url}: is not served ({error!r})")
                    continue
                if not response.is_success:
                    self.problems.append(f"{image.url}: is answered with {response.status_code}")
                elif hashlib.sha256(response.content).hexdigest() != image.sha256:
                    self.problems.append(f"{image.url}: is not the stored image")

    def _show(self, stack: LocalStack, results: ResultsTopic) -> None:
        fleet = stack.fleet
        state = stack.state()
        self._peak_workers = max(self._peak_workers, fleet.running)
        self.display.update(
            PoolSnapshot(
                lag_records={lane.name: lane.lag_records for lane in state.lanes},
                workers={worker_state.value: fleet.count(worker_state) for worker_state in WorkerState},
                results=dict(status_counts(results.records, self.submitted)),
                recent=[result_line(result) for result in results.recent()],
                plan=state.plan.reason if state.plan else "",
                elapsed_seconds=time.monotonic() - self.began_at,
            )
        )


async def show_time(display: LiveDisplay, *, began_at: float, interval_seconds: float = _INTERVAL_SECONDS) -> None:
    """Show how long a stack has been starting, until canceled: Kafka, a model and the gateway take some seconds.

    `began_at` is a time of the monotonic clock.
    """
    while True:
        display.update(Starting(what="the stack starts", elapsed_seconds=time.monotonic() - began_at))
        await asyncio.sleep(interval_seconds)


def _lag(stack: LocalStack) -> int:
    """The lag as the scaler last read it; a reading older than five seconds counts as one."""
    return sum(
        lane.lag_records if lane.age_seconds is not None and lane.age_seconds < 5 else 1 for lane in stack.state().lanes
    )
