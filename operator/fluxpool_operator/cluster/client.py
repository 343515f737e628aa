"""Requests to the Kubernetes API for plain objects, each with a deadline.

Uses the official client's transport, which handles kubeconfigs, service account tokens and their renewal, without its
typed models: they refuse objects of newer servers and cost more than the requests themselves.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

Body = dict[str, Any]

APPLY: Final = "application/apply-patch+yaml"
MERGE_PATCH: Final = "application/merge-patch+json"
_JSON: Final = "application/json"
CONNECTIONS: Final = 8
"""Concurrent requests; more would only queue in the server's priority and fairness. A TLS connection takes 0.25 MB."""
ACCOUNT_FOLDER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class ClusterError(Exception):
    """The API server refused a request; carries its message."""

    def __init__(self, *, request: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{request}: {message or reason} ({status})")
        self.status = status
        """HTTP status."""
        self.reason = reason
        """One word for programs, such as NotFound or Forbidden."""
        self.message = message


class ClusterUnreachableError(Exception):
    """The API server did not answer, or answered 429 or 5xx."""


def is_in_cluster(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process runs in a pod with a service account's token."""
    return bool(environment.get("KUBERNETES_SERVICE_HOST")) and (ACCOUNT_FOLDER / "token").exists()


async def connect(*, deadline_seconds: float) -> "ClusterClient":
    """A client for the cluster that this process runs in, else for the one of KUBECONFIG.

    Raises kubernetes' `ConfigException` when there is neither.
    """
    configuration = Configuration()
    if is_in_cluster():
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = CONNECTIONS
    return ClusterClient(ApiClient(configuration), deadline_seconds=deadline_seconds)


class ClusterClient:
    """Plain objects by path, such as `/apis/apps/v1/namespaces/images/deployments/standard-worker`."""

    def __init__(self, client: ApiClient, *, deadline_seconds: float) -> None:
        self._client = client
        self._deadline_seconds = deadline_seconds
        # A request's deadline starts when it gets a slot. When a thousand pools start at once, those at the end of the
        # queue would otherwise time out, and be repeated, before they were ever sent.
        self._request_slots = asyncio.Semaphore(CONNECTIONS)

    async def __aenter__(self) -> Self:
        """The first request opens a connection."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self._client.close()

    async def get(self, path: str, *, query: Mapping[str, str] | None = None, accept: str = _JSON) -> Body:
        """Read an object or a list; raises `ClusterError` and `ClusterUnreachableError`, as every request does."""
        return await self._request("GET", path, query=query, accept=accept)

    async def find(self, path: str) -> Body | None:
        """Read an object; None when it does not exist."""
        try:
            return await self.get(path)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def apply(self, path: str, manifest: Mapping[str, Any], *, field_manager: str) -> Body:
        """Server-side apply with `force`; returns the stored object."""
        query = {"fieldManager": field_manager, "force": "true"}
        return await self._request("PATCH", path, query=query, body=manifest, content_type=APPLY)

    async def merge_patch(self, path: str, patch: Mapping[str, Any]) -> Body:
        """JSON merge patch (RFC 7396); returns the stored object."""
        return await self._request("PATCH", path, body=patch, content_type=MERGE_PATCH)

    async def create(self, path: str, body: Mapping[str, Any]) -> Body:
        """Create an object in a collection."""
        return await self._request("POST", path, body=body)

    async def delete(self, path: str, *, uid: str) -> None:
        """Delete the object with that uid; no error when it is gone or was replaced."""
        try:
            await self._request("DELETE", path, body={"preconditions": {"uid": uid}})
        except ClusterError as error:
            if error.status not in (404, 409):
                raise

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = _JSON,
        accept: str = _JSON,
    ) -> Body:
        request = f"{method} {path}"
        try:
            serialized = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params={"Accept": accept, "Content-Type": content_type},
                body=None if body is None else dict(body),
                auth_settings=["BearerToken"],
            )
            async with self._request_slots:
                response = await self._client.call_api(*serialized, _request_timeout=self._deadline_seconds)
                content = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or f"no answer within {self._deadline_seconds:g} s"
            raise ClusterUnreachableError(f"{request}: {reason}") from error
        status = int(response.status)
        try:
            answer = json.loads(content) if content else {}
        except ValueError:
            answer = {"message": content[:500].decode(errors="replace")}
        if 200 <= status < 300:
            return dict(answer)
        message = str(answer.get("message", ""))
        if status >= 500 or status == 429:
            raise ClusterUnreachableError(f"{request}: {message or 'the server cannot serve'} ({status})")
        raise ClusterError(request=request, status=status, reason=str(answer.get("reason", "")), message=message)
