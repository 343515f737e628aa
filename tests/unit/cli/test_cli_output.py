"""Every command's output, at 80 columns and in each form for programs, on a gateway that sends hostile texts."""

import asyncio
import base64
import io
import json
import os
import re
import signal
import sys
import unicodedata
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from unittest.mock import Mock, patch

import pytest
import pytest_asyncio
import yaml

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import command_line, run
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_gateway.dead_letters.jobs import Job
from fluxpool_gateway.store.task_state import DeletionSeen, ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from kit.command import PROGRAM
from kit.command_line import served
from kit.dead_letter_topic import letter_at
from kit.keyed_gateway import IMAGE, Gateway, key_id, keyed_gateway, keyed_settings, succeeded
from kit.tainted_gateway import TAINT, Tainted

WIDTH: Final = 80
PNG: Final = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
"""One pixel, without marks."""
OBEYED: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
ELSEWHERE: Final = {
    "watch": "tests/kafka/test_local_mode.py",
    "trace": "tests/kafka/test_trace_command.py",
    "local up": "tests/kafka/test_local_mode.py",
    "local status": "tests/kafka/test_local_mode.py",
    "local down": "tests/kafka/test_local_mode.py",
    "local demo": "tests/kafka/test_local_mode.py",
    "model tiny": "tests/kafka/test_local_mode.py",
}
"""Commands that need more than a gateway, and where their output is tested."""


@dataclass(frozen=True, slots=True)
class Case:
    """A command line, and what its output must have; `{...}` names what the world made for each run."""

    line: str
    words: str
    """In the table, or in what is said beside it."""
    names: str | None = None
    """A pattern of each name; None for commands without."""
    code: ExitCode = ExitCode.OK
    prose: bool = False
    """Whether it has sentences or commands, which a terminal wraps, so that they are copied whole."""


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
    Case("completion bash", "_FLUXPOOL_COMPLETE", None, prose=True),
    Case("doctor --timeout 60", "may read, submit, admin", "kafka|storage|model|gateway|cluster", code=ExitCode.FAILED),
    Case("dlq summary --url {url}", "EXAMPLE", "0/[0-9]"),
    Case("dlq list --url {url}", "MESSAGE", "0/[0-9]"),
    Case("dlq show 0/0 --url {url}", "replay it with: fluxpool dlq", "0/0", prose=True),
    Case("dlq replay --url {url}", "refused", None),
    Case("dlq cancel {job}", "0 of 1 sent, 1 canceled", "[0-9a-f-]+"),
    Case("dlq cancel never", "there is no", code=ExitCode.USAGE),
    Case("dlq discard 0/1 --reason old --url {url}", "would be discarded", "0/1"),
)


