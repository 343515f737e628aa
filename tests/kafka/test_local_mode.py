"""Local mode with real Kafka, gateway and workers, through the console script."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from fluxpool_cli.local.state_file import StackState
from kit.command import PROGRAM, Ended, run_fluxpool
from kit.kafka_classes import quick_start
from kit.processes import is_alive
from kit.waiting import PATIENCE, wait_until_blocking
from kit.warm_start import warm_engine, warm_program

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(420)]

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "docs" / "tutorial" / "tour.md"
WARM_LOCAL = ROOT / "tests" / "kit" / "warm_local"
ANSWER_SECONDS = 60.0
SMALL = ("--size", "64x64", "--steps", "2")

Fluxpool = Callable[..., Ended]


@pytest.fixture
def environment(kafka_libs: Path) -> dict[str, str]:
    """Brokers of stacks map Kafka's classes from a file; engines and gateways are forked."""
    libs = {name: value for name, value in os.environ.items() if name == "FLUXPOOL_KAFKA_LIBS"}
    return {
        **libs,
        "JDK_JAVA_OPTIONS": " ".join(quick_start(kafka_libs)),
        "PYTHONPATH": str(WARM_LOCAL),
        "TEST_WARM_ENGINE": ",".join(warm_engine(stand_in=False)),
        "TEST_WARM_PROGRAM": ",".join(warm_program()),
    }


@pytest.fixture
def fluxpool(tmp_path: Path, environment: dict[str, str]) -> Iterator[Fluxpool]:
    """Run the command in a folder of its own; at the end, stop stacks that a failed test left there."""

    def run(*arguments: str, rc: int = 0, timeout_seconds: float = 240, **changes: str) -> Ended:
        ended = run_fluxpool(
            *arguments,
            folder=tmp_path,
            environment=environment | changes,
            deadline_seconds=PATIENCE * timeout_seconds,
        )
        assert ended.code == rc, f"{arguments}: {ended}"
        return ended

    yield run
    for state_file in tmp_path.rglob("state.json"):
        run("local", "down", "--data-dir", str(state_file.parent))


def up(fluxpool: Fluxpool, *arguments: str) -> dict[str, Any]:
    addresses: dict[str, Any] = json.loads(fluxpool("local", "up", "--detach", "-o", "json", *arguments).output)
    return addresses


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


def walk_the_tour(fluxpool: Fluxpool, folder: Path) -> None:
    """Run the commands of the tour that use the running stack, as a reader does."""
    lines = re.findall(r"^\.venv/bin/fluxpool (.*)$", TOUR.read_text(), re.MULTILINE)
    commands = [words for words in map(shlex.split, lines) if words[0] != "local"]
    assert [words[0] for words in commands] == ["submit", "batch", "watch", "batch", "submit", "dlq", "dlq", "dlq"]
    image, send, watch, fetch, refused, listing, dry_run, replay = commands
    fluxpool(*image)
    fluxpool(*in_clone(send))
    fluxpool(*watch, "--once")
    fluxpool(*in_clone(fetch))
    assert len(list((folder / "pictures").iterdir())) == 1 + 24
    fluxpool(*refused, rc=1)
    assert "this pool offers none" in fluxpool(*listing).output
    assert "1 to flux-generation-tasks would be sent" in fluxpool(*dry_run).output
    assert "1 to flux-generation-tasks sent" in fluxpool(*replay).output
    (letter,) = json.loads(fluxpool("dlq", "list", "--all", "--json").output)["dead_letters"]

    def replayed() -> bool:
        return bool(json.loads(fluxpool("trace", letter["request_id"], "--json").output)["state"] == "success")

    wait_until_blocking(replayed, deadline_seconds=60, what="the image of the replayed task")


