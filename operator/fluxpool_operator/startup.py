"""Checks, before anything is watched, that the CRD is served and has every field of this operator."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

import structlog

from fluxpool_operator.api import API_VERSION, KIND, PLURAL
from fluxpool_operator.cluster import ClusterClient, ClusterError, ClusterUnreachableError
from fluxpool_operator.crd import custom_resource_definition

log = structlog.get_logger(__name__)

WAIT_SECONDS: Final = 30.0
"""For a CRD that is applied beside the operator; after that the pod ends, and Kubernetes restarts it."""
_POLL_SECONDS: Final = 1.0
_REMEDY: Final = "kubectl apply --server-side --force-conflicts -f crds/"


class DefinitionError(Exception):
    """The CRD is missing or outdated; the message names what is missing and the remedy."""


async def check_definition(cluster: ClusterClient, *, wait_seconds: float = WAIT_SECONDS) -> None:
    """Return once the API server serves pools with every field that this operator knows.

    Raises `DefinitionError` when it does not within `wait_seconds`. A namespaced operator may not read the CRD itself,
    but every account may read the schema.
    """
    ends_at = time.monotonic() + wait_seconds
    while True:
        try:
            problem = await definition_problem(cluster)
        except (ClusterError, ClusterUnreachableError) as error:
            problem = f"the Kubernetes API cannot be asked: {error}"
        if problem is None:
            return
        if time.monotonic() >= ends_at:
            raise DefinitionError(problem)
        log.info("waiting_for_definition", problem=problem)
        await asyncio.sleep(_POLL_SECONDS)


async def definition_problem(cluster: ClusterClient) -> str | None:
    """What the served CRD lacks, with the remedy; None when nothing."""
    try:
        served = await cluster.get(f"/apis/{API_VERSION}")
        document = await cluster.get(f"/openapi/v3/apis/{API_VERSION}")
    except ClusterError as error:
        if error.status == 404:
            return f"{PLURAL} of {API_VERSION} are not served; apply the CRD: {_REMEDY}"
        raise
    if PLURAL not in {resource["name"] for resource in served.get("resources", ())}:
        return f"{PLURAL} of {API_VERSION} are not served yet"
    schema = _served_schema(document)
    if schema is None:
        return f"the schema of {KIND} is not served yet"
    missing = sorted(_missing_fields(_own_schema(), schema))
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        return f"the CRD of {KIND} is older than this operator: it lacks {shown}; apply the new one: {_REMEDY}"
    return None


def _served_schema(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for schema in document.get("components", {}).get("schemas", {}).values():
        kinds = schema.get("x-kubernetes-group-version-kind", ())
        if any(kind.get("kind") == KIND for kind in kinds):
            return dict(schema)
    return None


def _own_schema() -> Mapping[str, Any]:
    (version,) = custom_resource_definition()["spec"]["versions"]
    return dict(version["schema"]["openAPIV3Schema"])


def _missing_fields(own: Mapping[str, Any], served: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of fields that only our schema has; types and rules are not compared."""
    others = served.get("properties", {})
    for name, schema in own.get("properties", {}).items():
        below = f"{path}.{name}" if path else name
        if name not in others:
            yield below
        elif path or name in ("spec", "status"):
            yield from _missing_fields(schema, others[name], below)
    if "items" in own and "items" in served:
        yield from _missing_fields(own["items"], served["items"], f"{path}[]")
