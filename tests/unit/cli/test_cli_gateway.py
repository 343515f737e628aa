"""`fluxpool submit` against gateways, and against other servers at a gateway's address."""

import gzip
import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.gateway import reason_of
from fluxpool_cli.main import run
from fluxpool_cli.submit.waited_task import failure_of
from fluxpool_client import RefusedError, Task
from fluxpool_client.errors import refusal
from kit.waiting import PATIENCE

PNG = b"\x89PNG\r\n\x1a\n"
ID = "a-1"


@dataclass(slots=True)
class Answer:
    """A server's response; `None` as status resets the connection."""

    status: int | None
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    after: threading.Event | None = None
    """It is sent once this is set."""


def view(status: str, **fields: Any) -> Answer:
    return Answer(200, json.dumps({"request_id": ID, "status": status, "status_url": "/", **fields}).encode())


IMAGE = {
    "index": 0, "url": "/0", "width": 64, "height": 64, "seed": 7, "format": "png", "content_type": "image/png",
    "bytes": len(PNG), "sha256": hashlib.sha256(PNG).hexdigest(), "marks": ["xmp", "c2pa"],
}  # fmt: skip
ACCEPTED = Answer(202, json.dumps({"request_id": ID, "status": "queued", "status_url": "/"}).encode())
FINISHED = view("succeeded", images=[IMAGE])
AWAY = Answer(503, b'{"detail": "the task store cannot be read"}', {"retry-after": "0"})
RESET = Answer(None)


@dataclass(slots=True)
class Server:
    """Responses by method and path; the last one of a list is repeated."""

    answers: dict[str, list[Answer]]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def next(self, key: str) -> Answer:
        self.asked.append(key)
        answers = self.answers.get(key) or [Answer(404, b"{}")]
        return answers.pop(0) if len(answers) > 1 else answers[0]


