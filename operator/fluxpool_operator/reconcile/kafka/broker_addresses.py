"""Broker addresses: how a pool's pods resolve them, and which ones the operator may connect to.

A short name belongs to the pool's namespace; the operator's resolver would try the operator's own namespace first.
`kafka_access` applies both rules.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

LOOKUP_SECONDS: Final = 5.0
_CLUSTER_SUFFIXES: Final = (".svc.cluster.local", ".svc")
_HOST_STAR: Final = "[A-Za-z0-9._-]*"
"""`*` in a host or port of a pattern: never a character that could end a host name early."""
_PATH_STAR: Final = r"[^\s?#]*"
_NO_SUCH_NAME: Final = frozenset(
    number
    for number in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None), getattr(socket, "EAI_ADDRFAMILY", None))
    if number is not None
)


class BrokerNameError(Exception):
    """DNS does not answer, so a name cannot be resolved."""


async def name_exists(name: str) -> bool:
    """Whether DNS has a name; raises `BrokerNameError` when it does not answer."""
    try:
        async with asyncio.timeout(LOOKUP_SECONDS):
            await asyncio.get_running_loop().getaddrinfo(name, None)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_NAME:
            return False
        raise BrokerNameError(f"{name} cannot be looked up: {error.strerror or error}") from error
    except TimeoutError as error:
        raise BrokerNameError(f"{name} cannot be looked up: no answer within {LOOKUP_SECONDS:g} s") from error
    return True


async def resolve_servers(
    servers: Sequence[str], *, namespace: str, exists: Callable[[str], Awaitable[bool]] = name_exists
) -> tuple[str, ...]:
    """The `host:port` addresses as pods of `namespace` resolve them, valid in the whole cluster.

    `kafka` becomes `kafka.NAMESPACE.svc`. `kafka-0.kafka` may be a pod of the namespace, a Service of another namespace
    or an external host: the first that exists, in a pod's search order. Raises `BrokerNameError`.
    """
    return tuple([await _resolve(server, namespace=namespace, exists=exists) for server in servers])


async def _resolve(server: str, *, namespace: str, exists: Callable[[str], Awaitable[bool]]) -> str:
    host, _, port = server.rpartition(":")
    labels = host.count(".") + 1
    if labels > 2 or host.endswith(".") or host.lower() == "localhost" or _is_address(host):
        return server
    if labels == 1:
        return f"{host}.{namespace}.svc:{port}"
    for candidate in (f"{host}.{namespace}.svc", f"{host}.svc"):
        if await exists(candidate):
            return f"{candidate}:{port}"
    return server


def comparable_server(server: str) -> str:
    """A resolved address in normal form: addresses of one Service compare equal."""
    host, _, port = server.lower().rpartition(":")
    host = host.removesuffix(".")
    for suffix in _CLUSTER_SUFFIXES:
        host = host.removesuffix(suffix)
    return f"{host}:{port}"


def refused_brokers(servers: Sequence[str], *, allowed: Sequence[str]) -> tuple[str, ...]:
    """The `host:port` addresses that match no pattern; without patterns none."""
    patterns = [_expression(pattern, star=_HOST_STAR) for pattern in allowed]
    return tuple(server for server in servers if patterns and not _matches(server, patterns))


def is_endpoint_refused(endpoint: str, *, allowed: Sequence[str]) -> bool:
    """Whether a token endpoint matches no pattern; without patterns False. `*` in its path matches anything."""
    patterns = []
    for pattern in allowed:
        scheme, _, rest = pattern.partition("://")
        host, slash, path = rest.partition("/")
        patterns.append(_expression(f"{scheme}://{host}", star=_HOST_STAR) + _expression(slash + path, star=_PATH_STAR))
    return bool(patterns) and not _matches(endpoint, patterns)


def _expression(pattern: str, *, star: str) -> str:
    return star.join(map(re.escape, pattern.split("*")))


def _matches(address: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, address, re.IGNORECASE) for pattern in patterns)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
