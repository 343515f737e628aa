"""Local mode with real Kafka, gateway and workers, through the console script."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fluxpool_cli.local.state_file import StackState
from kit.brokers.kafka_classes import quick_start
from kit.commands.command import PROGRAM, Ended, run_fluxpool
from kit.programs.processes import is_alive
from kit.programs.warm_parts import warm_parts, warm_variable
from kit.waiting import PATIENCE, wait_until_blocking

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tutorial" / "tour.md"
ANSWER_SECONDS = 60.0
COMMAND_SECONDS = 240.0
SMALL = ("--size", "64x64", "--steps", "2")
UP = ("local", "up", "--detach", "-o", "json")
EXECUTED_WORKER = {warm_variable("fluxpool_worker"): ""}
"""With it, the children of a stack's process are those of the worker."""


@dataclass(frozen=True, slots=True)
class Fluxpool:
    """The command in a folder, with the environment of the stacks that it starts."""

    folder: Path
    environment: Mapping[str, str]

    def __call__(self, *arguments: str, rc: int = 0, **changes: str) -> Ended:
        """Run it; fails when it ends with another code than `rc`."""
        ended = self.run(*arguments, **changes)
        assert ended.code == rc, f"{arguments}: {ended}"
        return ended

    def run(self, *arguments: str, **changes: str) -> Ended:
        """Run it, however it ends."""
        return run_fluxpool(
            *arguments,
            folder=self.folder,
            environment={**self.environment, **changes},
            deadline_seconds=PATIENCE * COMMAND_SECONDS,
        )

    def up(self, *arguments: str, **changes: str) -> dict[str, Any]:
        """Start a stack, or show the one that runs; returns its addresses."""
        ended = self.run(*UP, *arguments, **changes)
        assert ended.code == 0, f"{arguments}: {ended}"
        addresses: dict[str, Any] = ended.document
        return addresses

    def end_stacks(self) -> None:
        """Stop those that a failed test left."""
        for state_file in self.folder.rglob("state.json"):
            self("local", "down", "--data-dir", str(state_file.parent))


@pytest.fixture(scope="module")
def environment(kafka_libs: Path) -> dict[str, str]:
    """Brokers of stacks map Kafka's classes from a file; all parts but the supervisor are forked."""
    libs = {name: value for name, value in os.environ.items() if name == "FLUXPOOL_KAFKA_LIBS"}
    return {**libs, "JDK_JAVA_OPTIONS": " ".join(quick_start(kafka_libs)), **warm_parts()}


@pytest.fixture
def fluxpool(tmp_path: Path, environment: dict[str, str]) -> Iterator[Fluxpool]:
    """The command in a folder of one test."""
    command = Fluxpool(tmp_path, environment)
    yield command
    command.end_stacks()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Iterator[Fluxpool]:
    """The command in the folder of the stack that tests share; see `stack`."""
    command = Fluxpool(tmp_path_factory.mktemp("shared"), environment)
    yield command
    command.end_stacks()


@pytest.fixture
def stack(shared: Fluxpool, tiny_checkpoint: Path) -> dict[str, Any]:
    """The addresses of the shared stack, which is started where it does not run."""
    return shared.up("--idle-grace", "1", "--model", str(tiny_checkpoint))


def state_in(folder: Path) -> StackState:
    state = StackState.load(folder / "state.json")
    assert state is not None
    return state


def workers_in(folder: Path, *, state: str = "ready") -> list[int]:
    return [part.pid for part in state_in(folder).parts if part.name.startswith("worker-") and part.state == state]


def is_for_others(entry: Path) -> bool:
    """Whether others than its user may do anything with it; a running stack replaces files at any moment."""
    try:
        return bool(entry.stat().st_mode & 0o077)
    except FileNotFoundError:
        return False


def wait_gone(pids: list[int]) -> None:
    def gone() -> bool:
        return not any(is_alive(pid) for pid in pids)

    wait_until_blocking(gone, deadline_seconds=30, what=f"the processes {pids} are gone")


def in_clone(words: list[str]) -> list[str]:
    """The words of a command with the files of the repository that it names."""
    return [str(ROOT / word) if word.startswith("docs/") else word for word in words]