Serve = Callable[[dict[str, list[Answer]]], Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers for a test."""
    running: list[http.server.ThreadingHTTPServer] = []

    def start(answers: dict[str, list[Answer]]) -> Server:
        server = Server(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def _answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = server.next(f"{self.command} {self.path}")
                if answer.after is not None:
                    answer.after.wait()
                if answer.status is None:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = _answer  # noqa: N815 - the names that the base calls

            def log_message(self, format: str, *_arguments: Any) -> None:  # noqa: A002 - the base's name
                """Be silent."""

        listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(listening)
        threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        server.url = f"http://127.0.0.1:{listening.server_port}"
        return server

    yield start
    for listening in running:
        listening.shutdown()
        listening.server_close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FLUXPOOL_")]:
        monkeypatch.delenv(name)
    yield tmp_path
    structlog.reset_defaults()


def problem(detail: str) -> bytes:
    error = {"message": detail, "type": "invalid_request_error", "param": None, "code": "invalid_request"}
    document = {
        "type": "about:blank",
        "title": "",
        "status": 422,
        "detail": detail,
        "correlation_id": "c",
        "error": error,
    }
    return json.dumps(document).encode()


def gateway(
    serve: Serve, *, post: Answer = ACCEPTED, polls: list[Answer], images: list[Answer] | None = None
) -> Server:
    return serve(
        {
            "POST /v1/generations": [post],
            f"GET /v1/generations/{ID}": polls,
            f"GET /v1/generations/{ID}/images/0": images or [Answer(200, PNG, {"content-type": "image/png"})],
        }
    )


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<!doctype html><title>Sign in</title>"),
        Answer(200, b"[]"),
        Answer(200, b"null"),
        Answer(200, b"{}"),
        Answer(200, b'{"request_id": 7}'),
        Answer(200, b'{"request_id": "../../x"}'),
        Answer(200, b'{"request_id": "a\\n"}'),
        Answer(200, b"\xff\xfe\x00"),
        Answer(200, b"[" * 100_000),
        Answer(200, b'{"request_id": ' + b"9" * 5000 + b"}"),
        Answer(200, b""),
        Answer(204),
        Answer(200, b"no gzip", {"content-encoding": "gzip"}),
        Answer(200, gzip.compress(b" " * 30_000_000, mtime=0), {"content-encoding": "gzip"}),
        Answer(200, b"{", {"content-length": "4000"}),
        Answer(302, b"", {"location": "/elsewhere"}),
        Answer(302, b"", {"location": "/v1/generations"}),
        Answer(302, b"", {"location": "file:///etc/passwd"}),
        Answer(302, b"", {"location": "http://[::1"}),
        Answer(304),
        Answer(501, b"\x1b[31m"),
        RESET,
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[:16]!r}-{answer.headers}",
)
def test_a_server_that_is_no_gateway_is_named_and_ends_with_3(
    answer: Answer, serve: Serve, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    server = serve(
        {"POST /v1/generations": [answer], "GET /elsewhere": [Answer(200, b"<html>")], "GET /v1/generations": [answer]}
    )
    assert run(["submit", "a kite", "--url", server.url]) == ExitCode.UNREACHABLE
    output = capsys.readouterr()
    assert "gateway" in output.err
    assert output.out == ""
    assert "\x1b" not in output.err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "hiccup",
    [AWAY, RESET, Answer(502, b"<html>"), Answer(200, b"<html>"), Answer(404, b"{}"), Answer(429)],
    ids=lambda answer: str(answer.status),
)
def test_waiting_continues_after_a_failed_poll_or_image_request(
    hiccup: Answer, serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    polls = [view("running"), hiccup, FINISHED]
    server = gateway(serve, polls=polls, images=[hiccup, Answer(200, PNG, {"content-type": "image/png"})])
    assert run(["submit", "a kite", "--url", server.url, "--output-dir", "out", "--timeout", "20"]) == ExitCode.OK
    assert (folder / "out" / f"{ID}-0.png").read_bytes() == PNG
    output = capsys.readouterr()
    assert f"{ID} succeeded" in output.out
    assert "marks: xmp, c2pa" in output.err


def test_waiting_for_an_unavailable_gateway_ends_at_the_timeout(serve: Serve) -> None:
    server = gateway(serve, polls=[AWAY])
    began = time.monotonic()
    words = ["submit", "a kite", "--url", server.url, "--wait", "--timeout", f"{PATIENCE:g}"]
    assert run(words) == ExitCode.UNREACHABLE
    assert 0.9 * PATIENCE < time.monotonic() - began < 5 * PATIENCE
    assert len(server.asked) > 2


@pytest.mark.parametrize(("before", "code"), [([], ExitCode.TIMED_OUT), ([AWAY], ExitCode.UNREACHABLE)])
def test_a_last_poll_that_the_timeout_cuts_short_does_not_say_that_the_gateway_is_away(
    before: list[Answer], code: ExitCode, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    over = threading.Event()
    server = gateway(serve, polls=[*before, Answer(None, after=over)])
    try:
        assert run(["submit", "a kite", "--url", server.url, "--wait", "--timeout", "0.6"]) == code
    finally:
        over.set()
    assert ("still queued after 0.6 s" in capsys.readouterr().err) is (not before)


def test_a_refused_poll_ends_the_waiting_at_once(serve: Serve) -> None:
    server = gateway(serve, polls=[Answer(403, b"{}")])
    assert run(["submit", "a kite", "--url", server.url, "--wait", "--timeout", "60"]) == ExitCode.UNAUTHORIZED
    assert server.asked.count(f"GET /v1/generations/{ID}") == 1


def test_an_image_does_not_overwrite_another_file_and_an_equal_file_is_accepted(
    serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["submit", "a kite", "--output-dir", ".", "--url", gateway(serve, polls=[FINISHED]).url]
    assert run(words) == ExitCode.OK
    assert run(words) == ExitCode.OK
    (folder / f"{ID}-0.png").write_bytes(b"mine")
    assert run(words) == ExitCode.FAILED
    assert "is there already" in capsys.readouterr().err
    assert (folder / f"{ID}-0.png").read_bytes() == b"mine"


@pytest.mark.parametrize("status", ["succeeded", "running"])
def test_a_response_about_another_task_is_refused(status: str, serve: Serve, folder: Path) -> None:
    server = gateway(serve, polls=[view(status, request_id="b-2", images=[IMAGE])])
    assert (
        run(["submit", "a kite", "--url", server.url, "--output-dir", "out", "--timeout", "0.5"])
        == ExitCode.UNREACHABLE
    )
    assert list((folder / "out").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_before_the_task_is_sent(serve: Serve, folder: Path) -> None:
    (folder / "file").write_text("")
    server = gateway(serve, polls=[FINISHED])
    assert run(["submit", "a kite", "--url", server.url, "--output-dir", "file/out"]) == ExitCode.USAGE
    assert server.asked == []


def test_control_characters_of_a_gateways_texts_are_escaped(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "\x1b[2Jnot\nfluxpool: all is well\u202e\x9b"
    polls = [view(nasty), view("failed", error={"message": nasty, "code": nasty}, warnings=[nasty])]
    server = gateway(serve, polls=polls)
    assert run(["submit", "a kite", "--url", server.url, "--wait"]) == ExitCode.FAILED
    refused = serve({"POST /v1/generations": [Answer(422, problem(nasty))]})
    assert run(["submit", "a kite", "--url", refused.url]) == ExitCode.USAGE
    output = capsys.readouterr()
    shown = output.out + output.err
    assert not set(shown) & set("\x1b\u202e\x9b")
    assert not [line for line in shown.splitlines() if line.startswith("fluxpool: all is well")]


@pytest.mark.parametrize("key", ["line\n", "two words", "é"])
def test_an_api_key_that_is_no_header_value_is_named_by_its_variable(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLUXPOOL_API_KEY", key)
    assert run(["submit", "a kite", "--url", "http://127.0.0.1:1"]) == ExitCode.USAGE
    assert "FLUXPOOL_API_KEY" in capsys.readouterr().err


IMAGES = {name: st.just(value) for name, value in IMAGE.items()}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(
    fields=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("progress", "error", "warnings"), JSON)
        | {"request_id": st.just(ID) | JSON, "status": st.text() | JSON, "status_url": st.just("/")}
        | {"images": st.lists(st.fixed_dictionaries({**IMAGES, "format": st.just("../x") | st.text()}), max_size=2)},
    )
)
def test_any_json_object_is_a_task_or_refused(fields: dict[str, Any]) -> None:
    try:
        task = Task.model_validate(fields)
    except ValidationError:
        return
    assert isinstance(task.status + failure_of(task), str)
    assert all(image.extension.isalnum() for image in task.images)
    assert all(isinstance(warning, str) for warning in task.warnings)


@given(body=st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_a_reason(body: bytes) -> None:
    error = refusal(418, httpx.Headers(), body)
    assert isinstance(error, RefusedError)
    assert reason_of(error)
