"""Odd and hostile HTTP requests: bytes near valid requests and far from them.

Pure: a seed gives the same requests each time. `make_connection_script` makes those of one connection, and its end.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Any, Final

SUBMIT: Final = "/v1/generations"
IDEMPOTENCY_KEYS: Final = 200
"""So few that several bodies use one key."""
_METHODS: Final = (
    "GET",
    "POST",
    "HEAD",
    "PUT",
    "DELETE",
    "PATCH",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PRI",
    "get",
    "BREW",
    "",
)
_VERSIONS: Final = ("HTTP/1.1",) * 100 + ("HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTTP/1.1 ", "HTTP/9.9", "http/1.1", "")
_PATHS: Final = (
    SUBMIT,
    SUBMIT + "/",
    SUBMIT + "?a=b",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/",
    "*",
    "//",
    "/v1/../healthz",
    "/%",
    "/%00",
    "/%ff%fe",
    "/v1%2Fgenerations",
    "http://other/healthz",
    "localhost:80",
    "/\xe4",
    "/a b",
    "/#x",
    "/" + "a/" * 900,
)
_IMAGE_INDEXES: Final = ("0", "7", "8", "+1", "1.0", "%200", "-1", "00", "9" * 400, "x", "")
_CONTENT_TYPES: Final = (
    "application/json",
    "application/json; charset=utf-8",
    "APPLICATION/JSON",
    "text/plain",
    "application/json;;",
    "",
    "application/json; charset=utf-16",
    "multipart/form-data; boundary=x",
    "\xff",
    "a" * 3000,
)
_HOSTS: Final = ("gateway", "gateway:80", "[::1]:80", "[", "a b", "", "\xe4", "a" * 300, "../..")
_CONTENT_ENCODINGS: Final = ("gzip", "deflate", "identity", "br", "gzip, gzip", "x")
_TRANSFER_ENCODINGS: Final = ("chunked", "Chunked", "gzip, chunked", "chunked, chunked", "identity", "xchunked", "")
_CONNECTIONS: Final = ("close", "keep-alive", "upgrade", "Upgrade, HTTP2-Settings", "x, close", "")
_TEXTS: Final = (
    "a kite",
    "",
    " ",
    "\x00",
    "\ud800",
    "🪁" * 50,
    "e\u0301",
    "\u202eabc",
    "\x1b[2J",
    "x" * 10_001,
    "null",
    "<script>",
    "a\r\nb: c",
)
_NUMBERS: Final = (0, 1, -1, 16, 64, 512, 1000, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf"), True)
_FIELDS: Final = (
    "prompt",
    "negative_prompt",
    "width",
    "height",
    "steps",
    "num_inference_steps",
    "guidance",
    "guidance_scale",
    "seed",
    "n",
    "output_format",
    "priority",
    "metadata",
    "request_id",
    "unknown",
)


class Ending(StrEnum):
    """How a client ends its connection."""

    HALF_CLOSE = "half_close"
    """Closes its sending side and reads all answers."""
    VANISH = "vanish"
    """Closes without reading."""
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class ConnectionScript:
    """The requests of one connection."""

    data: bytes
    requests: int
    """Number of intended requests."""
    ending: Ending
    pieces: int
    """The bytes of each write."""


def make_connection_script(random: Random) -> ConnectionScript:
    """A connection's bytes: one to four requests, some damaged, some cut short."""
    count = random.choice((1, 1, 1, 2, 3, 4))
    data = b"".join(make_request(random) for _ in range(count))
    if random.random() < 0.15:
        data = damage(random, data)
    if random.random() < 0.1:
        data = data[: random.randrange(len(data) + 1)]
    ending = random.choices(list(Ending), weights=(90, 6, 4))[0]
    return ConnectionScript(data, count, ending, pieces=random.choice((1, 1, 1, 2, 5, 20)))


def make_request(random: Random) -> bytes:
    """One request; most are well-formed HTTP with something odd in them."""
    kind = random.random()
    if kind < 0.02:
        return random.randbytes(random.randrange(300))
    if kind < 0.5:
        method, target = "POST", SUBMIT
    else:
        method, target = random.choice(_METHODS), _target(random)
    body = make_body(random) if method in {"POST", "PUT", "PATCH"} or random.random() < 0.1 else b""
    headers = _headers(random)
    return _framed(random, f"{method} {target} {random.choice(_VERSIONS)}", headers, body)


