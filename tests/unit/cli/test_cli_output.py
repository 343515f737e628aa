"""Every command's output, at 80 columns and in each form for programs, on a gateway that sends hostile texts."""

import asyncio
import base64
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import Mock, patch

import pytest
import pytest_asyncio

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.local.data_dir import DataDir
from fluxpool_cli.local.state_file import LaneState, Phase, PlanSummary, ProcessRecord, StackState
from fluxpool_cli.main import command_line, run
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_gateway.dead_letters.jobs import Job
from fluxpool_gateway.store.task_state import DeletionSeen, ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from kit.commands.command_line import served
from kit.commands.every_form import WIDTH, Case, Screen, assert_every_form, assert_harmless, run_on_screen
from kit.gateways.dead_letter_topic import letter_at
from kit.gateways.keyed_gateway import IMAGE, Gateway, key_id, keyed_gateway, keyed_settings, succeeded
from kit.gateways.recorded_requests import RecordedRequests
from kit.gateways.tainted_gateway import TAINT, Tainted
from kit.programs.warm_start import start_program
from kit.waiting import PATIENCE, wait_until

ROOT: Final = Path(__file__).parents[3]

PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
"""One pixel, without marks."""
ELSEWHERE: Final = {
    "watch": "tests/kafka/test_cli_kafka_output.py",
    "trace": "tests/kafka/test_cli_kafka_output.py",
    "local demo": "tests/kafka/test_local_mode.py",
    "workers": "tests/kafka/test_workers_command.py",
    "topics init": "tests/kafka/test_topics_command.py",
    "topics check": "tests/kafka/test_topics_command.py",
    "store migrate": "tests/unit/cli/test_cli_store.py",
    "store rebuild": "tests/unit/cli/test_cli_store.py",
    "serve": "tests/unit/cli/test_cli_store.py",
    "schema list": "tests/unit/cli/test_cli_schema.py",
    "schema print": "tests/unit/cli/test_cli_schema.py",
}
"""Commands that need more than a gateway, and where their output is tested."""
SLEEPER: Final = (sys.executable, "-S", "-c", "import time; time.sleep(600)")