def test_a_stack_starts_generates_and_scales_to_zero(shared: Fluxpool, stack: dict[str, Any]) -> None:
    folder = shared.folder / ".fluxpool"
    assert stack["data_dir"] == str(folder)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", stack["bootstrap_servers"])
    assert httpx.get(f"{stack['gateway_url']}/readyz", trust_env=False, timeout=ANSWER_SECONDS).is_success

    # The address that people open comes first; it needs no key here.
    assert next(iter(stack)) == "page_url"
    page = httpx.get(stack["page_url"], trust_env=False, timeout=ANSWER_SECONDS)
    assert (page.status_code, "Create" in page.text) == (200, True)

    second = shared(*UP)
    assert second.document == stack
    assert "already runs" in second.complaints

    status = json.loads(shared("local", "status", "--json").output)
    assert (status["running"], status["phase"], status["plan"]["replicas"]) == (True, "ready", 0)
    assert {part["name"] for part in status["parts"]} == {"gateway", "projector", "dispatcher", "kafka-1"}

    # Without --url, commands use the gateway of their current folder.
    refused = shared("submit", "a fox", "--size", "100x64", rc=2)
    assert "width: 100 is not a multiple of 16; the nearest legal sizes are 96 or 112" in refused.complaints
    assert "priority" in shared("submit", "a fox", "--priority", "urgent", rc=2).complaints
    accepted = shared("submit", "a heron", *SMALL, "--json")
    assert json.loads(accepted.output)["status"] == "queued"
    late = shared("submit", "a newt", *SMALL, "--wait", "--timeout", "0.1", rc=5)
    assert "--timeout" in late.complaints

    images = shared(
        "submit", "a fox", *SMALL, "-n", "2", "--priority", "vip", "--output-dir", "out", "--format", "webp", "--json"
    )
    document = json.loads(images.output)
    assert document["status"] == "succeeded"
    assert [Path(file).suffix for file in document["files"]] == [".webp", ".webp"]
    assert all((shared.folder / file).stat().st_size > 100 for file in document["files"])
    assert images.complaints.splitlines()[-1] == "succeeded"

    wait_until_blocking(lambda: not workers_in(folder), deadline_seconds=60, what="the idle worker is gone")
    watched = json.loads(shared("watch", "--once", "--json").output)
    assert watched["results"] == {"success": 3}
    assert watched["lag_records"] == {"vip": 0, "standard": 0}


@pytest.mark.usefixtures("stack")
def test_the_commands_of_the_tour_show_what_it_tells(shared: Fluxpool) -> None:
    lines = re.findall(r"^\.venv/bin/fluxpool (.*)$", TOUR.read_text(), re.MULTILINE)
    commands = [words for words in map(shlex.split, lines) if words[0] != "local"]
    assert [words[0] for words in commands] == ["submit", "batch", "watch", "batch", "submit", "dlq", "dlq", "dlq"]
    image, send, watch, fetch, refused, listing, dry_run, replay = commands
    shared(*image)
    shared(*in_clone(send))
    shared(*watch, "--once")
    shared(*in_clone(fetch))
    assert len(list((shared.folder / "pictures").iterdir())) == 1 + 24
    shared(*refused, rc=1)
    assert "this pool offers none" in shared(*listing).output
    assert "1 to flux-generation-tasks would be sent" in shared(*dry_run).output
    assert "1 to flux-generation-tasks sent" in shared(*replay).output
    (letter,) = json.loads(shared("dlq", "list", "--all", "--json").output)["dead_letters"]

    def replayed() -> bool:
        return bool(json.loads(shared("trace", letter["request_id"], "--json").output)["state"] == "success")

    wait_until_blocking(replayed, deadline_seconds=60, what="the image of the replayed task")


def test_two_folders_run_two_stacks_with_all_files_in_their_folder_of_any_name(
    fluxpool: Fluxpool, tmp_path: Path, shared: Fluxpool, stack: dict[str, Any]
) -> None:
    folder = tmp_path / "root" / "- my #50%20 \"zdjęcia\" 'x'?+:,;[a]$&"
    folder.parent.mkdir()
    # As users start it: every part is executed, with the model that it makes itself.
    other = fluxpool.up("--data-dir", str(folder), "--max-workers", "1", PYTHONPATH="")
    for name in ("gateway_url", "bootstrap_servers", "data_dir", "pid"):
        assert stack[name] != other[name]
    saved = fluxpool("submit", "a kite", *SMALL, "--url", other["gateway_url"], "--output-dir", "out", "--json")
    assert json.loads(saved.output)["status"] == "succeeded"
    assert len(list((folder / "images").rglob("*.png"))) == 1
    assert list((folder / "kafka").rglob("00000000000000000000.log"))
    assert list(folder.parent.iterdir()) == [folder]
    # Prompts and images are readable by the user of the stack only; a tiny model is public.
    readable = {entry.relative_to(folder) for entry in folder.rglob("*") if is_for_others(entry)}
    assert readable <= {Path("tiny-model")}

    fluxpool("local", "down", "--data-dir", str(folder))
    assert not (folder / "state.json").exists()
    assert httpx.get(f"{stack['gateway_url']}/readyz", trust_env=False, timeout=ANSWER_SECONDS).is_success
    parts = state_in(shared.folder / ".fluxpool").parts
    assert all(part.is_alive() for part in parts if not part.name.startswith("worker-"))


