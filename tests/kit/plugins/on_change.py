"""A pytest plugin for the marker `on_change`: its tests run when their inputs change.

They test the kit, images or foreign software. A test that passed is skipped until one of its inputs differs: the kit,
`hack`, the pinned packages, its own file, the product's modules that it imports, and the folders that its marker names.
Owns the stamps in the cache folder; must not know the content of the tests.
"""

import ast
import hashlib
import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[3]
MARKER: Final = "on_change"
OPTION: Final = "--test-all"
REASON: Final = "passed with the same inputs before; `make test-all`, or naming its file, runs it all the same"
ALWAYS: Final = ("tests/conftest.py", "tests/kit", "hack", "requirements", "pyproject.toml")
STAMPS_KEPT_SECONDS: Final = 30 * 86400.0
_PASSED: Final = pytest.StashKey[bool]()


class UnchangedTests:
    """Skips marked tests that passed with the same inputs, and records those that pass."""

    def __init__(self, *, root: Path, stamps: Path, run_all: bool, named: frozenset[Path]) -> None:
        """`named` are test files that always run: naming a file means working on it."""
        self._inputs = Inputs(root)
        self._stamps = stamps
        self._run_all = run_all
        self._named = named

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Skip tests that have passed."""
        if self._run_all:
            return
        for item in items:
            marked = item.get_closest_marker(MARKER) and item.path not in self._named
            if marked and item.name in self._passed(self._stamp(item)):
                item.add_marker(pytest.mark.skip(reason=REASON))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Record a test whose set-up, call and teardown passed; skipped is not passed."""
        report = yield
        item.stash[_PASSED] = report.passed and (report.when == "setup" or item.stash[_PASSED])
        if report.when == "teardown" and item.stash[_PASSED] and item.get_closest_marker(MARKER):
            self._note(item)
        return report

    def _stamp(self, item: pytest.Item) -> Path:
        folders = (str(folder) for marker in item.iter_markers(MARKER) for folder in marker.args)
        return self._stamps / f"{item.path.stem}-{self._inputs.digest(item.path, folders)}"

    def _passed(self, stamp: Path) -> frozenset[str]:
        return frozenset(stamp.read_text().splitlines()) if stamp.exists() else frozenset()

    def _note(self, item: pytest.Item) -> None:
        self._stamps.mkdir(parents=True, exist_ok=True)
        # One short append for each test: concurrent runs do not interleave their lines.
        with self._stamp(item).open("a") as stamp:
            stamp.write(f"{item.name}\n")
        for old in self._stamps.iterdir():
            if old.stat().st_mtime < time.time() - STAMPS_KEPT_SECONDS:
                old.unlink(missing_ok=True)


class Inputs:
    """Digests of the inputs of the tests of a tree."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._digests: dict[tuple[Path, tuple[str, ...]], str] = {}
        self._imports: dict[Path, frozenset[Path]] = {}

    def digest(self, test_file: Path, folders: Iterable[str] = ()) -> str:
        """Digest of all inputs of such a test; the same text in another clone has the same digest."""
        key = test_file, tuple(sorted(folders))
        if key not in self._digests:
            self._digests[key] = self._hash({*self._always, *self._below(key[1]), *self._imported([test_file])})
        return self._digests[key]

    @cached_property
    def _always(self) -> frozenset[Path]:
        return frozenset(self._below(ALWAYS))

    def _below(self, names: Iterable[str]) -> Iterator[Path]:
        for path in (self._root / name for name in names):
            found = path.rglob("*") if path.is_dir() else [path]
            yield from (file for file in found if file.is_file() and "__pycache__" not in file.parts)

    def _imported(self, start: Iterable[Path]) -> set[Path]:
        """These files and all modules of the tree that they import by name, and so on."""
        found: set[Path] = set()
        waiting = [*start, *(path for path in start for path in path.parents[0].glob("conftest.py"))]
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting += self._imports_of(path)
        return found

    def _imports_of(self, path: Path) -> frozenset[Path]:
        """Modules of the tree; each file is parsed once, for all tests that reach it."""
        if path not in self._imports:
            modules = (self._modules.get(name) for name in imported_names(path))
            self._imports[path] = frozenset(module for module in modules if module)
        return self._imports[path]

    @cached_property
    def _modules(self) -> dict[str, Path]:
        """Every module of the tree by its dotted name."""
        rooms = [path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith(".")]
        found = sorted((file.relative_to(room), file) for room in rooms for file in room.rglob("*.py"))
        return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): file for name, file in found}

    def _hash(self, files: Iterable[Path]) -> str:
        whole = hashlib.sha256(f"{sys.version} {sys.platform}".encode())
        for path in sorted(files):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(self._root)} {content}\n".encode())
        return whole.hexdigest()[:16]


def imported_names(path: Path) -> Iterator[str]:
    """Every dotted name that may be a module in the imports of a Python file."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module)):
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case _:
                pass


def stamps_folder() -> Path:
    """Folder of the stamps that all runs of this machine share."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fluxpool" / "passed"