ID: Final = r"[0-9a-z-]{2,}"
CASES: Final = (
    Case("version", "fluxpool 0", r"[0-9.]+"),
    Case("submit fox", "queued", ID),
    Case("batch {prompts} --no-wait --name crowd", "batch crowd: 2 accepted", "crowd"),
    Case("list", "REQUEST ID", ID),
    Case("list --status failed --group foxes", "no memory", "bad"),
    Case("list --starred", "no tasks", None),
    Case("list --limit 1", "the newest 1 are shown", ID),
    Case("get one", "1 image", "one", prose=True),
    Case("get one bad slow", "REQUEST ID", "one|bad|slow"),
    Case("get slow", "step 3 of 9", "slow"),
    Case("get never", "there is no task", code=ExitCode.USAGE),
    Case("wait one --output-dir {folder}", "one succeeded", "one"),
    Case("wait bad", "no memory", "bad", code=ExitCode.FAILED),
    Case("wait dropped", "dropped canceled", "dropped", code=ExitCode.CANCELED),
    Case("wait slow --timeout 0.1", "is still running after 0.1 s and continues", code=ExitCode.TIMED_OUT),
    Case("group foxes", "foxes: 4 tasks, not ended", "foxes"),
    Case("events --group foxes", "one  succeeded  1 image", "one|bad|slow|dropped", prose=True),
    Case("events one --follow", "one  succeeded", "one", prose=True),
    Case("cancel slow", "cancel requested", "slow"),
    Case("cancel slow one never", "unknown id", "slow|one", code=ExitCode.FAILED),
    Case("cancel --group foxes --yes", "cancel requested", "slow"),
    Case("cancel --group foxes", "would cancel 1 task; add --yes", code=ExitCode.USAGE),
    Case("retry one", "retry of one", ID),
    Case("retry one never", "refused: there is no task", ID, code=ExitCode.FAILED),
    Case("delete gone --yes", "deleted", "gone"),
    Case("delete gone slow --yes", "refused: ", "gone", code=ExitCode.FAILED),
    Case("delete gone", "would delete 1 task", code=ExitCode.USAGE),
    Case("queue", "WAITING", r"standard.*|vip.*", prose=True),
    Case("pools", "READY", ".+", prose=True),
    Case("top --once", "workers: ", ".+", prose=True),
    Case("models", "LICENCE", ".+"),
    Case("usage", "GPU SECONDS", r"2.*T.*"),
    Case("verify {picture}", "not-marked", r".*\.png", code=ExitCode.FAILED, prose=True),
    Case("rate one 5", "one/0 rated", "one/0"),
    Case("rate one --remove", "rating removed", "one/0"),
    Case("star two", "starred", "two"),
    Case("star one never", "refused: there is no task", "one", code=ExitCode.FAILED),
    Case("star bad", "succeeded", code=ExitCode.USAGE),
    Case("unstar two", "unstarred", "two"),
    Case("compare one two --prefer a", "one/0 two/0", "one/0|two/0"),
    Case("feedback next --rater ann", "one/0 http", "(one|two|gone)/0", prose=True),
    Case("feedback summary", "no feedback yet", None),
    Case("feedback export {folder}/pairs.jsonl", "bytes in", r".*pairs\.jsonl"),
    Case("keys generate", "fp_", "fp_.*"),
    Case("keys create shop", "fp_", "[0-9A-Za-z]{12}"),
    Case("keys list", "SCOPES", "[0-9A-Za-z]{12}"),
    Case("keys rotate {key}", "is accepted for 24h more", "[0-9A-Za-z]{12}"),
    Case("keys revoke {key}", "revoked", "[0-9A-Za-z]{12}"),
    Case("webhooks create shop https://hooks.example.com/a", "whsec_", ".+"),
    Case("webhooks list", "FAILURES", ".+"),
    Case("webhooks test {told} --no-wait", "pending", ".+"),
    Case("webhooks deliveries {told}", "ATTEMPTS", ".+"),
    Case("webhooks redeliver {delivery} --no-wait", "pending", ".+"),
    Case("webhooks rotate {told}", "whsec_", ".+"),
    Case("webhooks delete {endpoint}", "deleted", ".+"),
    Case("profile set lab --url https://lab.example.com", "lab.example.com", "lab"),
    Case("profile list", "CURRENT", "lab"),
    Case("profile show lab", "has_key", "lab"),
    Case("profile use lab", "current", "lab"),
    Case("profile delete {profile}", "deleted", "profile.*"),
    Case("bench --rps 50 --duration 0.1 --yes", "accepted", "bench-[0-9a-f]+"),
    Case("bench --rps 50 --duration 0.1", "would submit 6 real tasks to", code=ExitCode.USAGE),
    Case("completion bash", "_FLUXPOOL_COMPLETE", None, prose=True),
    Case("local up --data-dir {stack}", "already runs", "http://.*"),
    Case("local status --data-dir {stack}", "crashed 1 worker since", "worker-1|gateway", prose=True),
    Case("local status --data-dir {folder}", "nothing runs in", None, code=ExitCode.UNREACHABLE),
    Case("local down --data-dir {ending}", "has ended", ".*/ending[0-9]+"),
    Case("model tiny {folder}/tiny", "which takes some seconds", ".*/tiny"),
    Case("doctor --timeout 60", "may read, submit, admin", "kafka|storage|model|gateway|cluster", code=ExitCode.FAILED),
    Case("dlq summary --url {url}", "EXAMPLE", "0/[0-9]"),
    Case("dlq list --url {url}", "MESSAGE", "0/[0-9]"),
    Case("dlq show 0/0 --url {url}", "replay it with: fluxpool dlq", "0/0", prose=True),
    Case("dlq export {folder}/dead.jsonl --url {url}", "bytes in", r".*dead\.jsonl"),
    Case("dlq replay --url {url}", "refused", None),
    Case("dlq jobs {job}", "of 1 sent", "0/0"),
    Case("dlq jobs", "0 of 1", "[0-9a-f-]+"),
    Case("dlq jobs never", "there is no", code=ExitCode.USAGE),
    Case("dlq cancel {job}", "0 of 1 sent, 1 canceled", "[0-9a-f-]+"),
    Case("dlq cancel never", "there is no", code=ExitCode.USAGE),
    Case("dlq discard 0/1 --reason old --url {url}", "would be discarded", "0/1"),
)


