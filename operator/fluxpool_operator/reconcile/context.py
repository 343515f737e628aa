"""Dependencies that the loops of all pools share: settings, clients, caches, metrics, clocks."""

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_operator.api.kafka import KafkaSpec
from fluxpool_operator.backlog import BacklogHub, TopicReport, observe_topics
from fluxpool_operator.cluster import ClusterClient
from fluxpool_operator.metrics import OperatorMetrics
from fluxpool_operator.reconcile.child_cache import ChildCache
from fluxpool_operator.reconcile.claims import GroupClaims
from fluxpool_operator.settings import OperatorSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorContext:
    """One of each for the process."""

    settings: OperatorSettings
    cluster: ClusterClient
    hub: BacklogHub
    folder: Path
    """Private to this process; holds the pools' certificates."""
    cache: ChildCache = field(default_factory=ChildCache)
    claims: GroupClaims = field(default_factory=GroupClaims)
    metrics: OperatorMetrics = field(default_factory=OperatorMetrics)
    observe_topics: Callable[[KafkaConnection, KafkaSpec], Coroutine[None, None, TopicReport]] = observe_topics
    clock: Callable[[], float] = time.monotonic
    utc_now: Callable[[], datetime] = lambda: datetime.now(UTC)
