"""Every change of a set of pods: a list-then-watch loop that continues after outages of the API server.

Owns listing again after outages and expired versions. Knows no use of the pods.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import httpx
import structlog

from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError, Body, KubernetesApi

_log = structlog.get_logger(__name__)
_RETRY_SECONDS = 0.25
_PODS = "/api/v1/pods"


async def follow_pods(
    api: KubernetesApi,
    *,
    query: Mapping[str, str],
    on_list: Callable[[list[Body]], Awaitable[None]],
    on_change: Callable[[str, Body], Awaitable[None]],
) -> None:
    """Call `on_list` with all selected pods, then `on_change` with (ADDED|MODIFIED|DELETED, pod), for ever.

    After an outage `on_list` is called again: pods that are not in it are gone.
    """
    while True:
        try:
            listed = await api.get(_PODS, **query)
            await on_list(listed["items"])
            version = str(listed["metadata"]["resourceVersion"])
            while True:
                async for event, pod in api.watch(_PODS, resource_version=version, **query):
                    version = str(pod["metadata"]["resourceVersion"])
                    if event != "BOOKMARK":
                        await on_change(event, pod)
        except ApiError as error:
            if error.status != httpx.codes.GONE:
                _log.warning("pod_watch_refused", error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)
        except ApiUnreachableError as error:
            _log.info("pod_watch_interrupted", error=str(error))
            await asyncio.sleep(_RETRY_SECONDS)