def test_a_stack_starts_scales_to_zero_stops_and_restarts_at_the_same_address(
    fluxpool: Fluxpool, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    folder = tmp_path / ".fluxpool"
    model = ("--model", str(tiny_checkpoint))
    first = up(fluxpool, "--idle-grace", "1", *model)
    assert first["data_dir"] == str(folder)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", first["bootstrap_servers"])
    assert httpx.get(f"{first['gateway_url']}/readyz", trust_env=False, timeout=ANSWER_SECONDS).is_success

    # The address that people open comes first; it needs no key here.
    assert next(iter(first)) == "page_url"
    page = httpx.get(first["page_url"], trust_env=False, timeout=ANSWER_SECONDS)
    assert (page.status_code, "Create" in page.text) == (200, True)

    second = fluxpool("local", "up", "--detach", "-o", "json")
    assert json.loads(second.output) == first
    assert "already runs" in second.complaints

    status = json.loads(fluxpool("local", "status", "--json").output)
    assert (status["running"], status["phase"], status["plan"]["replicas"]) == (True, "ready", 0)
    assert {part["name"] for part in status["parts"]} == {"gateway", "projector", "dispatcher", "kafka-1"}

    # Without --url, commands use the gateway of their current folder.
    refused = fluxpool("submit", "a fox", "--size", "100x64", rc=2)
    assert "width: 100 is not a multiple of 16; the nearest legal sizes are 96 or 112" in refused.complaints
    assert "priority" in fluxpool("submit", "a fox", "--priority", "urgent", rc=2).complaints
    accepted = fluxpool("submit", "a heron", *SMALL, "--json")
    assert json.loads(accepted.output)["status"] == "queued"
    late = fluxpool("submit", "a newt", *SMALL, "--wait", "--timeout", "0.1", rc=5)
    assert "--timeout" in late.complaints

    images = fluxpool(
        "submit", "a fox", *SMALL, "-n", "2", "--priority", "vip", "--output-dir", "out", "--format", "webp", "--json"
    )
    document = json.loads(images.output)
    assert document["status"] == "succeeded"
    assert [Path(file).suffix for file in document["files"]] == [".webp", ".webp"]
    assert all((tmp_path / file).stat().st_size > 100 for file in document["files"])
    assert images.complaints.splitlines()[-1] == "succeeded"

    wait_until_blocking(lambda: not workers_in(folder), deadline_seconds=60, what="the idle worker is gone")
    watched = json.loads(fluxpool("watch", "--once", "--json").output)
    assert watched["results"] == {"success": 3}
    assert watched["lag_records"] == {"vip": 0, "standard": 0}

    walk_the_tour(fluxpool, tmp_path)

    pids = [part.pid for part in (*state_in(folder).parts, state_in(folder).supervisor)]
    fluxpool("local", "down")
    wait_gone(pids)
    assert not (folder / "state.json").exists()
    assert "nothing runs" in fluxpool("local", "down").complaints
    fluxpool("local", "status", rc=3)
    fluxpool("submit", "a fox", "--url", first["gateway_url"], rc=3)

    again = up(fluxpool, *model)
    assert {name: again[name] for name in again if name != "pid"} == {
        name: first[name] for name in first if name != "pid"
    }
    assert (
        httpx.get(document["image_url"], trust_env=False, timeout=ANSWER_SECONDS).content
        == (tmp_path / document["files"][0]).read_bytes()
    )


def test_a_crashed_worker_is_replaced_and_the_stack_ends_with_its_supervisor(
    fluxpool: Fluxpool, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    folder = tmp_path / ".fluxpool"
    up(fluxpool, "--min-workers", "1", "--max-workers", "1", "--model", str(tiny_checkpoint))
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
    assert "nothing runs" in fluxpool("local", "down").complaints
    assert not (folder / "state.json").exists()


def test_two_folders_run_two_stacks_and_down_ends_one_of_them(
    fluxpool: Fluxpool, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    model = ("--model", str(tiny_checkpoint))
    left, right = up(fluxpool, "--data-dir", "left", *model), up(fluxpool, "--data-dir", "right", *model)
    for name in ("gateway_url", "bootstrap_servers", "data_dir", "pid"):
        assert left[name] != right[name]
    fluxpool("local", "down", "--data-dir", "left")
    assert not (tmp_path / "left" / "state.json").exists()
    assert httpx.get(f"{right['gateway_url']}/readyz", trust_env=False, timeout=ANSWER_SECONDS).is_success
    assert all(part.is_alive() for part in state_in(tmp_path / "right").parts)


def test_a_foreground_stack_on_a_given_kafka_ends_cleanly_on_ctrl_c(
    fluxpool: Fluxpool, tmp_path: Path, bootstrap_servers: str, tiny_checkpoint: Path
) -> None:
    given = ("--bootstrap-servers", bootstrap_servers, "--model", str(tiny_checkpoint))
    with subprocess.Popen(
        [PROGRAM, "local", "up", "-o", "json", *given, "--data-dir", "fg"],
        cwd=tmp_path,
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
        # Without the path, engines are executed.
        subprocess.Popen(
            [PROGRAM, "local", "demo", "--data-dir", "demo", "--keep", "--timeout", str(300 * PATIENCE)],
            cwd=tmp_path,
            env={**os.environ, **environment, "PYTHONPATH": ""},
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
    ended = fluxpool("local", "demo", "--data-dir", "demo", *late, "--json", rc=1, PYTHONPATH="")
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


def test_all_files_are_in_the_data_folder_for_any_folder_name(fluxpool: Fluxpool, tmp_path: Path) -> None:
    folder = tmp_path / "root" / "- my #50%20 \"zdjęcia\" 'x'?+:,;[a]$&"
    folder.parent.mkdir()
    addresses = up(fluxpool, "--data-dir", str(folder), "--max-workers", "1")
    saved = fluxpool("submit", "a kite", *SMALL, "--url", addresses["gateway_url"], "--output-dir", "out", "--json")
    assert json.loads(saved.output)["status"] == "succeeded"
    assert len(list((folder / "images").rglob("*.png"))) == 1
    assert list((folder / "kafka").rglob("00000000000000000000.log"))
    assert list(folder.parent.iterdir()) == [folder]
    # Prompts and images are readable by the user of the stack only; a tiny model is public.
    readable = {entry.relative_to(folder) for entry in folder.rglob("*") if is_for_others(entry)}
    assert readable <= {Path("tiny-model")}


def test_a_demo_with_a_model_that_cannot_be_loaded_ends_with_the_reason(
    fluxpool: Fluxpool, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    index = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    index.write_text("{")
    ended = fluxpool("local", "demo", "--data-dir", "demo", "--model", "model", "--tasks", "2", rc=1)
    assert re.search(r"^workers cannot start: model .*model'", ended.complaints, re.MULTILINE)