def make_body(random: Random) -> bytes:
    """A body: valid, nearly valid, or bytes."""
    makers: tuple[tuple[int, Callable[[Random], bytes]], ...] = (
        (30, lambda _: b'{"prompt":"a kite","width":64,"height":64,"steps":1}'),
        (40, lambda r: _json(_object(r))),
        (8, lambda r: damage(r, _json(_object(r)))),
        (3, lambda r: r.randbytes(r.randrange(2000))),
        (3, lambda r: json.dumps(_object(r)).encode(r.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be")))),
        (3, lambda r: b"[" * r.randrange(1, 60_000)),
        (3, lambda r: b'{"a":' * r.randrange(1, 10_000)),
        (3, lambda r: b'{"prompt":"x","metadata":{' + b",".join([b'"":1'] * r.randrange(1, 11_000)) + b"}}"),
        (3, lambda r: gzip.compress(_json(_object(r)))),
        (2, lambda r: b" " * r.randrange(70_000)),
        (2, lambda r: b'{"prompt":"' + b"x" * r.randrange(60_000, 140_000) + b'"}'),
    )
    (_, maker), *_ = random.choices(makers, weights=[weight for weight, _ in makers])
    return maker(random)


def damage(random: Random, data: bytes) -> bytes:
    """The bytes with some flipped, removed, doubled or inserted."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        place = random.randrange(len(found) + 1)
        match random.randrange(4):
            case 0 if place < len(found):
                found[place] ^= 1 << random.randrange(8)
            case 1:
                del found[place : place + random.randrange(1, 20)]
            case 2:
                found[place:place] = found[place : place + random.randrange(1, 50)]
            case _:
                found[place:place] = random.choice((b"\r\n", b"\n", b"\0", b"\xff", b": ", b"0\r\n\r\n", b"{", b'"'))
    return bytes(found)


def _target(random: Random) -> str:
    kind = random.random()
    request_id = random.choice(
        (f"unknown-{random.randrange(1000)}", "a" * 128, "a" * 129, "..", "%2e%2e", "\xe4", "~", "")
    )
    if kind < 0.3:
        return f"{SUBMIT}/{request_id}"
    if kind < 0.5:
        return f"{SUBMIT}/{request_id}/images/{random.choice(_IMAGE_INDEXES)}"
    if kind < 0.52:
        return "/" + "x" * random.randrange(40_000)
    return random.choice(_PATHS)


def _headers(random: Random) -> list[tuple[str, str]]:
    headers = [("Host", random.choice(_HOSTS) if random.random() < 0.1 else "gateway")]
    odd: tuple[tuple[float, str, Callable[[], str]], ...] = (
        (0.3, "Content-Type", lambda: random.choice(_CONTENT_TYPES)),
        (0.3, "Idempotency-Key", lambda: f"key-{random.randrange(IDEMPOTENCY_KEYS)}"),
        (0.02, "Idempotency-Key", lambda: random.choice(("", " ", "a b", "\xe4", "x" * 300))),
        (0.05, "Content-Encoding", lambda: random.choice(_CONTENT_ENCODINGS)),
        (0.05, "Connection", lambda: random.choice(_CONNECTIONS)),
        (0.03, "Upgrade", lambda: random.choice(("h2c", "websocket", "x"))),
        (0.03, "Expect", lambda: random.choice(("100-continue", "200-ok", ""))),
        (0.05, "x-request-id", lambda: random.choice(("mine", "a b", "x" * 500, "\xe4"))),
        (0.05, "traceparent", lambda: random.choice(("00-" + "a" * 32 + "-" + "b" * 16 + "-01", "\xff", "x" * 600))),
        (0.03, "If-None-Match", lambda: random.choice(("*", '"x"', "," * 1000))),
        (0.02, "X-Long", lambda: "y" * random.randrange(50_000)),
        (0.02, "Host", lambda: "second"),
        (0.02, random.choice(("", " ", "a b", "\xe4", "x:y", "Transfer-Encoding ")), lambda: "z"),
        (0.02, "X-Folded", lambda: "a\r\n b"),
    )
    headers += [(name, value()) for chance, name, value in odd if random.random() < chance]
    if random.random() < 0.03:
        headers = headers[1:]
    if random.random() < 0.02:
        headers += [(f"X-{number}", "z") for number in range(random.randrange(3000))]
    random.shuffle(headers)
    return headers


def _framed(random: Random, line: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    kind = random.random()
    if kind < 0.2:
        transfer = "chunked" if random.random() < 0.8 else random.choice(_TRANSFER_ENCODINGS)
        headers = [*headers, ("Transfer-Encoding", transfer)]
        framed = _chunked(random, body)
    elif kind < 0.28:
        length = random.choice((len(body) + 1, max(0, len(body) - 1), 0, -1, 10**8, 10**25, "x", "1_0", "+5", " 7"))
        headers = [*headers, ("Content-Length", str(length))]
        framed = body
    else:
        headers = [*headers, ("Content-Length", str(len(body)))]
        framed = body
    if random.random() < 0.02:
        headers = [*headers, ("Content-Length", str(len(body)))]
    end = "\n" if random.random() < 0.02 else "\r\n"
    head = line + end + "".join(f"{name}: {value}{end}" for name, value in headers) + end
    return head.encode("latin-1", "replace") + framed


def _chunked(random: Random, body: bytes) -> bytes:
    parts: list[bytes] = []
    while body:
        size = random.choice((1, 7, 100, 5000, len(body)))
        chunk, body = body[:size], body[size:]
        extension = b";x=" + b"y" * random.randrange(100) if random.random() < 0.1 else b""
        length = len(chunk) if random.random() < 0.995 else random.choice((0, 5, 2**40))
        parts.append(b"%x%s\r\n%s\r\n" % (length, extension, chunk))
        if len(parts) > 500:
            break
    trailer = b"Idempotency-Key: x\r\n" * random.choice((1, 3000)) if random.random() < 0.05 else b""
    return b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


def _object(random: Random) -> dict[str, Any]:
    names = random.sample(_FIELDS, random.randrange(len(_FIELDS)))
    found = {name: _value(random, depth=0) for name in names}
    if random.random() < 0.7:
        found["prompt"] = "a kite" if random.random() < 0.7 else random.choice(_TEXTS)
    return found


def _value(random: Random, *, depth: int) -> Any:
    kind = random.random()
    if kind < 0.4:
        return random.choice(_NUMBERS)
    if kind < 0.8 or depth > 3:
        return random.choice(_TEXTS)
    if kind < 0.85:
        return None
    if kind < 0.95:
        return {random.choice(_TEXTS)[:100]: _value(random, depth=depth + 1) for _ in range(random.randrange(20))}
    return [_value(random, depth=depth + 1) for _ in range(random.randrange(5))]


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
