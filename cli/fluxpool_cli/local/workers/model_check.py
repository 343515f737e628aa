"""Checks a model folder before anything is started.

Owns the quick checks: index, component folders, and what the engine itself says of the weight files. It finds other
faults when it loads the checkpoint.
"""

import json
import re
from pathlib import Path
from typing import Final

from fluxpool_worker.engine import WEIGHTED_PARTS, ForeignModelError, check_pipeline, family_of, weight_problems

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
_INDEX: Final = "model_index.json"


class ModelError(ValueError):
    """Workers cannot load this; the message says why and what to do."""


def checked_model(model: str) -> str:
    """The absolute folder of a checkpoint, or a hub id as it is; raises `ModelError`."""
    try:
        folder = Path(model).expanduser()
        exists = folder.exists()
    except (OSError, RuntimeError):
        folder, exists = Path(), False
    if exists and folder.is_dir():
        _check_folder(folder)
        return str(folder.resolve())
    if exists:
        raise ModelError(f"{model} is a file; name the folder of a diffusers checkpoint, which has a {_INDEX}")
    if not _HUB_ID.fullmatch(model):
        raise ModelError(f"there is no folder {model}, and a hub id looks like black-forest-labs/FLUX.1-dev")
    return model


def licensed_model(model: str) -> str:
    """The model with its family and the licence of that family's weights, where it is a folder that can be read."""
    try:
        family = family_of(Path(model))
    except (OSError, ValueError, RecursionError):
        return model
    return f"{model} ({family.name}; licence of the weights: {family.licence})"


def _check_folder(folder: Path) -> None:
    try:
        index = json.loads((folder / _INDEX).read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{folder} has no {_INDEX}; name a diffusers checkpoint folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder / _INDEX} cannot be read ({error}); fetch the checkpoint again") from None
    try:
        check_pipeline(index)
    except ForeignModelError as error:
        raise ModelError(f"{folder}: {_INDEX} {error}") from None
    for name, value in index.items():
        # A component is named with its library and class; [null, null] is one that this checkpoint does not have.
        if isinstance(value, list) and any(value) and not (folder / name).is_dir():
            raise ModelError(f"{folder} lacks the folder {name}, which its {_INDEX} names; fetch the checkpoint again")
    for part in (folder / name for name in WEIGHTED_PARTS if (folder / name).is_dir()):
        for problem in weight_problems(part):
            raise ModelError(f"{folder}: {problem}")