@dataclass(slots=True)
class World:
    """A gateway, and what command lines name of it."""

    gateway: Gateway
    server: RecordedRequests
    url: str
    folder: Path
    processes: ExitStack
    """Ended at the end."""
    made: int = 0
    told: str = ""
    """An endpoint of webhooks."""

    async def filled(self, line: str) -> list[str]:
        """The arguments, with what each run needs for itself made."""
        self.made += 1
        values: dict[str, str] = {"url": self.url, "folder": str(self.folder)}
        values["prompts"] = str(self.folder / "prompts.jsonl")
        values["picture"] = str(self.folder / "0.png")
        if "{key}" in line:
            values["key"] = key_id(await self.gateway.create("read"))
        if "{endpoint}" in line:
            values["endpoint"] = await self._name("webhooks", "create", "e", "https://hooks.example.com/e")
        if "{told}" in line or "{delivery}" in line:
            self.told = values["told"] = self.told or await self._name(
                "webhooks", "create", "t", "https://a.example.com"
            )
            values["delivery"] = await self._name("webhooks", "test", self.told, "--no-wait")
        if "{job}" in line:
            # Nothing works on it here.
            body = {"ids": ["0/0"], "patch": {"width": 96}}
            created = await self.gateway.one.ask("POST", "/v1/dlq/replay", self.gateway.admin, json=body)
            values["job"] = created.json()["job_id"]
        if "{stack}" in line:
            values["stack"] = str(self.folder / "stack")
        if "{ending}" in line:
            values["ending"] = str(self.stack(f"ending{self.made}").path)
        if "{profile}" in line:
            values["profile"] = await self._name("profile", "set", f"profile{self.made}", "--url", "http://a")
        return [word.format(**values) for word in line.split()]

    def stack(self, name: str) -> DataDir:
        """The folder of a local stack, whose processes sleep."""
        data_dir = DataDir(self.folder / name)
        data_dir.create()
        supervisor, worker = (self.processes.enter_context(sleeper()) for _ in range(2))
        StackState(
            phase=Phase.READY,
            data_dir=data_dir.path,
            bootstrap_servers="127.0.0.1:1",
            gateway_url=self.url,
            supervisor=ProcessRecord.of("supervisor", supervisor),
            parts=(ProcessRecord.of("worker-1", worker, log=data_dir.logs / "worker-1.log", state="ready"),),
            lanes=(
                LaneState(name="standard", topic="flux-generation-tasks", group="flux", lag_records=7, age_seconds=1.0),
            ),
            plan=PlanSummary(replicas=2, constraint="Lag", reason=f"The lag is 7.{TAINT}"),
            crashed_workers=1,
        ).save(data_dir.state)
        return data_dir

    async def _name(self, *arguments: str) -> str:
        code, out, err = await run_on_screen([*arguments, "-o", "name"])
        assert code == ExitCode.OK, err
        return out.strip()


@contextmanager
def sleeper() -> Iterator[int]:
    """The pid of a process that sleeps, and is ended after the block."""
    with subprocess.Popen(SLEEPER) as process:
        yield process.pid
        process.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "prompts.jsonl").write_text('{"prompt": "a fox"}\n{"prompt": "a kite"}\n')
    (folder / "0.png").write_bytes(PNG)
    async with keyed_gateway(keyed_settings(folder)) as gateway:
        gateway.project(
            *(seen(request_id, group_id=None) for request_id in ("two", "gone")),
            *(seen(request_id, group_id="foxes") for request_id in ("one", "bad", "slow", "dropped")),
            *(succeeded(request_id, "default") for request_id in ("one", "two", "gone")),
            ended("bad", ResultStatus.FAILED, TaskStatus.FAILED),
            ended("dropped", ResultStatus.CANCELED, TaskStatus.CANCELED),
            ProgressSeen(
                request_id="slow", status=TaskStatus.RUNNING, at_ms=2, started=True, attempt=1, step=3, total_steps=9,
                tenant="default",
            ),
        )  # fmt: skip
        images = folder / "images" / "default" / "2026/04/05" / "one"
        images.mkdir(parents=True)
        (images / "0.png").write_bytes(IMAGE)
        gateway.records.on_deletion = lambda key, _: gateway.project(
            DeletionSeen(request_id=key.decode(), tenant="default")
        )
        gateway.dead_letters.add(letter_at(0, stack=TAINT), letter_at(1))
        recorded = RecordedRequests(Tainted(gateway.one.app))
        async with served(recorded) as url:
            with pytest.MonkeyPatch.context() as environment, ExitStack() as processes:
                environment.chdir(folder)
                environment.setenv("COLUMNS", str(WIDTH))
                environment.setenv("PATH", str(folder))
                environment.setenv("XDG_CONFIG_HOME", str(folder))
                environment.setenv("FLUXPOOL_URL", url)
                environment.setenv("FLUXPOOL_API_KEY", gateway.admin)
                # Of the real one only the result: it loads torch.
                environment.setattr(
                    "fluxpool_cli.model.tiny_model_command", lambda _folder: [sys.executable, "-S", "-c", ""]
                )
                running = World(gateway, recorded, url, folder, processes)
                processes.enter_context(running.stack("stack").lock())
                await running._name("profile", "set", "lab", "--url", "http://lab.example.com")  # noqa: SLF001 - of this module
                yield running


