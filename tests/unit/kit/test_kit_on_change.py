"""Tests marked `on_change` run when what they depend on changed, and only then."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.plugins.on_change import MARKER, REASON, Inputs

pytestmark = pytest.mark.on_change

CONFTEST = f"""
import sys
from pathlib import Path
from kit.plugins.on_change import OPTION, UnchangedTests

def pytest_addoption(parser):
    parser.addoption(OPTION, action="store_true")

def pytest_configure(config):
    config.addinivalue_line("markers", "{MARKER}(*folders): is tested here")
    named = frozenset(Path(argument).resolve() for argument in config.args)
    root = Path(__file__).parent
    run_all = config.getoption(OPTION)
    config.pluginmanager.register(UnchangedTests(root=root, stamps=root / "stamps", run_all=run_all, named=named))
"""
TESTS = f"""
import os, pytest
from product.part import NUMBER
pytestmark = pytest.mark.{MARKER}("extra")
def test_good(): pass
def test_bad(): assert NUMBER == 1
@pytest.fixture
def torn():
    yield
    assert NUMBER == 1
def test_torn(torn): pass
def test_skipped(): pytest.skip("not here")
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "tests/test_marked.py": TESTS,
        "tests/test_plain.py": "def test_plain(): pass\n",
        "conftest.py": CONFTEST,
        "tests/kit/tool.py": "",
        "extra/table.txt": "1",
        "room/product/__init__.py": "",
        "room/product/part.py": "from product.deeper import NUMBER\n",
        "room/product/deeper.py": "NUMBER = 2\n",
        "room/product/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def outcomes(tree: Path, *arguments: str) -> str:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "/dev/null",
        "--rootdir",
        ".",
        "-p",
        "no:cacheprovider",
        "-v",
        "-rs",
    ]
    python_path = f"{Path(__file__).parents[2]}:{tree / 'room'}"
    environment = {"PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1"}
    finished = subprocess.run(
        [*command, *arguments], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode in {0, 1}, finished.stdout + finished.stderr
    return finished.stdout


def test_passed_tests_are_skipped_with_the_remedy_and_others_run_again(tree: Path) -> None:
    assert "3 passed, 1 skipped, 1 error" in outcomes(tree)
    second = outcomes(tree)
    assert REASON in second
    assert "test_good SKIPPED" in second
    assert "test_bad FAILED" in second
    assert "test_torn PASSED" in second
    assert "test_torn ERROR" in second
    assert "test_plain PASSED" in second
    assert "not here" in second, "a test with an error has not passed"


@pytest.mark.parametrize("asked", ["--test-all", "tests/test_marked.py"])
def test_the_option_runs_all_tests(tree: Path, asked: str) -> None:
    outcomes(tree)
    assert "test_good PASSED" in outcomes(tree, asked)


def test_a_test_runs_again_when_the_modules_it_imports_change(tree: Path) -> None:
    outcomes(tree)
    (tree / "room/product/deeper.py").write_text("NUMBER = 1\n")
    assert "4 passed, 1 skipped" in outcomes(tree)
    assert "1 passed, 4 skipped" in outcomes(tree)


def inputs_changed_by(tree: Path) -> Iterator[str]:
    """Names of the files whose change alters the digest of the marked tests."""
    test_file = tree / "tests/test_marked.py"
    before = Inputs(tree).digest(test_file, ["extra"])
    for path in sorted(path for path in tree.rglob("*") if path.is_file()):
        text = path.read_text()
        path.write_text(f"{text}\n")
        if Inputs(tree).digest(test_file, ["extra"]) != before:
            yield str(path.relative_to(tree))
        path.write_text(text)


def test_inputs_are_the_kit_the_test_what_it_imports_and_what_its_marker_names(tree: Path) -> None:
    assert set(inputs_changed_by(tree)) == {
        "extra/table.txt",
        "room/product/deeper.py",
        "room/product/part.py",
        "tests/kit/tool.py",
        "tests/test_marked.py",
    }


def test_the_same_tree_elsewhere_has_the_same_digest(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("clone") / "tree"
    tree.rename(other)
    moved = Inputs(other).digest(other / "tests/test_marked.py", ["extra"])
    other.rename(tree)
    assert Inputs(tree).digest(tree / "tests/test_marked.py", ["extra"]) == moved