class Screen(io.StringIO):
    """Standard output or error: a terminal, or not one."""

    encoding = "utf-8"

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@dataclass(slots=True)
class World:
    """A gateway, and what command lines name of it."""

    gateway: Gateway
    url: str
    folder: Path
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
        if "{profile}" in line:
            values["profile"] = await self._name("profile", "set", f"profile{self.made}", "--url", "http://a")
        return [word.format(**values) for word in line.split()]

    async def _name(self, *arguments: str) -> str:
        code, out, err = await self.run([*arguments, "-o", "name"])
        assert code == ExitCode.OK, err
        return out.strip()

    async def run(self, arguments: Sequence[str], *, is_terminal: bool = False) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a command line."""
        out, err = Screen(is_terminal=is_terminal), Screen(is_terminal=False)
        with patch.object(sys, "stdout", out), patch.object(sys, "stderr", err):
            code = await asyncio.to_thread(run, arguments)
        return code, out.getvalue(), err.getvalue()


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
        async with served(Tainted(gateway.one.app)) as url:
            with pytest.MonkeyPatch.context() as environment:
                environment.chdir(folder)
                environment.setenv("COLUMNS", str(WIDTH))
                environment.setenv("PATH", str(folder))
                environment.setenv("XDG_CONFIG_HOME", str(folder))
                environment.setenv("FLUXPOOL_URL", url)
                environment.setenv("FLUXPOOL_API_KEY", gateway.admin)
                running = World(gateway, url, folder)
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


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
async def test_a_command_writes_a_table_documents_and_names(case: Case, world: World) -> None:
    code, out, err = await world.run(await world.filled(case.line), is_terminal=True)
    assert (code, case.words in out + err) == (case.code, True), out + err
    assert_harmless(out + err)
    for line in out.splitlines():
        # Words are never divided: one that is longer than a line sticks out alone.
        assert case.prose or len(line) <= WIDTH or " " not in line.strip(), line
    has_result = case.code is not ExitCode.USAGE and case.code is not ExitCode.TIMED_OUT

    documents = []
    for form in ("json", "yaml"):
        code, out, err = await world.run([*await world.filled(case.line), "-o", form])
        assert code == case.code, err
        assert_harmless(out + err)
        if form == "json":
            # One line each: a command that starts something has one, events have one each.
            documents.append([json.loads(line) for line in out.splitlines()])
            assert bool(documents[0]) == has_result
        else:
            documents.append(list(yaml.safe_load_all(out)) if out else [])
    assert [shape(item) for item in documents[0]] == [shape(item) for item in documents[1]]

    code, out, err = await world.run([*await world.filled(case.line), "-o", "name"])
    assert code == case.code, err
    assert_harmless(out + err)
    if has_result and case.names is not None:
        assert out, err
        assert [name for name in out.splitlines() if not re.fullmatch(case.names, name)] == []


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("line", "going_on"),
    [
        ("wait slow", "interrupted; the tasks go on"),
        ("events --follow", "interrupted; the tasks go on"),
        ("list --watch", "interrupted; this only showed it"),
        ("submit fox --wait", "interrupted; the task goes on; see it with `fluxpool wait "),
    ],
)
async def test_ctrl_c_ends_a_long_command_and_says_what_goes_on(line: str, going_on: str, world: World) -> None:
    running = await asyncio.create_subprocess_exec(
        PROGRAM, *line.split(), cwd=world.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert running.stdout is not None
    first = await running.stdout.readline()
    running.send_signal(signal.SIGINT)
    rest = await running.stdout.read()
    shown = (first + rest).decode()
    assert (await running.wait(), going_on in shown.splitlines()[-1]) == (ExitCode.INTERRUPTED, True), shown
    assert_harmless(shown)


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
async def test_a_watched_list_is_redrawn_where_lines_can_be_written_again_until_ctrl_c(
    environment: dict[str, str], is_terminal: bool, redrawn: bool, world: World
) -> None:
    # Of this module alone: threads of other tests sleep, too.
    sleeping = patch("fluxpool_cli.repeating.time", Mock(sleep=Mock(side_effect=[None, KeyboardInterrupt])))
    with sleeping, patch.dict(os.environ, environment):
        code, out, err = await world.run(["pools", "--watch"], is_terminal=is_terminal)
    assert (code, "interrupted" in err) == (ExitCode.INTERRUPTED, True), err
    assert (out.count("POOL") >= 2, "\x1b[" in out) == (redrawn, redrawn), out
    assert "POOL" in out


@pytest.mark.asyncio(loop_scope="module")
async def test_a_replay_whose_job_is_canceled_meanwhile_names_what_stays_open(world: World) -> None:
    jobs = world.gateway.one.dead_letters.jobs
    create = jobs.create

    async def create_and_cancel(job: Job, records: Sequence[str]) -> None:
        await create(job, records)
        await world.run(["dlq", "cancel", job.job_id])

    with patch.object(jobs, "create", create_and_cancel):
        code, out, err = await world.run(
            ["dlq", "replay", "0/1", "--patch", '{"width": 96}', "--yes", "--url", world.url, "--json"]
        )
    assert (code, json.loads(out)["sent"]) == (ExitCode.FAILED, []), err
    assert "not sent: 0/1 wide-1: the job was canceled by" in err
    assert_harmless(out + err)


def test_no_command_is_without_a_case() -> None:
    tested = {" ".join(word for word in case.line.split()[:2]) for case in CASES}
    for name in leaf_commands():
        assert name in ELSEWHERE or any(line == name or line.split()[0] == name for line in tested), name


def leaf_commands() -> Iterator[str]:
    for name, command in command_line().commands.items():
        inner = getattr(command, "commands", None)
        yield from [name] if inner is None else (f"{name} {verb}" for verb in inner)


def assert_harmless(text: str) -> None:
    """Nothing that a terminal could obey, and no line that only a hostile text could have made."""
    assert {character for character in text if unicodedata.category(character) in OBEYED} - {"\n"} == set()
    assert not any(line.startswith("fluxpool: forged") for line in text.splitlines())


def shape(document: Any) -> Any:
    """The fields of a document, however often it has them: two runs may differ in ids and times."""
    match document:
        case dict():
            return {str(name): shape(value) for name, value in document.items()}
        case list():
            return [shape(document[0])] if document else []
        case _:
            return None
