"""Writes a file whole or not at all: beside its place first, so that an interrupted command leaves the old one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(file: Path) -> Iterator[Callable[[bytes], int]]:
    """Gives what writes a part; the file is replaced at the end of the block, unless that raises. Raises `OSError`."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with partial.open("wb") as written:
            yield written.write
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