def seen(request_id: str, *, group_id: str | None) -> TaskSeen:
    return TaskSeen(
        request_id=request_id, body='{"prompt": "a fox"}', priority="standard", tenant="default", created_at_ms=1,
        group_id=group_id,
    )  # fmt: skip


def ended(request_id: str, status: ResultStatus, state: TaskStatus) -> ResultSeen:
    error = {"code": "worker_oom", "error_class": "transient", "message": "no memory", "retryable": False}
    result = GenerationResult(
        request_id=request_id, image_url=None, status=status, error=None if status is ResultStatus.CANCELED else error
    )
    return ResultSeen(
        request_id=request_id, status=state, body=result.model_dump_json(), completed_at_ms=2, tenant="default"
    )


class Unread(Screen):
    """Standard output whose reader is gone."""

    was_written = False

    def write(self, text: str) -> int:
        if not text:
            return 0
        self.was_written = True
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
async def test_a_command_writes_a_table_documents_and_names(case: Case, world: World) -> None:
    await assert_every_form(case, world.filled)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
async def test_a_command_ends_quietly_when_the_reader_of_its_output_is_gone(case: Case, world: World) -> None:
    out, err = Unread(is_terminal=False), Screen(is_terminal=False)
    arguments = await world.filled(case.line)
    with patch.object(sys, "stdout", out), patch.object(sys, "stderr", err):
        code = await asyncio.to_thread(run, arguments)
    assert code == (ExitCode.READER_GONE if out.was_written else case.code), err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert_harmless(err.getvalue())


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("no_color", ["1", ""])
@pytest.mark.parametrize(
    "line", ["wait slow --timeout 0.5", "batch {prompts} --no-wait --name crowd", "dlq list --url {url}", "top --once"]
)
async def test_no_color_leaves_a_bar_without_colour_and_a_file_without_a_bar(
    line: str, no_color: str, world: World
) -> None:
    arguments = await world.filled(line)
    for is_terminal in (True, False):
        out, err = Screen(is_terminal=is_terminal), Screen(is_terminal=is_terminal)
        environment = {"TERM": "xterm-256color", "NO_COLOR": no_color}
        with patch.object(sys, "stdout", out), patch.object(sys, "stderr", err), patch.dict(os.environ, environment):
            await asyncio.to_thread(run, arguments)
        shown = out.getvalue() + err.getvalue()
        has_bar = "\x1b[?25l" in shown
        assert has_bar == (is_terminal and not line.startswith("top")), shown
        # Select Graphic Rendition: colours, bold and dim.
        assert bool(re.search(r"\x1b\[[0-9;]+m", shown)) == (has_bar and not no_color), shown


@dataclass(frozen=True, slots=True)
class Long:
    """A command that goes on until Ctrl-C."""

    line: str
    asks: str
    """A pattern of the path of a request by which it has begun to wait."""
    going_on: str


