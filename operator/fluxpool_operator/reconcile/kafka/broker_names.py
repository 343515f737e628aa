"""Broker addresses as the pods of a pool resolve them: a short name is one of the pool's own namespace.

The operator's own resolver would look in the operator's namespace first. Owns this rule; must not know what is read.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

LOOKUP_SECONDS: Final = 5.0
_CLUSTER_SUFFIXES: Final = (".svc.cluster.local", ".svc")
_NO_SUCH_NAME: Final = frozenset(
    number
    for number in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None), getattr(socket, "EAI_ADDRFAMILY", None))
    if number is not None
)


class BrokerNameError(Exception):
    """The name service does not answer, so nobody knows whom a name means."""


async def name_exists(name: str) -> bool:
    """Whether the name service knows a name; raises `BrokerNameError` when it does not answer."""
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
    """The `host:port` addresses so that they mean the same everywhere in the cluster as in `namespace`.

    `kafka` becomes `kafka.NAMESPACE.svc`. `kafka-0.kafka` may be a pod of the namespace, a Service of another namespace
    or a host outside: the first that exists, in the order in which a pod tries them. Raises `BrokerNameError`.
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
    """A resolved address in the one form in which two that mean the same Service are equal."""
    host, _, port = server.lower().rpartition(":")
    host = host.removesuffix(".")
    for suffix in _CLUSTER_SUFFIXES:
        host = host.removesuffix(suffix)
    return f"{host}:{port}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
