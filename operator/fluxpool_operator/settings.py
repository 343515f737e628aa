"""Everything the operator is told, as `FLUXPOOL_*` variables; the chart renders them.

Owns the operator's own settings. What a pool should be is said in its spec, never here.
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
    """The operator's own namespace, when it runs in a cluster: short broker names of other pools are looked up in
    theirs."""
    allowed_brokers: tuple[BrokerPattern, ...] = ()
    """Brokers that the operator may connect to, such as `*.kafka.svc:9092`; all when empty. `*` stands for letters,
    digits, `.`, `_` and `-`. Short names of pools are compared as `NAME.NAMESPACE.svc`."""
    allowed_token_endpoints: tuple[EndpointPattern, ...] = ()
    """Token endpoints that it may connect to, such as `https://sso.example.com/*`; all when empty."""
    watch_namespaces: tuple[Namespace, ...] = ()
    """Namespaces whose pools are looked after; all of the cluster when empty."""
    host_path_allowed: bool = False
    """Whether a pool may mount a folder of its nodes as model cache; such pods pass no restricted namespace."""
    pod_monitors: bool = False
    """Whether PodMonitors are made for pools that ask for one; needs the Prometheus operator's definitions."""
    health_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address of the health and metrics server; in a pod the pod's own."""
    health_port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    """Port of the health and metrics server; 0 takes any free one."""
    secret_interval_seconds: Annotated[float, Field(ge=1, le=3600)] = 30.0
    """How often the Secrets that pools refer to are read again; a change makes new pods."""
    resync_interval_seconds: Annotated[float, Field(ge=1, le=3600)] = 300.0
    """How often each pool's children are looked at even though no event said that they changed."""
    api_deadline_seconds: Annotated[float, Field(ge=1, le=300)] = 15.0
    """Longest wait for one answer of the Kubernetes API."""
    kafka_deadline_seconds: Annotated[float, Field(ge=1, le=300)] = 10.0
    """Longest wait for one reading of the backlog."""
