"""Renders a pool's children and applies those that differ; turns refusals into problems of the status.

What differs is decided in `server_side_apply`, what a child looks like in `children`.
"""

import structlog

from fluxpool_operator.api import FluxWorkerPool
from fluxpool_operator.assessment import PoolProblem
from fluxpool_operator.children import Children, child_name, render_children
from fluxpool_operator.cluster import KindPath
from fluxpool_operator.reconcile.apply.scaler import Observation
from fluxpool_operator.reconcile.apply.server_side_apply import ChildError, ServerSideApply
from fluxpool_operator.reconcile.child_cache import DEPLOYMENT, PoolKey
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.workload import rollout_width
from fluxpool_transport.process import fault_point

log = structlog.get_logger(__name__)

_decided = fault_point("operator-decided")
_applied = fault_point("operator-applied")


class ChildApplier:
    """Applies the children of one pool."""

    def __init__(self, key: PoolKey, *, owner_uid: str, context: OperatorContext) -> None:
        self._key = key
        self._context = context
        self._server_side_apply = ServerSideApply(
            context.cluster,
            owner_uid=owner_uid,
            resync_interval_seconds=context.settings.resync_interval_seconds,
            clock=context.clock,
        )
        self._rendered: tuple[tuple[object, ...], Children] | None = None

    @property
    def template_hash(self) -> str | None:
        """Of the template that was rendered last; None before that."""
        return self._rendered[1].template_hash if self._rendered else None

    def on_child_deleted(self) -> None:
        """A child was deleted: the next `apply` creates it again."""
        self._server_side_apply.on_children_changed(self._context.cache.children(self._key))

    def seconds_until_due(self) -> float:
        """Until a postponed apply is due; infinite when there is none."""
        return self._server_side_apply.seconds_until_due()

    async def apply(
        self, pool: FluxWorkerPool, *, replicas: int, secrets_checksum: str, observation: Observation
    ) -> tuple[PoolProblem, ...]:
        """Apply what differs; returns the problems.

        Raises `InvalidPoolError` for a pool that cannot be rendered, and `ClusterUnreachableError`.
        """
        cache = self._context.cache
        children = self._render(pool, replicas=replicas, secrets_checksum=secrets_checksum, observation=observation)
        _decided()
        try:
            applied = await self._server_side_apply.reconcile(
                children, observed=cache.children(self._key), obsolete=self._obsolete(pool, children)
            )
        except ChildError as error:
            return (PoolProblem(reason=error.reason, message=str(error)),)
        for stored in applied:
            # Not left to the watch: the next reconcile must count the replicas that were just applied.
            cache.store_child(self._key, stored["kind"], stored)
            if stored["kind"] == DEPLOYMENT:
                self._count_scaling(pool, before=observation.current_replicas, after=replicas)
        _applied()
        return ()

    def _render(
        self, pool: FluxWorkerPool, *, replicas: int, secrets_checksum: str, observation: Observation
    ) -> Children:
        width = rollout_width(observation.deployment, observation.pods) if observation.deployment else 1
        arguments = (pool.metadata.uid, pool.metadata.generation, replicas, width, secrets_checksum)
        if self._rendered is None or self._rendered[0] != arguments:
            children = render_children(
                pool,
                replicas=replicas,
                max_unavailable=width,
                secrets_checksum=secrets_checksum,
                host_path_allowed=self._context.settings.host_path_allowed,
            )
            self._rendered = (arguments, children)
        return self._rendered[1]

    def _obsolete(self, pool: FluxWorkerPool, children: Children) -> dict[str, str]:
        """Paths, by kind, of children that only an earlier spec asked for."""
        obsolete = {}
        if children.service_account is None:
            obsolete["ServiceAccount"] = KindPath.SERVICE_ACCOUNT
        if children.pod_monitor is None and self._context.settings.pod_monitors:
            obsolete["PodMonitor"] = KindPath.POD_MONITOR
        return {kind: path.object(pool.namespace, child_name(pool.name)) for kind, path in obsolete.items()}

    def _count_scaling(self, pool: FluxWorkerPool, *, before: int, after: int) -> None:
        if before == after:
            return
        direction = "up" if after > before else "down"
        self._context.metrics.scalings.labels(namespace=pool.namespace, pool=pool.name, direction=direction).inc()
        log.info("pool_scaled", pool=f"{pool.namespace}/{pool.name}", before=before, after=after)
