"""Rules of the repository that no linter checks: shadowing names, sizes, pins, forbidden content."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.waiting import PATIENCE

ROOT = Path(__file__).parents[3]
MAX_MODULE_LINES = 500
MAX_MODULES_IN_A_FOLDER = 14
REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
# In parts, because this file is searched too.
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pypi", "python", "org"),
        ("files", "pythonhosted", "org"),
        ("repo", "maven", "apache", "org"),
        ("repo1", "maven", "org"),
        ("proxy", "golang", "org"),
        ("registry", "npmjs", "org"),
        ("registry", "npmjs", "com"),
        ("download", "pytorch", "org"),
        ("deb", "debian", "org"),
    )
)
MACHINE_PATHS = tuple("/".join(("", *parts, "")) for parts in (("work",), ("root",), ("workspace",)))


def house_files() -> list[Path]:
    """Tracked files, and new ones that git does not ignore."""
    listed = subprocess.run(
        # In a container, for example, a clone may belong to another user than the one who runs the tests.
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in files if path.is_file()]


def texts() -> Iterator[tuple[str, str]]:
    """Name and text of every text file of the repository."""
    for path in house_files():
        try:
            yield str(path.relative_to(ROOT)), path.read_text()
        except UnicodeDecodeError:
            continue


def pins(path: Path) -> dict[str, str]:
    """Package to pinned version."""
    found = re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    assert found, f"{path.name} pins nothing"
    return dict(found)


# Names


def test_no_folder_of_the_root_shadows_a_module_of_the_standard_library() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages & set(sys.stdlib_module_names) == set()
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_the_standard_librarys_operator_is_the_one_that_is_imported_from_the_root() -> None:
    program = "import operator, os; print(os.path.dirname(operator.__file__) == os.path.dirname(os.__file__))"
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60 * PATIENCE
    )
    assert finished.stdout == "True\n"


def test_only_the_kit_is_a_package_among_the_tests() -> None:
    packages = {path.relative_to(ROOT / "tests").parts[0] for path in (ROOT / "tests").rglob("__init__.py")}
    assert packages == {"kit"}


def test_test_files_have_names_of_their_own() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


# Sizes


def test_no_module_is_longer_than_500_lines() -> None:
    long = {
        name: text.count("\n") for name, text in texts() if name.endswith(".py") and text.count("\n") > MAX_MODULE_LINES
    }
    assert long == {}


def test_no_folder_has_more_than_14_modules() -> None:
    folders = Counter(
        str(Path(name).parent)
        for name, _ in texts()
        if name.endswith(".py") and (name.startswith("tests/kit/") or not name.startswith("tests/"))
    )
    assert {folder: count for folder, count in folders.items() if count > MAX_MODULES_IN_A_FOLDER} == {}


# Pins


def test_there_are_pins_for_every_deployable_and_for_development() -> None:
    assert {path.stem for path in REQUIREMENTS} == {"operator", "worker", "gateway", "cli", "docs", "dev"}


@pytest.mark.parametrize("path", REQUIREMENTS, ids=lambda path: path.stem)
def test_requirements_hold_pins_with_hashes_and_no_addresses(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert re.findall(r"^\s*-(?!-hash=)\S+", text, re.MULTILINE) == []
    blocks = re.split(r"\n(?=[a-z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    unhashed = [block.split()[0] for block in blocks if block.strip() and "--hash=sha256:" not in block]
    assert unhashed == []


def test_a_package_has_one_version_everywhere() -> None:
    development = pins(ROOT / "requirements" / "dev.txt")
    for path in REQUIREMENTS:
        assert pins(path).items() <= development.items(), path.name


@pytest.mark.parametrize("deployable", ["operator", "gateway", "cli"])
def test_only_the_worker_needs_torch(deployable: str) -> None:
    heavy = {"torch", "diffusers", "transformers", "accelerate", "triton"}
    assert heavy <= pins(ROOT / "requirements" / "worker.txt").keys()
    assert heavy & pins(ROOT / "requirements" / f"{deployable}.txt").keys() == set()


# What files may not hold


def test_every_consumer_of_the_product_passes_on_what_it_cannot_decode() -> None:
    """aiokafka's consumers do with these options; librdkafka crashes at header names that are not UTF-8."""
    rooms = ("transport/", "gateway/", "worker/", "operator/", "cli/")
    sources = {name: text for name, text in texts() if name.startswith(rooms) and name.endswith(".py")}
    readers = {name for name, text in sources.items() if "AIOKafkaConsumer(" in text}
    assert readers
    assert [name for name in readers if "aiokafka_options(" not in sources[name]] == []
    librdkafkas = re.compile(r"from confluent_kafka import [^\n]*\b(Deserializing)?Consumer\b")
    assert [name for name, text in sources.items() if librdkafkas.search(text)] == []