def test_a_stack_stops_and_restarts_at_the_same_address(
    shared: Fluxpool, stack: dict[str, Any], tiny_checkpoint: Path
) -> None:
    folder = shared.folder / ".fluxpool"
    document = json.loads(shared("submit", "a swan", *SMALL, "--output-dir", "out", "--json").output)
    pids = [part.pid for part in (*state_in(folder).parts, state_in(folder).supervisor)]
    shared("local", "down")
    wait_gone(pids)
    assert not (folder / "state.json").exists()
    assert "nothing runs" in shared("local", "down").complaints
    shared("local", "status", rc=3)
    shared("submit", "a fox", "--url", stack["gateway_url"], rc=3)

    again = up_with_one_worker(shared, tiny_checkpoint)
    assert {name: again[name] for name in again if name != "pid"} == {
        name: stack[name] for name in stack if name != "pid"
    }
    assert (
        httpx.get(document["image_url"], trust_env=False, timeout=ANSWER_SECONDS).content
        == (shared.folder / document["files"][0]).read_bytes()
    )


def up_with_one_worker(shared: Fluxpool, model: Path) -> dict[str, Any]:
    """Start the shared stack with an executed worker, instead of one that runs with other options."""
    options = ("--min-workers", "1", "--max-workers", "1", "--model", str(model))
    if shared.run(*UP, *options, **EXECUTED_WORKER).code:
        shared("local", "down")
    return shared.up(*options, **EXECUTED_WORKER)


def test_a_crashed_part_is_replaced_and_the_stack_ends_with_its_supervisor(
    shared: Fluxpool, tiny_checkpoint: Path
) -> None:
    folder = shared.folder / ".fluxpool"
    up_with_one_worker(shared, tiny_checkpoint)
    (worker,) = wait_until_blocking(lambda: workers_in(folder), deadline_seconds=60, what="the worker is ready")
    os.kill(worker, signal.SIGKILL)
    wait_until_blocking(
        lambda: [pid for pid in workers_in(folder) if pid != worker],
        deadline_seconds=60,
        what="another worker is ready",
    )
    state = state_in(folder)
    assert state.crashed_workers == 1
    log = (folder / "logs" / "supervisor.log").read_text()
    assert "worker-1 ended unexpectedly with status -9; a new one starts in 1 s" in log

    for program in [part for part in state.parts if part.name in {"gateway", "projector", "dispatcher"}]:
        os.kill(program.pid, signal.SIGKILL)
        wait_until_blocking(
            lambda killed=program: any(  # type: ignore[misc]
                part.name == killed.name and part.pid != killed.pid for part in state_in(folder).parts
            ),
            deadline_seconds=60,
            what=f"another {program.name} is recorded",
        )

    state = state_in(folder)
    engines = [child.pid for child in psutil.Process(workers_in(folder)[0]).children(recursive=True)]
    assert engines
    os.kill(state.supervisor.pid, signal.SIGKILL)
    wait_gone([part.pid for part in state.parts] + engines)
    assert "nothing runs" in shared("local", "down").complaints
    assert not (folder / "state.json").exists()


def test_a_foreground_stack_on_a_given_kafka_ends_cleanly_on_ctrl_c(
    fluxpool: Fluxpool, tmp_path: Path, bootstrap_servers: str, tiny_checkpoint: Path
) -> None:
    given = ("--bootstrap-servers", bootstrap_servers, "--model", str(tiny_checkpoint))
    with subprocess.Popen(
        [PROGRAM, "local", "up", "-o", "json", *given, "--data-dir", "fg"],
        cwd=tmp_path,
        env={**os.environ, **fluxpool.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        document = ""
        while not document.endswith("}\n"):
            line = process.stdout.readline()
            assert line, "it ended before it said its addresses"
            document += line
        addresses = json.loads(document)
        assert addresses["bootstrap_servers"] == bootstrap_servers
        parts = state_in(tmp_path / "fg").parts
        programs = [part.name for part in parts if not part.name.startswith("worker-")]
        assert programs == ["gateway", "projector", "dispatcher"]
        assert "already runs" in fluxpool("local", "up", "--data-dir", "fg").complaints
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=90 * PATIENCE)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "fluxpool: interrupted; the stack has ended"), errors
    assert "gateway ended" in errors
    assert "projector ended" in errors
    assert "kafka ended" not in errors
    wait_gone([part.pid for part in parts])
    assert not (tmp_path / "fg" / "state.json").exists()


