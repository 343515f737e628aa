"""The documentation matches the product: commands, options, examples, links, tables."""

import ast
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import command_line
from fluxpool_contract import header_names
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_contract.messages import dead_letter
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.dead_letter import Disposition
from fluxpool_contract.messages.decoding import decode_task
from fluxpool_contract.messages.feedback import Comparison, Rating
from fluxpool_contract.messages.pool_state import PoolState
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_contract.messages.resolution import Resolution
from fluxpool_contract.messages.result import GenerationResult
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_contract.settings.environment import EnvironmentSettings, SettingsError
from fluxpool_contract.settings.worker import DEFAULT_CONSUMER_GROUP, Lane, WorkerSettings
from fluxpool_gateway.http.generation_request import parse_request
from fluxpool_gateway.http.problem import ProblemCode, ProblemDocument
from fluxpool_gateway.presets.preset import Preset
from fluxpool_gateway.settings import GatewaySettings, TenantLimits
from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError

ROOT = Path(__file__).parents[3]
DOCS = sorted(path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
PACKAGES = [ROOT / room for room in ("contract", "transport", "gateway", "worker", "operator", "cli")]
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(name: str) -> str:
    return (ROOT / name).read_text()


def fences(kind: str) -> Iterator[tuple[Path, str, str]]:
    """File, tag and text of every fenced block of this language."""
    for path in DOCS:
        for found in FENCE.finditer((ROOT / path).read_text()):
            language, _, tag = found["kind"].partition(" ")
            if language == kind:
                yield path, tag, found["text"]


def rows_under(name: str, heading: str) -> dict[str, list[str]]:
    """Rows of the table under a heading, by their first cell without backticks."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text_of(name), re.MULTILINE | re.DOTALL)
    assert section is not None, f"{name} has no heading {heading!r}"
    lines = [line for line in section[1].splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("` "): row for row in rows}


# Commands


def commands() -> list[tuple[Path, list[str]]]:
    """Every command of the bash blocks as words, without variables before it and without the path to `.venv`."""
    found = []
    for path, _, text in fences("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in line.split(" | "):
                words = shlex.split(part, comments=True)
                words = list(itertools.dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
                if words:
                    found.append((path, [words[0].removeprefix(".venv/bin/"), *words[1:]]))
    return found


def make_targets() -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+):[^\n]*?## (.*)$", text_of("Makefile"), re.MULTILINE))


def test_every_command_in_the_docs_is_of_a_known_program() -> None:
    known = {"make", "fluxpool", "curl", "kcat", "echo", "python"}
    assert {words[0] for _, words in commands()} <= known


def test_every_make_target_in_the_docs_exists() -> None:
    shown = [(path, word) for path, words in commands() if words[0] == "make" for word in words[1:] if "=" not in word]
    inline = [
        (path, target) for path in DOCS for target in re.findall(r"`make ([a-z0-9-]+)", (ROOT / path).read_text())
    ]
    assert {"demo", "test"} <= {target for _, target in shown}
    assert [(str(path), target) for path, target in shown + inline if target not in make_targets()] == []


def test_every_variable_given_to_make_in_the_docs_is_read_by_that_target() -> None:
    makefile = text_of("Makefile")
    given = [
        found
        for path in DOCS
        for found in re.findall(r"make ([a-z0-9-]+)((?: [A-Z_]+=\S+)+)", (ROOT / path).read_text())
    ]
    assert given
    for target, assignments in given:
        recipe = re.search(rf"^{target}:.*?(?=^\S|\Z)", makefile, re.MULTILINE | re.DOTALL)
        assert recipe is not None
        # One level of indirection: `lock` uses $(LOCK) and reads $(UPGRADE) itself.
        for name in re.findall(r"([A-Z_]+)=", assignments):
            assert f"$({name})" in recipe[0], f"make {target} does not read {name}"


def check_fluxpool(words: list[str]) -> None:
    """Walk the command's words through the real command line's parameters."""
    command: Any = command_line()
    rest = list(words)
    while rest and hasattr(command, "commands"):
        assert rest[0] in command.commands, f"there is no command {rest[0]!r}"
        command = command.commands[rest.pop(0)]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }
    unknown = [word for word in rest if re.match(r"--?[a-z]", word) and word not in options]
    assert unknown == [], f"{command.name} has no {unknown}"
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    positional = [
        word
        for before, word in itertools.pairwise(["", *rest])
        if not word.startswith("-") and not _takes_value(command, before)
    ]
    assert len(positional) <= len(arguments), f"{command.name} does not take {positional}"


def _takes_value(command: Any, option: str) -> bool:
    return any(option in parameter.opts and not parameter.is_flag for parameter in command.params if option[:1] == "-")


def test_every_fluxpool_command_in_the_docs_exists_with_its_options() -> None:
    shown = [(path, words[1:]) for path, words in commands() if words[0] == "fluxpool"]
    assert {words[0] for _, words in shown} >= {"local", "submit", "watch", "model"}
    for path, words in shown:
        try:
            check_fluxpool(words)
        except AssertionError as error:
            raise AssertionError(f"{path}: fluxpool {shlex.join(words)}: {error}") from None


@pytest.mark.parametrize("words", [["local", "upp"], ["watch", "--onze"], ["local", "down", "now"]])
def test_a_missing_command_is_noticed(words: list[str]) -> None:
    with pytest.raises(AssertionError):
        check_fluxpool(words)


def test_every_python_program_in_the_docs_exists() -> None:
    for _, words in commands():
        if words[0] == "python" and words[1] == "-m":
            module = words[2].replace(".", "/")
            programs = [package / name for package in PACKAGES for name in (f"{module}.py", f"{module}/__main__.py")]
            assert any(program.is_file() for program in programs), words
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words


def test_every_program_of_the_tests_named_in_contributing_exists() -> None:
    for folder in set(re.findall(r"`(tests/[a-z]+)", text_of("CONTRIBUTING.md"))):
        assert (ROOT / folder).is_dir() or folder in {"tests/cluster", "tests/chart", "tests/web"}, folder


def test_the_options_of_local_up_are_those_of_the_command_with_their_defaults() -> None:
    command: Any = command_line()
    parameters = {option: item for item in command.commands["local"].commands["up"].params for option in item.opts}
    for names, row in rows_under("docs/how-to/local-mode.md", "Choices").items():
        options = re.findall(r"--[a-z-]+", names)
        defaults = re.findall(r"\d+", row[1])
        assert set(options) <= parameters.keys()
        for option, default in zip(options, defaults, strict=False):
            assert float(parameters[option].default) == float(default), option


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    assert rows_under("docs/reference/cli.md", "Exit codes").keys() == {str(code.value) for code in ExitCode}


# Examples


def _check_result(text: str) -> None:
    result = GenerationResult.model_validate_json(text)
    assert result.model_extra == {}, "fields that a result does not have"


def _check_task(text: str) -> None:
    assert decode_task(text.encode(), []).task.model_extra == {}


def _check_problem(text: str) -> None:
    problem = json.loads(text)
    ProblemDocument.model_validate(problem)
    assert problem.keys() <= ProblemDocument.model_fields.keys()
    assert problem["error"]["code"] in set(ProblemCode)


def _check_accepted(text: str) -> None:
    assert json.loads(text).keys() == {"request_id", "status", "status_url"}


JSON_EXAMPLES: Mapping[str, Callable[[str], object]] = {
    "task": _check_task,
    "result": _check_result,
    "problem": _check_problem,
    "accepted": _check_accepted,
    "response": json.loads,  # compared with the gateway's own in test_docs_http
    "progress": ProgressEvent.model_validate_json,
    "cancel": CancelCommand.model_validate_json,
    "pool-state": PoolState.model_validate_json,
    "rating": Rating.model_validate_json,
    "resolution": Resolution.model_validate_json,
    "comparison": Comparison.model_validate_json,
    "lanes": TypeAdapter(tuple[Lane, ...]).validate_json,
    "limits": TypeAdapter(dict[str, TenantLimits]).validate_json,
    "presets": TypeAdapter(dict[str, Preset]).validate_json,
}


@pytest.mark.parametrize(
    ("path", "tag", "text"),
    [pytest.param(*example, id=f"{example[0].stem}-{example[1]}") for example in fences("json")],
)
def test_every_json_example_is_what_it_says(path: Path, tag: str, text: str) -> None:
    assert tag in JSON_EXAMPLES, f"{path}: say what the JSON is after ```json, one of {', '.join(JSON_EXAMPLES)}"
    JSON_EXAMPLES[tag](text)


def test_every_kind_of_message_has_an_example() -> None:
    assert {tag for _, tag, _ in fences("json")} == JSON_EXAMPLES.keys()


def test_the_bodies_sent_by_curl_and_kcat_are_accepted() -> None:
    bodies = [words[words.index("-d") + 1] for _, words in commands() if "-d" in words]
    tasks = [words[1] for _, words in commands() if words[0] == "echo"]
    assert bodies
    assert tasks
    for body in bodies:
        parse_request(body.encode())
    for task in tasks:
        _check_task(task)


def test_the_foreign_client_sends_the_shipped_task_to_the_right_topics() -> None:
    (text,) = [text for _, tag, text in fences("python") if not tag]
    program = ast.parse(text)
    values = {
        target.id: ast.literal_eval(node.value)
        for node in program.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict | ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    shipped = json.loads((ROOT / "tests/unit/corpus/task.json").read_text())
    assert values["task"] == shipped
    names = {node.value for node in ast.walk(program) if isinstance(node, ast.Constant)}
    assert {TopicNames().tasks, TopicNames().results} <= names


def test_every_topic_and_group_named_in_the_docs_exists() -> None:
    known = {spec.name for spec in topic_specs(TopicNames())}
    known |= {DEFAULT_CONSUMER_GROUP, f"{DEFAULT_CONSUMER_GROUP}-vip"}
    for path in DOCS:
        named = set(re.findall(r"`(flux-[a-z0-9-]+)`", (ROOT / path).read_text()))
        assert named <= known, path


POOLS = [(path, text) for path, tag, text in fences("yaml") if tag == "pool"]


def test_every_pool_in_the_docs_is_valid() -> None:
    assert len(POOLS) > 8
    for path, text in POOLS:
        body = yaml.safe_load(text)
        try:
            FluxWorkerPool.parse(
                {**body, "metadata": {**body["metadata"], "namespace": "images", "uid": "0", "generation": 1}}
            )
        except InvalidPoolError as error:
            raise AssertionError(f"{path}: {body['metadata']['name']}: {error}") from None


def test_the_file_of_the_tour_has_valid_requests() -> None:
    lines = text_of("docs/tutorial/prompts.jsonl").splitlines()
    assert len(lines) == 24
    for line in lines:
        parse_request(line.encode())


# Links


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=str)
def test_relative_links_have_a_target(path: Path) -> None:
    text = FENCE.sub("", (ROOT / path).read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            assert target.startswith("https://"), target
            continue
        file, _, anchor = target.partition("#")
        linked = (ROOT / path).parent / file if file else ROOT / path
        assert linked.exists(), target
        assert linked.resolve().is_relative_to(ROOT), target
        assert not anchor or anchor in _anchors(linked), target


def test_every_page_is_linked_from_the_index_and_that_from_the_readme() -> None:
    linked = {Path("docs") / file for file in re.findall(r"\]\(([^)#\s]+)", text_of("docs/index.md"))}
    assert {path for path in DOCS if path.is_relative_to("docs")} - {Path("docs/index.md")} <= linked
    assert {"docs/index.md", "CONTRIBUTING.md", "CHANGELOG.md"} <= set(
        re.findall(r"\]\(([^)#\s]+)", text_of("README.md"))
    )


# Tables


def _generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, str(ROOT / "docs" / "generate.py"), *arguments]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_the_generated_tables_are_those_of_the_models() -> None:
    finished = _generate("--check")
    assert finished.returncode == 0, finished.stderr


def test_a_table_that_differs_is_named_and_written_again(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "reference" / "settings.md"
    original = settings.read_text()
    settings.write_text(original.replace("| `FLUXPOOL_POOL` |", "| `FLUXPOOL_SWIMMING_POOL` |"))
    finished = _generate("--check", str(tmp_path))
    assert finished.returncode == 1
    assert "settings.md" in finished.stderr
    assert "messages.md" not in finished.stderr
    assert _generate(str(tmp_path)).returncode == 0
    assert settings.read_text() == original


def test_a_table_without_a_place_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "docs" / "reference" / "messages.md", tmp_path)
    finished = _generate("--check", str(tmp_path))
    assert finished.returncode == 1
    assert "settings-worker" in finished.stderr


def _refusal(settings: type[EnvironmentSettings], environment: Mapping[str, str]) -> str:
    with pytest.raises(SettingsError) as refused:
        settings.from_environment(environment)
    return str(refused.value)


@pytest.mark.parametrize(
    ("settings", "headings"), [(WorkerSettings, ("Both", "Worker")), (GatewaySettings, ("Both", "Gateway"))]
)
def test_every_documented_setting_is_read_and_no_required_one_is_missing(
    settings: type[EnvironmentSettings], headings: tuple[str, ...]
) -> None:
    rows: dict[str, list[str]] = {}
    for heading in headings:
        rows |= rows_under("docs/reference/settings.md", heading)
    # `{` is no JSON, no address, no path with a scheme and no number: every setting with a form refuses it.
    refusal = _refusal(settings, dict.fromkeys(rows, "{") | {"FLUXPOOL_NO_SUCH_THING": "1"})
    assert re.findall(r"(FLUXPOOL_\w+): is not a known setting", refusal) == ["FLUXPOOL_NO_SUCH_THING"]
    required = set(re.findall(r"(FLUXPOOL_\w+): is required", _refusal(settings, {})))
    assert required == {name for name, row in rows.items() if row[1] == "required"}


def test_every_variable_named_in_the_docs_is_read_somewhere() -> None:
    settings = text_of("docs/reference/settings.md")
    for path in DOCS:
        for name in re.findall(r"`(FLUXPOOL_[A-Z_]*[A-Z])\b[=`]", (ROOT / path).read_text()):
            assert f"`{name}`" in settings, f"{path}: {name} is not in docs/reference/settings.md"
    sources = "".join(path.read_text() for package in PACKAGES for path in package.rglob("*.py"))
    for name in rows_under("docs/reference/settings.md", "Elsewhere"):
        assert f'"{name}"' in sources, f"no program reads {name}"


def test_the_fault_points_are_those_in_the_code() -> None:
    bound = [
        name
        for package in PACKAGES
        for path in package.rglob("*.py")
        for name in re.findall(r'fault_point\("([^"]+)"\)', path.read_text())
    ]
    assert len(bound) == len(set(bound)), "two points share a name"
    documented = rows_under("docs/reference/faults.md", "Fault points")
    assert set(documented) == set(bound)


def test_error_codes_classes_and_dispositions_are_those_of_the_contract() -> None:
    codes = rows_under("docs/reference/messages.md", "Error codes")
    assert codes.keys() == {code.value for code in ErrorCode}
    assert {row[1].strip("`") for row in codes.values()} <= {kind.value for kind in ErrorClass}
    assert rows_under("docs/reference/messages.md", "Dispositions").keys() == {kind.value for kind in Disposition}


def test_the_gateways_refusals_are_those_of_its_code() -> None:
    assert rows_under("docs/reference/messages.md", "Refusals of the gateway").keys() == {
        code.value for code in ProblemCode
    }


def test_every_header_is_documented_and_no_other() -> None:
    constants = {
        value
        for name, value in vars(header_names).items()
        if name.isupper() and isinstance(value, str) and not name.startswith(("TYPE_", "DEFAULT_", "_", "HEADER_"))
    }
    documented = set(re.findall(r"`([a-z_-]+)`", "".join(_first_cells("Headers of a task"))))
    assert documented == constants
    assert f"`{dead_letter.DEAD_LETTER_PREFIX}`" in text_of("docs/reference/messages.md")


def _first_cells(heading: str) -> list[str]:
    return [row[0] for row in rows_under("docs/reference/messages.md", heading).values()]
