"""The corpus of foreign inputs: real inputs of other programs, each with its expected response.

One file per input under `tests/strangers/`; the folder determines the model, the file's name is the test's name. A file
that does not match its model fails the test that reads it. Knows nothing of the components that get the inputs.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

CORPUS: Final = Path(__file__).parents[1] / "strangers"
_BYTE: Final = re.compile(rb"\{([0-9a-f]{2})\}")
ID_PLACEHOLDER: Final = b"{id}"
"""Placeholder in a value or key for the request id, so that an input can be sent more than once."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Stranger(_Strict):
    """Fields of every input."""

    what: str
    """Its sender, and what is odd about it."""
    source: Annotated[str, Field(alias="from")]
    """A public report of the same problem (`owner/repository#number`), a standard, or `own`."""


class Repeat(_Strict):
    """A long text: the item `count` times with its number in place of `{n}`."""

    before: str = ""
    item: str
    between: str = ""
    count: int
    after: str = ""

    def render(self) -> str:
        """The whole text."""
        items = (self.item.replace("{n}", str(number)) for number in range(self.count))
        return self.before + self.between.join(items) + self.after


class Payload(_Strict):
    """Bytes, in the most readable of four forms; all absent: null."""

    text: str | None = None
    hex: str | None = None
    task: dict[str, Any] | None = None
    """A small task with these fields besides its id and prompt, as JSON."""
    repeat: Repeat | None = None

    def content(self, request_id: str) -> bytes | None:
        """The bytes with the id in its place."""
        raw: bytes | None = None
        if self.task is not None:
            small = {"request_id": request_id, "prompt": "a kite", "width": 64, "height": 64, "steps": 1}
            raw = json.dumps({**small, **self.task}).encode()
        elif self.hex is not None:
            raw = bytes.fromhex(self.hex)
        elif self.repeat is not None:
            raw = self.repeat.render().encode()
        elif self.text is not None:
            raw = self.text.encode()
        return None if raw is None else raw.replace(ID_PLACEHOLDER, request_id.encode())


class HeaderField(_Strict):
    """One header of a record."""

    name: Payload
    value: Payload = Payload()


class RightResult(_Strict):
    """Expected outcome of a record."""

    status: Literal["success", "failed", "expired"] | None = None
    """Status of the result with the record's id; absent: no result is expected."""
    code: str | None = None
    """Code of the result's error."""
    dead_letters: int = 0
    """Number of dead letters."""
    known: bool = True
    """Whether the gateway then knows the task."""


class StrangeRecord(Stranger):
    """A record that another producer writes."""

    topic: Literal["tasks", "tasks_vip", "results", "progress", "control", "retry", "dead_letters"] = "tasks"
    key: Payload = Payload()
    value: Payload = Payload()
    headers: tuple[HeaderField, ...] = ()
    timestamp_ms: int | None = None
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    right: RightResult


class StrangeRequest(Stranger):
    """An HTTP request as bytes."""

    request: Payload
    """Lines end as written: use `\\r\\n` in a double-quoted text."""
    then: Literal["wait", "close", "half-close"] = "wait"
    """What the client does once all is sent."""
    right_statuses: tuple[int, ...]
    """Accepted statuses; empty: no response is expected, the connection may just end."""
    says: tuple[str, ...] = ()
    """Texts that the response body must contain."""
    makes_task: bool = False
    """Whether a record is written for it."""


class StrangeEnvironment(Stranger):
    """Environment variables of a program."""

    program: Literal["worker", "gateway"] = "worker"
    variables: Mapping[str, str]
    """Added to those that the program needs to start."""
    refused_with: tuple[str, ...] = ()
    """Texts of the refusal, including the setting's name; empty: it is accepted."""


class StrangeArguments(Stranger):
    """A command line."""

    arguments: tuple[str, ...]
    """Without the program's name; `{e9}` is the byte 0xE9."""
    environment: Mapping[str, str] = {}
    code: int
    says: tuple[str, ...] = ()

    def as_bytes(self) -> list[bytes]:
        """The arguments as a shell passes them."""
        return [_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode()) for text in self.arguments]


class StrangeManifest(Stranger):
    """A `FluxWorkerPool`, as changes to the smallest one."""

    edits: Mapping[str, Any]
    """Dotted path below `spec`, or with a leading dot below the resource, and the value there."""
    refused_with: tuple[str, ...] = ()
    """Texts of the refusal; empty: it is accepted."""
    by: Literal["both", "api-server"] = "both"
    """Who refuses it; the operator never gets what the API server refuses."""


class StrangeValues(Stranger):
    """Values of the chart, and the release and namespace it is installed as."""

    values: Mapping[str, Any] = {}
    release: str = "demo"
    namespace: str = "images"
    refused_with: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_what_is_right(self) -> Self:
        if "" in self.refused_with:
            raise ValueError("refused_with: name texts of the refusal")
        return self


T = TypeVar("T", bound=Stranger)


def strangers(folder: str, model: type[T]) -> list[Any]:
    """The inputs of a folder as parameters, each with its file's name as id; at least one, or the folder is wrong."""
    files = sorted((CORPUS / folder).glob("*.yaml"))
    assert files, f"no inputs in {CORPUS / folder}"
    return [pytest.param(model.model_validate(yaml.safe_load(path.read_text())), id=path.stem) for path in files]
