"""A gateway whose free texts try to control the terminal: between a client and the application, on a socket."""

import json
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

TAINT: Final = " \x1b]0;owned\x07\x9b2J\u202e\u2028fluxpool: forged"
_SHORT: Final = "\x9b2J\u202e"
"""For fields that have a column of a table."""
_COLUMNS: Final = frozenset({"name", "tenant"})
_TEXTS: Final = frozenset(
    {"message", "why", "reason", "detail", "left_out", "problem", "prompt", "warnings", "metadata", "comment",
     "model", "model_family", "preset", "worker", "license", "stack", "constraint"}
)  # fmt: skip
"""Fields whose texts somebody else chose."""


_DOCUMENTS: Final = frozenset({b"application/json", b"application/problem+json"})


class Tainted:
    """The application, with `TAINT` at the end of each free text of its JSON documents and events."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = b""
        held: list[Message] = []

        async def changed(message: Message) -> None:
            nonlocal kind
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                if kind in _DOCUMENTS:
                    held.append(message)
                    return
            elif kind in _DOCUMENTS:
                held.append(message)
                if not message.get("more_body"):
                    await _send_changed(held, send)
                return
            elif kind.startswith(b"text/event-stream") and message.get("body"):
                message = {**message, "body": b"\n".join(map(_tainted_line, message["body"].split(b"\n")))}
            await send(message)

        await self._app(scope, receive, changed)


async def _send_changed(held: list[Message], send: Send) -> None:
    start, *parts = held
    body = b"".join(part.get("body", b"") for part in parts)
    changed = json.dumps(_tainted(json.loads(body))).encode()
    headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
    await send({**start, "headers": [*headers, (b"content-length", str(len(changed)).encode())]})
    await send({"type": "http.response.body", "body": changed})


def _tainted_line(line: bytes) -> bytes:
    if not line.startswith(b"data: {"):
        return line
    return b"data: " + json.dumps(_tainted(json.loads(line.removeprefix(b"data: ")))).encode()


def _taint_of(field: str) -> str:
    return _SHORT if field in _COLUMNS else TAINT if field in _TEXTS else ""


def _tainted(value: Any, taint: str = "") -> Any:
    match value:
        case str():
            return value + taint
        case list():
            return [_tainted(item, taint) for item in value]
        case dict():
            return {key: _tainted(item, taint or _taint_of(key)) for key, item in value.items()}
        case _:
            return value
