"""One attempt of a webhook: what endpoints may do, and which addresses are connected to."""

import asyncio
import gzip
import socket
import ssl
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest
import trustme

from fluxpool_gateway.webhooks.dispatch.addresses import refusal_of
from fluxpool_gateway.webhooks.dispatch.sending import (
    ANSWER_BYTES,
    MAX_RETRY_AFTER_MS,
    Attempt,
    AttemptError,
    Sender,
    resolve_in_thread,
)
from kit.http.webhook_receiver import (
    LOOPBACK,
    Receiver,
    Respond,
    answering,
    dripping,
    hanging,
    never_ending,
    saying,
)
from kit.waiting import PATIENCE, wait_until

TLS = ssl.create_default_context()
"""Takes a tenth of a second to make."""
BODY = b'{"type":"webhook.test"}'


def a_sender(**settings: Any) -> Sender:
    return Sender(**{"tls": TLS, **settings})


async def attempt(receiver: Receiver, respond: Respond, *, timeout_seconds: float = 15.0) -> Attempt:
    receiver.responses["/hook?a=b"] = respond
    sender = a_sender(allowed=LOOPBACK, allow_http=True, timeout_seconds=timeout_seconds)
    return await sender.send(f"{receiver.url}/hook?a=b", {"webhook-id": "evt_1"}, BODY)


async def test_a_message_is_posted_as_it_is(receiver: Receiver) -> None:
    sender = a_sender(allowed=LOOPBACK, allow_http=True)
    made = await sender.send(f"{receiver.url}/hook?a=b", {"webhook-id": "evt_1"}, BODY)
    (message,) = receiver.messages
    assert (message.path, message.body, message.event_id) == ("/hook?a=b", BODY, "evt_1")
    assert message.headers["host"] == receiver.url.removeprefix("http://")
    assert message.headers["content-type"] == "application/json"
    assert (made.status, made.error, made.answer, made.succeeded) == (200, None, "thanks", True)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_2xx_is_success(receiver: Receiver, status: int) -> None:
    assert (await attempt(receiver, answering(status))).succeeded


@pytest.mark.parametrize(
    ("respond", "error", "status"),
    [
        (answering(301, location="https://example.com/"), AttemptError.REDIRECT, 301),
        (answering(304), AttemptError.REDIRECT, 304),
        (answering(404, b"no such hook"), AttemptError.STATUS, 404),
        (answering(500), AttemptError.STATUS, 500),
        (answering(410), AttemptError.STATUS, 410),
        (saying(b""), AttemptError.CLOSED, None),
        (saying(b"HTTP/1.1 200 OK\r\nx: "), AttemptError.CLOSED, None),
        (saying(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), AttemptError.PROTOCOL, None),
        (saying(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), AttemptError.PROTOCOL, None),
        (saying(b"HTTP/1.1 200 OK\r\nx: " + b"x" * 500_000), AttemptError.PROTOCOL, None),
        (saying(b"HTTP/1.1 99999 OK\r\n\r\n"), AttemptError.PROTOCOL, None),
    ],
)
async def test_everything_else_is_a_failure_with_its_word(
    receiver: Receiver, respond: Respond, error: AttemptError, status: int | None
) -> None:
    made = await attempt(receiver, respond)
    assert (made.error, made.status) == (error, status)
    assert made.reason
    assert len(receiver.messages) == 1


@pytest.mark.parametrize("respond", [hanging, dripping])
async def test_an_attempt_ends_in_time_whatever_the_endpoint_does(receiver: Receiver, respond: Respond) -> None:
    made = await attempt(receiver, respond, timeout_seconds=0.3)
    assert made.error is AttemptError.TIMEOUT
    assert made.reason == "it did not answer within 0.3 s"


async def test_the_first_2_kib_of_an_endless_answer_are_read(receiver: Receiver) -> None:
    made = await attempt(receiver, never_ending)
    assert made.succeeded
    assert made.answer == "x" * ANSWER_BYTES


async def test_a_compressed_answer_is_not_decompressed(receiver: Receiver) -> None:
    bomb = gzip.compress(b"\0" * 5_000_000)
    made = await attempt(receiver, answering(200, bomb, content_encoding="gzip"))
    assert made.succeeded
    assert len(made.answer) <= ANSWER_BYTES
    assert "\0" not in made.answer
    assert receiver.messages[0].headers["accept-encoding"] == "identity"


