"""JSON Schemas of every message and the AsyncAPI document of the topics, generated from the models.

`python -m fluxpool_contract.schemas FOLDER` writes them, `--check` compares and exits 1 when they differ.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from fluxpool_contract.asyncapi import render_asyncapi
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.feedback import Comparison, Rating
from fluxpool_contract.messages.pool_state import PoolState
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_contract.messages.resolution import Resolution
from fluxpool_contract.messages.result import GenerationResult
from fluxpool_contract.messages.task import GenerationTask
from fluxpool_contract.settings.worker import DEFAULT_CONSUMER_GROUP, serving_groups

ASYNCAPI_FILE: Final = "asyncapi.json"
MESSAGES: Final[dict[str, type[BaseModel]]] = {
    "generation-task": GenerationTask,
    "generation-result": GenerationResult,
    "progress-event": ProgressEvent,
    "cancel-command": CancelCommand,
    "dead-letter": DeadLetter,
    "resolution": Resolution,
    "pool-state": PoolState,
    "rating": Rating,
    "comparison": Comparison,
}


def message_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one of `MESSAGES`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **MESSAGES[name].model_json_schema()}


def asyncapi_document() -> dict[str, Any]:
    """The AsyncAPI document, with the default names of topics and groups."""
    topics = TopicNames()
    return render_asyncapi(topics, serving_groups(DEFAULT_CONSUMER_GROUP, (), topics))


def render_schemas() -> dict[str, str]:
    """File name to text: a schema for each message, and the AsyncAPI document."""
    return {
        ASYNCAPI_FILE: _text(asyncapi_document()),
        **{f"{name}.schema.json": _text(message_schema(name)) for name in MESSAGES},
    }


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def differing_files(folder: Path) -> list[str]:
    """Names of schema files in `folder` that are missing, differ or have no model any more."""
    rendered = render_schemas()
    present = {path.name: path.read_text() for path in folder.glob("*.json")}
    return sorted(name for name in rendered.keys() | present.keys() if rendered.get(name) != present.get(name))


def main(arguments: Sequence[str]) -> int:
    """Command-line entry; returns the exit code."""
    check = "--check" in arguments
    folder = Path(next(argument for argument in arguments if not argument.startswith("--")))
    if check:
        differing = differing_files(folder)
        if differing:
            sys.stderr.write(f"schemas differ from the models: {', '.join(differing)}; run `make schemas`\n")
        return 1 if differing else 0
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in render_schemas().items():
        (folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
