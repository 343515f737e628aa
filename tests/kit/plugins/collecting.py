"""A pytest plugin that collects quicker: six thousand tests take each process half a minute of a core.

The garbage collector waits until the tests are collected, and never visits them afterwards. Several processes begin
with different folders, so that one writes the rewritten byte code of a file and the others find it.
"""

import gc
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Final

import pytest

_INDEX: Final = "PYTEST_XDIST_WORKER"
_COUNT: Final = "PYTEST_XDIST_WORKER_COUNT"
"""Set by xdist in the processes that run tests; the first is `gw0`."""


class Collecting:
    """Collects the whole suite in an order of this process, and returns it in that of the files."""

    def __init__(self) -> None:
        """Nothing is collected yet."""
        self._is_reordered = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self, session: pytest.Session) -> Generator[None, object, object]:
        """Begin with the folder of this process; without garbage collection, which takes a quarter of the time."""
        config = session.config
        if config.args_source is pytest.Config.ArgsSource.TESTPATHS and _INDEX in os.environ:
            self._is_reordered = True
            index = int(os.environ[_INDEX].removeprefix("gw"))
            config.args = order(folders_of(config), index=index, count=int(os.environ[_COUNT]))
        gc.disable()
        try:
            return (yield)
        finally:
            gc.freeze()
            gc.enable()

    def pytest_unconfigure(self) -> None:
        """Leave nothing for the end of the interpreter, where libraries list what was not freed."""
        gc.unfreeze()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Give all processes the same order, before fixtures change it."""
        if self._is_reordered:
            items.sort(key=lambda item: item.nodeid.partition("::")[0])


def folders_of(config: pytest.Config) -> dict[str, int]:
    """Folders with test files, by name, and the bytes of these files."""
    sizes: dict[str, int] = {}
    for file in sorted(path for root in config.args for path in Path(config.rootpath, root).rglob("test_*.py")):
        sizes[str(file.parent)] = sizes.get(str(file.parent), 0) + file.stat().st_size
    return sizes


def order(sizes: Mapping[str, int], *, index: int, count: int) -> list[str]:
    """The folders, beginning with the one at that part of all bytes; those before it come last."""
    # A process that replaces one that crashed has a higher number.
    wanted = index % count / count * sum(sizes.values())
    before = 0
    folders = list(sizes)
    for position, size in enumerate(sizes.values()):
        if before + size / 2 > wanted:
            return folders[position:] + folders[:position]
        before += size
    return folders
