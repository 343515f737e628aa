"""A tiny FLUX checkpoint with random weights: 1 MB on disk, built offline, read by the very code that reads a real one.

It owns the folder on disk; it must not know who generates with it. Its pictures are colourful noise that depends on
prompt and seed. Continues in `checkpoint.tiny_pipeline`, which imports torch: not for a folder that holds it already.

`python -m fluxpool_worker.engine.tiny_checkpoint FOLDER` writes one.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from fluxpool_worker.engine.checkpoint.families import TINY_MARKER

RECIPE_VERSION = 1
"""Raised with every change that makes the same seed give other pictures."""


def write_tiny_checkpoint(folder: Path, *, seed: int = 0, guidance_embeds: bool = True) -> None:
    """Write the checkpoint into `folder`; the same arguments give the same pictures on every machine.

    `guidance_embeds=False` builds the shape of FLUX.1-schnell instead of FLUX.1-dev. The folder appears whole or not
    at all, and one that already holds this very checkpoint is left alone. Raises `FileExistsError` when it holds
    anything else.
    """
    marker = {"recipe_version": RECIPE_VERSION, "seed": seed, "guidance_embeds": guidance_embeds}
    if _holds(folder, marker):
        return
    # Seconds of imports, which a stack that is started again does not pay.
    from fluxpool_worker.engine.checkpoint.tiny_pipeline import build_tiny_pipeline  # noqa: PLC0415

    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        build_tiny_pipeline(seed=seed, guidance_embeds=guidance_embeds).save_pretrained(staging)
        (staging / TINY_MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        staging.chmod(0o755)  # mkdtemp's 0700 would hide the model from a worker that runs as another user
        _publish(staging, folder, marker)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, folder: Path, marker: dict[str, Any]) -> None:
    try:
        staging.rename(folder)
    except OSError:
        # Another process that wrote the same checkpoint meanwhile has done our work.
        if not _holds(folder, marker):
            raise


def _holds(folder: Path, marker: dict[str, Any]) -> bool:
    """Whether the folder is this checkpoint already; raises `FileExistsError` when it is something else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; name a new or empty folder for the tiny checkpoint")
    marker_file = folder / TINY_MARKER
    if marker_file.is_file() and json.loads(marker_file.read_text(encoding="utf-8")) == marker:
        return True
    if any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} is not empty and not the tiny checkpoint {marker}; name a new or empty folder, "
            "or delete this one yourself"
        )
    return False


def main() -> None:
    """Write the checkpoint into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="fluxpool_worker.engine.tiny_checkpoint", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_tiny_checkpoint(arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
