"""The folder of a run with broker outages."""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


def add_folder_option(parser: argparse.ArgumentParser) -> None:
    """`--folder NEW`, for `run_folder`."""
    parser.add_argument("--folder", type=_new_folder, help="keep logs, brokers and images in this new folder")


@contextlib.contextmanager
def run_folder(wanted: Path | None) -> Iterator[Path]:
    """The given folder, created and kept, or a temporary one."""
    if wanted is None:
        with tempfile.TemporaryDirectory(prefix="fluxpool-run-") as name:
            yield Path(name)
    else:
        wanted.mkdir(parents=True)
        yield wanted.resolve()


def _new_folder(text: str) -> Path:
    folder = Path(text)
    if folder.exists():
        raise argparse.ArgumentTypeError(f"{text}: it exists; name a new one")
    return folder