def test_a_stack_that_cannot_start_reports_the_reason_and_leaves_nothing(fluxpool: Fluxpool, tmp_path: Path) -> None:
    failed = fluxpool("local", "up", "--detach", "--bootstrap-servers", "127.0.0.1:1", "--data-dir", "broken", rc=1)
    assert "topics: Kafka at 127.0.0.1:1 did not answer" in failed.complaints
    assert failed.output == ""
    assert not (tmp_path / "broken" / "state.json").exists()
    fluxpool("local", "status", "--data-dir", "broken", rc=3)


def test_the_demo_counts_24_images_and_keeps_them_with_the_page_until_ctrl_c(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    log = tmp_path / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [PROGRAM, "local", "demo", "--data-dir", "demo", "--keep", "--timeout", str(300 * PATIENCE)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        counted = process.stdout.readline().rstrip()
        assert len(counted) <= 80
        said = log.read_text()
        assert re.fullmatch(r"demo: 24 images, 24 results success, 0 lost, 0 doubled, \d+ s", counted), said
        (page,) = wait_until_blocking(
            lambda: re.findall(r"until Ctrl-C; open the page, which needs no key here: (\S+)\n", log.read_text()),
            deadline_seconds=30,
            what="the address of the page",
        )
        gallery = httpx.get(page, trust_env=False, timeout=ANSWER_SECONDS)
        assert len(set(re.findall(r"number (\d+)", gallery.text))) == 24
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=90 * PATIENCE) == 0, log.read_text()
    demo = tmp_path / "demo"
    exported = [json.loads(line) for line in (demo / "results.jsonl").read_text().splitlines()]
    assert len({result["request_id"] for result in exported}) == 24
    assert {result["status"] for result in exported} == {"success"}
    assert len(list((demo / "images").rglob("*.png"))) == 24
    assert "plan: 3 workers" in said
    assert "all results are in; 3 workers at the most, none now" in said
    assert f"is {demo / 'contact-sheet.html'}\n" in said
    shown = re.findall(r'<img src="([^"]+)" alt="([^"]+), number \d+"', (demo / "contact-sheet.html").read_text())
    assert len({prompt for _, prompt in shown}) == 24
    assert all((demo / file).is_file() for file, _ in shown)
    assert not (demo / "state.json").exists()


def test_a_demo_past_its_deadline_fails_names_the_missing_tasks_and_cleans_up(
    fluxpool: Fluxpool, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    late = ("--tasks", "2", "--timeout", "1", "--model", str(tiny_checkpoint))
    # An executed engine cannot load a model in a second.
    executed = {warm_variable("fluxpool_worker.engine"): ""}
    ended = fluxpool("local", "demo", "--data-dir", "demo", *late, "--json", rc=1, **executed)
    assert "not finished within 1 s" in ended.complaints
    found = ended.document
    assert (found["images"], found["succeeded"], found["lost"], found["doubled"]) == (0, 0, 2, 0)
    assert not (tmp_path / "demo").exists()


def test_a_demo_that_is_interrupted_while_its_stack_starts_leaves_nothing(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with subprocess.Popen(
        [PROGRAM, "local", "demo", "--data-dir", "demo"],
        cwd=tmp_path,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "the stack starts ...\n"
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=90 * PATIENCE)
    assert (process.returncode, output) == (130, ""), errors
    assert errors.splitlines()[-1] == "fluxpool: interrupted; the stack of the demo has ended"
    assert list(tmp_path.iterdir()) == []


def test_a_demo_with_a_model_that_cannot_be_loaded_ends_with_the_reason(
    fluxpool: Fluxpool, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    index = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    index.write_text("{")
    ended = fluxpool("local", "demo", "--data-dir", "demo", "--model", "model", "--tasks", "2", rc=1)
    assert re.search(r"^workers cannot start: model .*model'", ended.complaints, re.MULTILINE)
