"""References of a pod: Secrets, ConfigMaps, its own fields, its resources.

Owns the look-ups for environment and volumes, and their error. Starts nothing and writes nothing.
"""

import base64
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

import httpx
from kubernetes.utils.quantity import parse_quantity

from kit.cluster.kubernetes_api import ApiError, ApiUnreachableError, Body, KubernetesApi

# The official client's parser, whose package has no types.
parse_amount: Callable[[str], Decimal] = parse_quantity
_ABSENT_OR_NOT_YET = (httpx.codes.NOT_FOUND, httpx.codes.FORBIDDEN)


class MissingReferenceError(Exception):
    """A referenced object is missing; the message names it. Retried until it exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlace:
    """Where a pod runs, for the downward API."""

    node_name: str
    node_capacity: Mapping[str, str]
    host_ip: str
    pod_ip: str


class PodReferences:
    """The look-ups of one pod, with the node's own credentials."""

    def __init__(self, api: KubernetesApi, pod: Body, place: PodPlace) -> None:
        """Take the pod as it is now; its labels and annotations may change later."""
        self._api = api
        self.pod = pod
        self._place = place

    @property
    def namespace(self) -> str:
        """The pod's namespace."""
        return str(self.pod["metadata"]["namespace"])

    async def secret(self, name: str, *, optional: bool) -> dict[str, bytes] | None:
        """Return a Secret's content; None when it is optional and absent. Raises `MissingReferenceError`."""
        found = await self._fetch("secrets", name, optional=optional)
        if found is None:
            return None
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}

    async def config_map(self, name: str, *, optional: bool) -> dict[str, bytes] | None:
        """Return a ConfigMap's content; None when it is optional and absent. Raises `MissingReferenceError`."""
        found = await self._fetch("configmaps", name, optional=optional)
        if found is None:
            return None
        text = {key: value.encode() for key, value in (found.get("data") or {}).items()}
        binary = {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
        return text | binary

    async def services(self) -> list[Body]:
        """Return the Services of the pod's namespace."""
        try:
            listed = await self._api.get(f"/api/v1/namespaces/{self.namespace}/services")
        except (ApiError, ApiUnreachableError) as error:
            raise MissingReferenceError(f"the services of namespace {self.namespace}: {error}") from error
        items: list[Body] = listed["items"]
        return items

    async def service_account_token(self, *, audience: str | None, expiration_seconds: int) -> str:
        """Return a token of the pod's service account that is bound to the pod."""
        metadata = self.pod["metadata"]
        account = self.pod["spec"].get("serviceAccountName", "default")
        spec: Body = {
            "expirationSeconds": expiration_seconds,
            "boundObjectRef": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        }
        if audience:
            spec["audiences"] = [audience]
        try:
            made = await self._api.create(
                f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token",
                {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec},
            )
        except (ApiError, ApiUnreachableError) as error:
            raise MissingReferenceError(f"a token of service account {account!r}: {error}") from error
        return str(made["status"]["token"])

    def field(self, path: str) -> str:
        """Return a field of the pod by the downward API's path. Raises `MissingReferenceError` for an unknown one."""
        metadata, spec, place = self.pod["metadata"], self.pod["spec"], self._place
        if (entry := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)) is not None:
            return str((metadata.get(entry[1]) or {}).get(entry[2], ""))
        match path:
            case "metadata.name" | "metadata.namespace" | "metadata.uid":
                return str(metadata[path.removeprefix("metadata.")])
            case "metadata.labels" | "metadata.annotations":
                entries = metadata.get(path.removeprefix("metadata.")) or {}
                return "\n".join(f'{key}="{_quoted(value)}"' for key, value in sorted(entries.items()))
            case "spec.nodeName":
                return place.node_name
            case "spec.serviceAccountName":
                return str(spec.get("serviceAccountName", "default"))
            case "status.podIP" | "status.podIPs":
                return place.pod_ip
            case "status.hostIP" | "status.hostIPs":
                return place.host_ip
            case _:
                raise MissingReferenceError(f"fieldRef {path!r} is not one of the downward API's fields")

    def resource_field(self, reference: Body, *, container: Body) -> str:
        """Return a request or limit in units of the divisor, rounded up; without a limit, what the node has."""
        kind, _, resource = str(reference["resource"]).partition(".")
        amounts = container.get("resources", {}).get(kind) or {}
        text = amounts.get(resource, self._place.node_capacity.get(resource, "0") if kind == "limits" else "0")
        divisor = parse_amount(str(reference.get("divisor") or "1")) or Decimal(1)
        return str(math.ceil(parse_amount(text) / divisor))

    async def _fetch(self, collection: str, name: str, *, optional: bool) -> Body | None:
        try:
            return await self._api.get(f"/api/v1/namespaces/{self.namespace}/{collection}/{name}")
        except ApiError as error:
            if error.status == httpx.codes.NOT_FOUND and optional:
                return None
            # The node's right to read it follows the pod's binding with a small delay.
            if error.status in _ABSENT_OR_NOT_YET:
                raise MissingReferenceError(f'{collection.removesuffix("s")} "{name}" not found ({error})') from error
            raise MissingReferenceError(f'{collection.removesuffix("s")} "{name}": {error}') from error
        except ApiUnreachableError as error:
            raise MissingReferenceError(f'{collection.removesuffix("s")} "{name}": {error}') from error


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
