"""Checks of a gateway: health, version, what the key allows, and the clock."""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx

from fluxpool_cli.doctor.checking import Finding, State
from fluxpool_cli.gateway import GatewayAddress
from fluxpool_client import connection_of

_SECONDS: Final = 15.0
"""The description of a gateway is made when it is first asked for."""
_CLOCK_SECONDS: Final = 5.0
"""A larger difference makes signatures, expiries and `--since` wrong."""
_API_VERSION: Final = "1"
_PROBES: Final = (
    ("read", "GET", "/v1/queue"),
    ("submit", "POST", "/v1/generations"),
    ("admin", "GET", "/v1/keys?limit=1"),
)
"""Requests that change nothing, by the scope that each needs; the one to submit is not valid."""


def check_gateway(place: GatewayAddress) -> Iterator[Finding]:
    """Findings about the gateway that the commands use."""
    try:
        connection = connection_of(place.url, place.api_key, timeout_seconds=_SECONDS)
    except ValueError as error:
        yield Finding(State.FAILED, str(error), f"correct {place.url_source or '--url'} or the key")
        return
    with httpx.Client(base_url=connection.url, timeout=_SECONDS, trust_env=connection.uses_proxies) as client:
        try:
            health = client.get("/healthz")
        except httpx.HTTPError as error:
            state = State.SKIPPED if place.is_local else State.FAILED
            remedy = "start one with `fluxpool local up`, or name it with --url or --profile"
            yield Finding(state, f"no gateway answers at {place.url} ({error})", remedy)
            return
        if _document(health).get("status") != "alive":
            found = f"what answers at {place.url} is no Fluxpool gateway (HTTP {health.status_code})"
            yield Finding(State.FAILED, found, "check --url, the profile, and proxies in between (HTTP_PROXY)")
            return
        yield Finding(State.OK, f"{place.url} answers" + (f" ({place.url_source})" if place.url_source else ""))
        yield from _readiness(client)
        yield from _version(client)
        yield from _clock(health)
        client.headers.update(connection.headers)
        yield from _scopes(client, place)


def _readiness(client: httpx.Client) -> Iterator[Finding]:
    response = client.get("/readyz")
    parts = _document(response).get("parts", {})
    broken = [f"{name}: {part.get('detail')}" for name, part in parts.items() if not part.get("ready")]
    if response.is_success and not broken:
        yield Finding(State.OK, f"ready: {', '.join(parts) or 'all parts'}")
    else:
        what = "; ".join(broken) or f"HTTP {response.status_code}"
        yield Finding(State.FAILED, f"not ready: {what}", "see the log of the gateway and of its projector")


def _version(client: httpx.Client) -> Iterator[Finding]:
    theirs = _document(client.get("/openapi.json")).get("info", {}).get("version")
    if theirs == _API_VERSION:
        yield Finding(State.OK, f"version {theirs} of the HTTP API")
    else:
        yield Finding(
            State.WARNING,
            f"version {theirs} of the HTTP API, this command knows {_API_VERSION}",
            "upgrade the older one",
        )


def _clock(response: httpx.Response) -> Iterator[Finding]:
    try:
        theirs = parsedate_to_datetime(response.headers["date"])
    except (KeyError, ValueError):
        return
    seconds = (theirs - datetime.now(UTC)).total_seconds()
    if abs(seconds) > _CLOCK_SECONDS:
        yield Finding(State.WARNING, f"its clock differs by {seconds:+.0f} s", "synchronize the clocks by NTP")
    else:
        yield Finding(State.OK, "its clock agrees with this machine's")


def _scopes(client: httpx.Client, place: GatewayAddress) -> Iterator[Finding]:
    allowed: list[str] = []
    denied: list[str] = []
    for scope, method, path in _PROBES:
        response = client.request(method, path, json={} if method == "POST" else None)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            what = f"the key of {place.key_source} is not accepted" if place.api_key else "it needs an API key"
            yield Finding(
                State.FAILED, what, "set FLUXPOOL_API_KEY, or `fluxpool profile set NAME --key`; `fluxpool keys create`"
            )
            return
        (denied if response.status_code == httpx.codes.FORBIDDEN else allowed).append(scope)
    who = f"the key of {place.key_source}" if place.api_key else "without a key, you"
    words = f"{who} may {', '.join(allowed) or 'nothing'}" + (f", not {', '.join(denied)}" if denied else "")
    is_usable = {"read", "submit"} <= set(allowed)
    remedy = "" if is_usable else "use a key with the scopes submit and read: `fluxpool keys create`"
    yield Finding(State.OK if is_usable else State.WARNING, words, remedy)


def _document(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
