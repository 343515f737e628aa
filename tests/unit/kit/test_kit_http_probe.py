"""A probe tells an answer of 200 from any other, and from none."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kit.http.http_probe import answers_ok

pytestmark = pytest.mark.on_change


class Statuses(BaseHTTPRequestHandler):
    """Answers with the status that is the path."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.removeprefix("/")))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Statuses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "ok"), [(200, True), (204, False), (302, False), (404, False), (503, False)])
def test_only_200_is_ok(address: str, status: int, *, ok: bool) -> None:
    assert answers_ok(f"{address}/{status}") is ok


def test_a_server_that_has_ended_is_not_ok(address: str) -> None:
    with HTTPServer(("127.0.0.1", 0), Statuses) as ended:
        port = ended.server_port
    assert not answers_ok(f"http://127.0.0.1:{port}/200")
    assert answers_ok(f"{address}/200")
