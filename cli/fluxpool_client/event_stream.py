"""The events of one task, or of all: what to request, and the states in the bytes of the response; without I/O.

The framing is that of section 9.2.6 of the HTML standard, whose lines end at CR and LF alone, while httpx also ends
them at U+2028, which a prompt may contain.
"""

import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, Self, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from fluxpool_client.errors import FluxpoolError, UnexpectedResponseError, UnreachableError
from fluxpool_client.models import Preview, PreviewedTask, Task, TaskPage, TaskStatus
from fluxpool_client.operations import TASKS
from fluxpool_client.request_fields import ListFields
from fluxpool_client.steps import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    MAX_PAUSE_SECONDS,
    Outgoing,
    Response,
    failure_of,
    query_of,
    wanted_pause,
)
from fluxpool_contract.messages import check_request_id

Answer = TypeVar("Answer", bound=BaseModel)

MAX_EVENT_BYTES: Final = 1024 * 1024
"""The state of a task with eight images is below 20 KB."""
_SILENCE_SECONDS: Final = 30
"""The gateway sends a comment every 15 s."""
_MEDIA_TYPE: Final = "text/event-stream"
_STATES: Final = frozenset({"snapshot", "progress", *TaskStatus})
"""Events of other names are those of later releases."""
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream; a comment is one without a name and data."""

    name: str
    data: str
    id: str | None


_COMMENT: Final = ServerEvent("", "", None)


@dataclass(slots=True)
class EventDecoder:
    """Takes a response apart; what is incomplete at its end is no event."""

    _rest: bytes = b""
    _size_bytes: int = 0
    _name: str = ""
    _data: list[str] = field(default_factory=list)
    _id: str | None = None

    def feed(self, chunk: bytes) -> Iterator[ServerEvent]:
        """The events and comments that are complete now; raises `UnexpectedResponseError` for one without an end."""
        text = self._rest + chunk
        # An LF may follow in the next chunk: together they are one end of a line.
        held = b"\r" if text.endswith(b"\r") else b""
        *lines, self._rest = _LINE_END.split(text.removesuffix(held))
        self._rest += held
        for line in lines:
            if line.startswith(b":"):
                yield _COMMENT
            elif line:
                self._size_bytes += len(line)
                self._take(line.decode(errors="replace"))
            else:
                if self._data:
                    yield ServerEvent(self._name, "\n".join(self._data), self._id)
                self._size_bytes, self._name, self._data = 0, "", []
        if self._size_bytes + len(self._rest) > MAX_EVENT_BYTES:
            raise UnexpectedResponseError(f"an event of more than {MAX_EVENT_BYTES} bytes is not a gateway's")

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case _:
                pass


@dataclass(slots=True, kw_only=True)
class EventStream(ABC):
    """States of tasks over as many responses as it takes."""

    path: str
    """Of every request."""
    subject: str
    """What it is about, for messages."""
    max_attempts: int
    """Responses in sequence that may end without an event or a comment."""
    _ended: bool = False
    _decoder: EventDecoder = field(default_factory=EventDecoder)
    _last_id: str | None = None
    _fruitless: int = 0
    _closing: str = "its response ended"

    @abstractmethod
    def _of(self, event: ServerEvent) -> Iterator[Task]:
        """The states that an event has. Raises `UnexpectedResponseError`."""

    def has_ended(self) -> bool:
        """Whether there is nothing more to read."""
        return self._ended

    def outgoing(self) -> Outgoing:
        """The next request; it continues after the last event."""
        headers = {"accept": _MEDIA_TYPE} | ({} if self._last_id is None else {"last-event-id": self._last_id})
        return Outgoing(method="GET", path=self.path, headers=headers, wait_seconds=_SILENCE_SECONDS)

    def begins(self, status: int, headers: Mapping[str, str]) -> bool:
        """Whether a response is a stream of events; `pause` takes others. Raises `UnexpectedResponseError`."""
        self._decoder, self._closing = EventDecoder(), "its response ended"
        if status == HTTPStatus.NO_CONTENT:
            self._ended = True
        if status == HTTPStatus.OK and not headers.get("content-type", "").startswith(_MEDIA_TYPE):
            raise UnexpectedResponseError(f"the response to GET {self.path} is no event stream: it is not a gateway's")
        return status in {HTTPStatus.OK, HTTPStatus.NO_CONTENT}

    def states(self, chunk: bytes) -> Iterator[Task]:
        """The states in a part of the response; `has_ended` after the last one. Raises `UnexpectedResponseError`."""
        for event in self._decoder.feed(chunk):
            # Also a comment: a task may wait for hours without an event, and proxies cut connections.
            self._fruitless = 0
            if event.name == "closed":
                self._closing = _reason(event.data)
            else:
                yield from self._of(event)
            if self._ended:
                return

    def pause(self, outcome: Response | httpx.RequestError | None) -> float:
        """Seconds to wait after a refusal, a failure or the end of a response; raises the error that is the last."""
        self._fruitless += 1
        failure: FluxpoolError = UnreachableError(f"no event of {self.subject}: {self._closing}")
        if outcome is not None:
            failure = failure_of(self.outgoing(), outcome)
        longest = min(FIRST_PAUSE_SECONDS * 2.0**self._fruitless, LONGEST_PAUSE_SECONDS)
        seconds = wanted_pause(failure, otherwise=random.uniform(longest / 2, longest))  # noqa: S311
        if seconds is None or seconds > MAX_PAUSE_SECONDS or self._fruitless >= self.max_attempts:
            raise failure
        return seconds

    def _parsed(self, model: type[Answer], data: str) -> Answer:
        try:
            return model.model_validate_json(data)
        except ValidationError:
            raise UnexpectedResponseError(f"an event of {self.path} is no state of a task") from None


@dataclass(slots=True, kw_only=True)
class TaskEvents(EventStream):
    """The events of one task, until it has ended."""

    _state: Task | None = None
    """The last one."""

    @classmethod
    def of(cls, request_id: str, *, max_attempts: int) -> Self:
        """Those of the task with this id; raises `ValueError` for what is none."""
        path = f"{TASKS}/{check_request_id(request_id)}/events"
        return cls(path=path, subject=request_id, max_attempts=max_attempts)

    def _of(self, event: ServerEvent) -> Iterator[Task]:
        if event.name in _STATES:
            task = self._parsed(Task, event.data)
            if task.request_id != self.subject:
                raise UnexpectedResponseError(f"asked about {self.subject}, an event is about {task.request_id}")
            self._last_id = event.id
            self._ended = task.ended
            self._state = task
            yield task
        elif event.name == "preview" and self._state is not None and (preview := _preview(event.data)):
            yield PreviewedTask.model_construct(**dict(self._state), preview=preview)


@dataclass(slots=True, kw_only=True)
class TenantEvents(EventStream):
    """The events of all tasks of the tenant that pass a filter; they have no end."""

    @classmethod
    def of(cls, fields: ListFields, *, max_attempts: int) -> Self:
        """Those of the tasks that the list with these filters has."""
        return cls(path=f"/v1/events{query_of(fields)}", subject="all tasks", max_attempts=max_attempts)

    def _of(self, event: ServerEvent) -> Iterator[Task]:
        if event.name == "snapshot":
            self._last_id = event.id
            # The newest comes first in a list, and last in a stream.
            yield from reversed(self._parsed(TaskPage, event.data).data)
        elif event.name in _STATES:
            task = self._parsed(Task, event.data)
            self._last_id = event.id
            yield task


def _preview(data: str) -> Preview | None:
    """The preview in an event; None for one of a later form."""
    try:
        return Preview.model_validate_json(data)
    except ValidationError:
        return None


def _reason(data: str) -> str:
    """Why the server ended the response."""
    try:
        return str(json.loads(data)["detail"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return "the server closed the stream"