SHOWED: Final = "interrupted; this only showed it: nothing was changed"
LONG: Final = (
    Long("wait slow", "/slow/events$", "interrupted; the tasks go on"),
    Long("submit fox --wait", "/events$", "interrupted; the task goes on; see it with `fluxpool wait "),
    Long("batch {prompts} --name crowd", "/v1/groups/crowd$", "the same command goes on with them"),
    Long("events --follow", "/v1/events$", "interrupted; the tasks go on"),
    Long("list --watch", "/v1/generations$", SHOWED),
    Long("get slow --watch", "/v1/generations/slow$", SHOWED),
    Long("group foxes --watch", "/v1/groups/foxes$", SHOWED),
    Long("queue --watch", "/v1/queue$", SHOWED),
    Long("pools --watch", "/v1/pools$", SHOWED),
    Long("webhooks test {told}", "/deliveries/[^/]+$", "interrupted; the gateway goes on with the delivery "),
    Long("webhooks redeliver {delivery}", "/deliveries/[^/]+$", "interrupted; the gateway goes on with the delivery "),
    Long("dlq replay 0/0 --yes --url {url}", "/v1/dlq/replays/[^/]+$", "interrupted; the gateway goes on with the "),
)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.line)
async def test_ctrl_c_ends_a_long_command_and_says_what_goes_on(case: Long, world: World) -> None:
    arguments = await world.filled(case.line)
    world.server.asked.clear()
    with (world.folder / "shown").open("w+") as shown:
        running = start_program("kit.programs.console_script", *arguments, environment=dict(os.environ), output=shown)
        try:
            await wait_until(
                lambda: any(re.search(case.asks, path) for path in world.server.asked),
                deadline_seconds=60,
                what=case.asks,
            )
            running.send_signal(signal.SIGINT)
            code = await asyncio.to_thread(running.wait, 60 * PATIENCE)
        finally:
            running.kill()
            running.wait()
        shown.seek(0)
        text = shown.read()
    assert (code, case.going_on in text.splitlines()[-1]) == (ExitCode.INTERRUPTED, True), text
    assert_harmless(text)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_bar_that_sigterm_ends_leaves_the_cursor_visible(world: World) -> None:
    terminal, end_of_command = os.openpty()
    with (world.folder / "shown").open("w") as shown:
        running = start_program(
            "kit.programs.console_script", "wait", "slow", environment={**os.environ, "TERM": "xterm"}, output=shown,
            errors=end_of_command, executed=True,
        )  # fmt: skip
    try:
        text = b""
        while b"\x1b[?25l" not in text:
            text += await asyncio.to_thread(os.read, terminal, 65_536)
            assert b"Error" not in text, text.decode()
        running.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait, 60 * PATIENCE) == -signal.SIGTERM
        os.close(end_of_command)
        # Without a writer the next read after the last byte fails.
        while text.rfind(b"\x1b[?25h") < text.rfind(b"\x1b[?25l"):
            text += await asyncio.to_thread(os.read, terminal, 65_536)
    finally:
        running.kill()
        running.wait()
        os.close(terminal)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("environment", "is_terminal", "redrawn"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "dumb"}, True, False),
        ({"TERM": "xterm", "FORCE_COLOR": "1"}, False, False),
    ],
    ids=["terminal", "dumb-terminal", "file-with-forced-colour"],
)
@pytest.mark.usefixtures("world")
async def test_a_watched_list_is_redrawn_where_lines_can_be_written_again_until_ctrl_c(
    environment: dict[str, str], is_terminal: bool, redrawn: bool
) -> None:
    # Of this module alone: threads of other tests sleep, too.
    sleeping = patch("fluxpool_cli.repeating.time", Mock(sleep=Mock(side_effect=[None, KeyboardInterrupt])))
    with sleeping, patch.dict(os.environ, environment):
        code, out, err = await run_on_screen(["pools", "--watch"], is_terminal=is_terminal)
    assert (code, "interrupted" in err) == (ExitCode.INTERRUPTED, True), err
    assert (out.count("POOL") >= 2, "\x1b[" in out) == (redrawn, redrawn), out
    assert "POOL" in out


@pytest.mark.asyncio(loop_scope="module")
async def test_a_replay_whose_job_is_canceled_meanwhile_names_what_stays_open(world: World) -> None:
    jobs = world.gateway.one.dead_letters.jobs
    create = jobs.create

    async def create_and_cancel(job: Job, records: Sequence[str]) -> None:
        await create(job, records)
        await run_on_screen(["dlq", "cancel", job.job_id])

    with patch.object(jobs, "create", create_and_cancel):
        code, out, err = await run_on_screen(
            ["dlq", "replay", "0/1", "--patch", '{"width": 96}', "--yes", "--url", world.url, "--json"]
        )
    assert (code, json.loads(out)["sent"]) == (ExitCode.FAILED, []), err
    assert "not sent: 0/1 wide-1: the job was canceled by" in err
    assert_harmless(out + err)


def test_no_command_is_without_a_case() -> None:
    tested = {" ".join(word for word in case.line.split()[:2]) for case in CASES}
    for name in leaf_commands():
        if name in ELSEWHERE:
            text = (ROOT / ELSEWHERE[name]).read_text()
            assert f'"{name}' in text or f'"{name.split()[-1]}' in text, name
        else:
            assert any(line == name or line.split()[0] == name for line in tested), name


def leaf_commands() -> Iterator[str]:
    for name, command in command_line().commands.items():
        inner = getattr(command, "commands", None)
        yield from [name] if inner is None else (f"{name} {verb}" for verb in inner)
