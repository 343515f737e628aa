"""Settings of the operator, as `FLUXPOOL_*` variables that the chart renders.

What a pool should be is in its spec, never here.
"""

from typing import Annotated

from pydantic import Field

from fluxpool_contract.settings import EnvironmentSettings

Namespace = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
BrokerPattern = Annotated[
    str, Field(min_length=3, max_length=260, pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._*-]+):[0-9*]+$")
]
EndpointPattern = Annotated[str, Field(max_length=2048, pattern=r"^https?://[A-Za-z0-9._*\[\]:-]+(/[^\s?#,]*)?$")]


class OperatorSettings(EnvironmentSettings):
    """Settings of one operator process."""

    namespace: Namespace | None = None
    """Namespace of the operator's pod. When set, short broker names are resolved in each pool's namespace."""
    allowed_brokers: tuple[BrokerPattern, ...] = ()
    """Brokers that the operator may connect to, such as `*.kafka.svc:9092`; all when empty. `*` matches letters,
    digits, `.`, `_` and `-`. Short names of pools are compared as `NAME.NAMESPACE.svc`."""
    allowed_token_endpoints: tuple[EndpointPattern, ...] = ()
    """Token endpoints that the operator may connect to, such as `https://sso.example.com/*`; all when empty."""
    watch_namespaces: tuple[Namespace, ...] = ()
    """Namespaces to watch; all of the cluster when empty."""
    host_path_allowed: bool = False
    """Whether pools may use a hostPath model cache. Namespaces that enforce the baseline or restricted Pod Security
    Standard reject such pods."""
    pod_monitors: bool = False
    """Whether to create PodMonitors for pools that ask for one; requires the Prometheus operator's CRDs."""
    health_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address of the health and metrics server; in a pod its IP."""
    health_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port of the health and metrics server; 0 takes any free one."""
    secret_interval_seconds: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """Interval for reading the Secrets that pools refer to; a change rolls the pods."""
    resync_interval_seconds: Annotated[float, Field(ge=1, le=3600)] = 300.0
    """Interval for checking each pool's children, and for the sweep, without an event."""
    api_deadline_seconds: Annotated[float, Field(ge=1, le=300)] = 15.0
    """Deadline of a request to the Kubernetes API."""
    kafka_deadline_seconds: Annotated[float, Field(ge=1, le=300)] = 10.0
    """Deadline of a reading of the lag."""
