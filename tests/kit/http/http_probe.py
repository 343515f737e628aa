"""A probe of a program's HTTP server, for polling: it costs a small part of what a client library does.

Programs under test start on the cores that poll them.
"""

import http.client
from urllib.parse import urlsplit

from kit.waiting import PATIENCE

ANSWER_SECONDS = 2.0 * PATIENCE


def answers_ok(url: str) -> bool:
    """Whether a GET of that http:// address is answered with 200; blocks for some seconds at most."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", address.path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