async def test_an_answer_that_is_cut_short_is_success_by_its_status(receiver: Receiver) -> None:
    made = await attempt(receiver, saying(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"))
    assert (made.succeeded, made.answer) == (True, "half")


@pytest.mark.parametrize(
    ("status", "value", "expected_ms"),
    [
        (429, "120", 120_000),
        (503, "7", 7000),
        (500, "120", None),
        (429, "soon", None),
        (429, "-5", None),
        (429, "9" * 9, MAX_RETRY_AFTER_MS),
        (429, "9" * 10, MAX_RETRY_AFTER_MS),
        (429, "9" * 5000, MAX_RETRY_AFTER_MS),
        (429, "Fri, 31 Dec 1999 23:59:59 GMT", 0),
        (429, "Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER_MS),
    ],
)
async def test_retry_after_is_read_from_429_and_503(
    receiver: Receiver, status: int, value: str, expected_ms: int | None
) -> None:
    assert (await attempt(receiver, answering(status, retry_after=value))).retry_after_ms == expected_ms


async def test_a_refused_connection_and_an_unknown_host_have_words() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        sender = a_sender(allowed=LOOPBACK, allow_http=True)
        assert (await sender.send(f"http://127.0.0.1:{port}/", {}, BODY)).error is AttemptError.CONNECT
    made = await sender.send("http://no-such-host.invalid/", {}, BODY)
    assert made.error is AttemptError.DNS
    assert (await sender.send(f"http://{'a' * 64}.example/", {}, BODY)).error is AttemptError.DNS


async def test_the_environments_proxy_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await attempt(receiver, answering(200))).succeeded


REFUSED = (
    *("127.0.0.1", "127.8.9.10", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "100.100.100.200", "0.1.0.0", "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
    *("168.63.129.16", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe"),
    *("64:ff9b:1::1", "2002:7f00:1::", "2001::1", "2001:db8::1", "fec0::1", "100::1"),
)


async def test_addresses_that_are_not_public_are_refused() -> None:
    sender = a_sender(timeout_seconds=5)
    for address in REFUSED:
        assert refusal_of(address, ()) is not None
        host = f"[{address.partition('%')[0]}]" if ":" in address else address
        made = await sender.send(f"https://{host}/", {}, BODY)
        assert made.error is AttemptError.ADDRESS_REFUSED, address


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses_are_not(address: str) -> None:
    assert refusal_of(address, ()) is None


def test_a_network_is_allowed_in_every_form_of_its_addresses() -> None:
    allowed = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fd00::1"):
        assert refusal_of(address, allowed) is None
    assert refusal_of("10.2.0.1", allowed) is not None


@pytest.mark.parametrize("host", ["127.1", "0x7f.1", "2130706433", "0177.0.0.1", "localhost", "127.0.0.1."])
async def test_other_spellings_of_loopback_are_refused_by_what_they_resolve_to(host: str) -> None:
    made = await a_sender(allow_http=True).send(f"http://{host}:9/", {}, BODY)
    assert made.error in {AttemptError.ADDRESS_REFUSED, AttemptError.DNS}


async def test_the_checked_address_is_the_one_connected_to_when_the_name_changes_its_meaning(
    receiver: Receiver,
) -> None:
    """DNS rebinding: a public address for the check, a private one for the connection."""
    asked: list[str] = []

    async def rebinding(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return ["192.0.2.77" if len(asked) == 1 else "127.0.0.1"]

    port = receiver.url.rpartition(":")[2]
    allowed = (ip_network("192.0.2.0/24"),)
    sender = a_sender(allowed=allowed, allow_http=True, resolve=rebinding, timeout_seconds=1)
    url = f"http://rebinding.example:{port}/hook"
    assert (await sender.send(url, {}, BODY)).error in {AttemptError.TIMEOUT, AttemptError.CONNECT}
    assert asked == ["rebinding.example"]
    # The second time the name means loopback before the check.
    assert (await sender.send(url, {}, BODY)).error is AttemptError.ADDRESS_REFUSED
    assert receiver.messages == []


async def test_of_several_addresses_those_that_are_allowed_are_tried(receiver: Receiver) -> None:
    async def several(_host: str, _port: int) -> Sequence[str]:
        return ["10.0.0.1", "127.0.0.2", "127.0.0.1"]

    receiver.responses["/hook"] = answering(200)
    sender = a_sender(allowed=LOOPBACK, allow_http=True, resolve=several)
    made = await sender.send(f"http://several.example:{receiver.url.rpartition(':')[2]}/hook", {}, BODY)
    assert made.succeeded
    assert receiver.messages[0].headers["host"].startswith("several.example:")


async def test_http_is_refused_unless_it_is_allowed(receiver: Receiver) -> None:
    made = await a_sender(allowed=LOOPBACK).send(f"{receiver.url}/hook", {}, BODY)
    assert made.error is AttemptError.ADDRESS_REFUSED
    assert receiver.messages == []


async def test_the_certificate_is_checked_for_the_name_of_the_url() -> None:
    authority = trustme.CA()
    receiver = Receiver()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("hooks.example").configure_cert(context)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]

    async def loopback(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    sender = a_sender(allowed=LOOPBACK, resolve=loopback, tls=trusting)
    assert (await sender.send(f"https://hooks.example:{port}/hook", {}, BODY)).succeeded
    assert (await sender.send(f"https://hooks.example.:{port}/hook", {}, BODY)).succeeded
    assert (await sender.send(f"https://other.example:{port}/hook", {}, BODY)).error is AttemptError.TLS
    strange = a_sender(allowed=LOOPBACK, resolve=loopback)
    assert (await strange.send(f"https://hooks.example:{port}/hook", {}, BODY)).error is AttemptError.TLS
    server.close()


@pytest.mark.parametrize("shakes_hands", [True, False])
async def test_an_attempt_ends_in_time_also_when_tls_hangs(*, shakes_hands: bool) -> None:
    """Before the handshake, or behind it, where a connection is closed with a word that the peer does not answer."""
    authority = trustme.CA()
    receiver = Receiver(responses={"/hook": hanging})
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, ssl=context if shakes_hands else None)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    sender = a_sender(allowed=LOOPBACK, tls=trusting, timeout_seconds=1)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    for _ in range(5):
        made = await sender.send(url, {"webhook-id": "evt_1"}, BODY)
        assert made.error is AttemptError.TIMEOUT
        assert made.latency_ms < 10_000 * PATIENCE
    assert len(receiver.messages) == (5 if shakes_hands else 0)
    await wait_until(lambda: receiver.open_connections == 0, deadline_seconds=30, what="every connection to end")
    server.close()


async def test_the_system_resolver_knows_localhost() -> None:
    assert {"127.0.0.1", "::1"} & set(await resolve_in_thread("localhost", 80))
