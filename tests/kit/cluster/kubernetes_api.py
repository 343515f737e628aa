"""A thin client of the Kubernetes API for the test kit: objects are plain dictionaries, as on the wire.

Owns the connection and the errors. Knows no kinds: callers give paths such as `/api/v1/namespaces/default/pods/a`.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import httpx

from kit.cluster.control_plane_credentials import ClientLogin
from kit.waiting import PATIENCE

Body = dict[str, Any]
_REQUEST_SECONDS = 15.0 * PATIENCE
# The server ends a watch after this long and the watcher lists again; longer only hides watches that went silent.
_WATCH_SECONDS = 240
_HANDSHAKE_SECONDS = 2.0


class PatchType(StrEnum):
    """The media types of PATCH."""

    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    APPLY = "application/apply-patch+yaml"
    JSON = "application/json-patch+json"


class ApiError(Exception):
    """The API server returned an error; `status` is its HTTP status and `reason` that of its Status object."""

    def __init__(self, *, request: str, status: int, reason: str, message: str) -> None:
        super().__init__(f"{request}: {status} {reason}: {message}")
        self.status = status
        self.reason = reason


class ApiUnreachableError(Exception):
    """The API server did not answer."""


class KubernetesApi:
    """One user's connection pool; `async with` opens and closes it."""

    def __init__(self, login: ClientLogin) -> None:
        """Take a login; connects with the first request."""
        context = ssl.create_default_context(cafile=str(login.ca_file))
        if login.certificate_file is not None:
            context.load_cert_chain(login.certificate_file, login.key_file)
        headers = {"Authorization": f"Bearer {login.token}"} if login.token else {}
        self._client = httpx.AsyncClient(
            base_url=login.server, verify=context, headers=headers, trust_env=False, timeout=_REQUEST_SECONDS
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; the client cannot be used any more."""
        await self._client.aclose()

    async def get(self, path: str, **query: str) -> Body:
        """Return an object or a list; raises `ApiError`, `ApiUnreachableError`."""
        return await self._request("GET", path, query=query)

    async def create(self, path: str, body: Mapping[str, Any]) -> Body:
        """POST an object to its collection."""
        return await self._request("POST", path, body=body)

    async def patch(
        self, path: str, body: Mapping[str, Any], *, patch_type: PatchType = PatchType.MERGE, **query: str
    ) -> Body:
        """PATCH an object or its subresource."""
        return await self._request("PATCH", path, body=body, query=query, content_type=patch_type)

    async def delete(self, path: str, *, grace_period_seconds: int | None = None, uid: str | None = None) -> Body:
        """DELETE an object, with `uid` as a precondition; a Conflict says that another object has the name now."""
        options: Body = {}
        if grace_period_seconds is not None:
            options["gracePeriodSeconds"] = grace_period_seconds
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        return await self._request("DELETE", path, body=options)

    async def watch(self, path: str, *, resource_version: str, **query: str) -> AsyncGenerator[tuple[str, Body], None]:
        """Yield (type, object) of each change since a list's resourceVersion, until the server ends the watch.

        Raises `ApiError` (410 when the version is too old) and `ApiUnreachableError`.
        """
        asked = query | {
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = httpx.Timeout(_REQUEST_SECONDS, read=None)
        try:
            request = self._client.build_request("GET", path, params=asked, timeout=timeout)
            async with aclosing(await _whole(self._client.send(request, stream=True))) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise _refusal(answer)
                async for line in answer.aiter_lines():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(
                            request=f"WATCH {path}",
                            status=int(status.get("code", 0)),
                            reason=str(status.get("reason", "")),
                            message=str(status.get("message", "")),
                        )
                    yield event["type"], event["object"]
        except httpx.TransportError as error:
            raise ApiUnreachableError(f"WATCH {path}: {error!r}") from error

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Body:
        try:
            answer = await _whole(
                self._client.request(
                    method,
                    path,
                    params=dict(query or {}),
                    content=None if body is None else json.dumps(body).encode(),
                    headers={} if body is None else {"Content-Type": content_type},
                )
            )
        except httpx.TransportError as error:
            raise ApiUnreachableError(f"{method} {path}: {error!r}") from error
        if answer.is_error:
            raise _refusal(answer)
        found: Body = answer.json()
        return found


async def _whole(sending: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
    """The response; when cancelled, that or a moment is waited for.

    httpcore (1.0) loses a connection that is cancelled in its TLS handshake: the garbage collector closes it, with a
    warning in whichever test runs then.
    """
    request = asyncio.ensure_future(sending)
    try:
        return await asyncio.shield(request)
    except asyncio.CancelledError:
        await asyncio.wait({request}, timeout=_HANDSHAKE_SECONDS)
        if not request.done():
            request.cancel()
            await asyncio.wait({request})
        if not request.cancelled() and request.exception() is None:
            await request.result().aclose()
        raise


def _refusal(answer: httpx.Response) -> ApiError:
    try:
        status = answer.json()
    except json.JSONDecodeError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    return ApiError(
        request=f"{answer.request.method} {answer.request.url.path}",
        status=answer.status_code,
        reason=str(status.get("reason", answer.reason_phrase)),
        message=str(status.get("message", answer.text)),
    )