def test_no_file_names_the_host_of_a_package_registry() -> None:
    assert [(name, host) for name, text in texts() for host in REGISTRY_HOSTS if host in text] == []


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    assert [(name, path) for name, text in texts() for path in MACHINE_PATHS if path in text] == []


def test_every_package_is_marked_as_typed() -> None:
    packages = [path.parent for path in ROOT.glob("*/fluxpool_*/__init__.py")]
    assert len(packages) == 7
    assert [path.name for path in packages if not (path / "py.typed").is_file()] == []


def test_the_changelog_has_the_version_and_the_licence_is_whole() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"\n## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    licence = (ROOT / "LICENSE").read_text()
    assert project["license"] == "Apache-2.0"
    assert all(part in licence for part in ("Version 2.0, January 2004", "END OF TERMS AND CONDITIONS", "APPENDIX"))


# Make and CI


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # The tests run under make; a nested make that inherits its variables prints its folder.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * PATIENCE,
    )


def test_make_help_explains_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):(?!=)", text, re.MULTILINE))
    (phony,) = re.findall(r"^\.PHONY: ([a-z0-9 -]+)$", text, re.MULTILINE)
    shown = dict(line.split(maxsplit=1) for line in _make("help").stdout.splitlines())
    assert targets == set(phony.split()) == shown.keys()


def test_make_without_a_target_is_help() -> None:
    assert _make().stdout == _make("help").stdout


def _run_ci(folder: Path, *, failing: str = "") -> subprocess.CompletedProcess[str]:
    """The real script, in a clone whose make targets only print their names; `failing` is the one that fails."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci" / "run")
    required = (
        "$${TEST_REQUIRE_CLUSTER:+required}$${TEST_REQUIRE_POSTGRES:+ postgres}$${TEST_REQUIRE_BROWSER:+ browser}"
    )
    recipe = f"\t@echo $@ $$CI {required}; test -z \"$$(cat)\"; test '$@' != '{failing}'\n"
    (folder / "Makefile").write_text("".join(f"{target}:\n{recipe}" for target in make_targets()))
    return subprocess.run(
        [str(folder / ".ci" / "run")],
        cwd="/",
        env={"PATH": os.environ["PATH"]},
        input="unread\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * PATIENCE,
    )


def make_targets() -> list[str]:
    return re.findall(r"^([a-z0-9-]+):[^\n]*##", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_ci_runs_the_checks_and_every_test_with_none_on_the_control_plane_skipped(tmp_path: Path) -> None:
    finished = _run_ci(tmp_path)
    assert finished.returncode == 0, finished.stderr
    ran = finished.stdout.splitlines()
    # Foreign servers are provided beside the set-up; the checks run beside the tests and are shown after them.
    assert sorted(ran[:4]) == [
        f"{target} true required" for target in ("browser", "control-plane", "postgres", "setup")
    ]
    assert ran[4:] == [f"{target} true required postgres browser" for target in ("test", "lint")]


@pytest.mark.parametrize(
    ("failing", "skipped", "had"),
    [("postgres", "on PostgreSQL", "browser"), ("browser", "of the page in a browser", "postgres")],
)
def test_ci_says_so_where_a_foreign_program_cannot_be_had_and_runs_the_other_tests(
    tmp_path: Path, failing: str, skipped: str, had: str
) -> None:
    finished = _run_ci(tmp_path, failing=failing)
    assert finished.returncode == 0, finished.stderr
    assert f"The tests {skipped} are skipped." in finished.stderr
    assert finished.stdout.splitlines()[4:] == [f"{target} true required {had}" for target in ("test", "lint")]


@pytest.mark.parametrize(
    ("failing", "ran"),
    [
        ("lint", {"lint", "setup", "control-plane", "test"}),
        ("setup", {"setup"}),
        ("control-plane", {"setup", "control-plane"}),
        ("test", {"lint", "setup", "control-plane", "test"}),
    ],
)
def test_ci_fails_with_what_it_runs(tmp_path: Path, failing: str, ran: set[str]) -> None:
    finished = _run_ci(tmp_path, failing=failing)
    assert finished.returncode != 0
    # These may have been provided by then.
    beside = {"browser", "control-plane", "postgres"}
    assert set(re.findall(r"^(\S+) true\b", finished.stdout, re.MULTILINE)) | beside == ran | beside
