"""The corpus of foreign inputs: what other people's programs really send, each with its right answer.

One file per input under `tests/strangers/`; the folder decides the model, the file's name is the test's name. A file
that does not fit its model fails the test that reads it. Knows nothing of the borders that the inputs meet.
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
"""In a value or key: the request id that the test chooses, so that an input can be sent more than once."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Stranger(_Strict):
    """What every input has."""

    what: str
    """Who sends it, and what is odd about it."""
    source: Annotated[str, Field(alias="from")]
    """A public report of the same trouble (`owner/repository#number`), a standard, or `own`."""


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
    """What becomes of a record."""

    status: Literal["success", "failed", "expired"] | None = None
    """Of the result with the record's id; absent: no result is due."""
    code: str | None = None
    """Of the result's error."""
    dead_letters: int = 0
    """How many the record makes."""
    known: bool = True
    """Whether the gateway knows the task afterwards."""


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
    """Any of these; empty: no answer is due, the connection may just end."""
    says: tuple[str, ...] = ()
    """Texts that the answer's body must hold."""
    makes_task: bool = False
    """Whether a record is written for it."""


class StrangeEnvironment(Stranger):
    """Settings as people have them."""

    program: Literal["worker", "gateway"] = "worker"
    variables: Mapping[str, str]
    """Over those that make the program start."""
    refused_with: tuple[str, ...] = ()
    """Texts of the refusal, the setting's name among them; empty: it is taken."""


class StrangeArguments(Stranger):
    """A command line."""

    arguments: tuple[str, ...]
    """Without the program's name; `{e9}` stands for the byte 0xE9."""
    environment: Mapping[str, str] = {}
    code: int
    says: tuple[str, ...] = ()

    def as_bytes(self) -> list[bytes]:
        """The arguments as a shell hands them over."""
        return [_BYTE.sub(lambda found: bytes.fromhex(found[1].decode()), text.encode()) for text in self.arguments]


class StrangeManifest(Stranger):
    """A `FluxWorkerPool`, by its changes to the smallest one."""

    edits: Mapping[str, Any]
    """Dotted path below `spec`, or with a leading dot below the resource, and the value there."""
    refused_with: tuple[str, ...] = ()
    """Texts of the refusal; empty: it is accepted."""
    by: Literal["both", "api-server"] = "both"
    """Who refuses it; what the API server's rules refuse never reaches the operator."""


class StrangeValues(Stranger):
    """Values of the chart, and the release and namespace it is installed as."""

    values: Mapping[str, Any] = {}
    release: str = "demo"
    namespace: str = "images"
    refused_with: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_what_is_right(self) -> Self:
        if "" in self.refused_with:
            raise ValueError("refused_with: say what the refusal says")
        return self


T = TypeVar("T", bound=Stranger)


def strangers(folder: str, model: type[T]) -> list[Any]:
    """The inputs of a folder as parameters, each with its file's name as id; at least one, or the folder is wrong."""
    files = sorted((CORPUS / folder).glob("*.yaml"))
    assert files, f"no inputs in {CORPUS / folder}"
    return [pytest.param(model.model_validate(yaml.safe_load(path.read_text())), id=path.stem) for path in files]
