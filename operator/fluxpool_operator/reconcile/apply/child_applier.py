"""Makes a pool's children what the plan says: rendered, applied where they differ, and problems put into words."""

import structlog

from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.assessment import PoolProblem
from fluxpool_operator.children import Children, child_name, render_children
from fluxpool_operator.cluster import KindPath
from fluxpool_operator.reconcile.apply.scaler import Observation
from fluxpool_operator.reconcile.apply.server_side_apply import ChildRefusedError, ForeignChildError, ServerSideApply
from fluxpool_operator.reconcile.child_cache import DEPLOYMENT, PoolKey
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.workload import rollout_width
from fluxpool_transport.process import fault_point

log = structlog.get_logger(__name__)

_decided = fault_point("operator-decided")
_applied = fault_point("operator-applied")


class ChildApplier:
    """The children of one pool, kept as its plan says."""

    def __init__(self, pool: FluxWorkerPool, *, context: OperatorContext) -> None:
        self._context = context
        self._server_side_apply = ServerSideApply(
            context.cluster,
            owner_uid=pool.metadata.uid,
            resync_interval_seconds=context.settings.resync_interval_seconds,
            clock=context.clock,
        )
        self._rendered: tuple[tuple[object, ...], Children] | None = None

    @property
    def template_hash(self) -> str | None:
        """Of the template that was last rendered; None before that."""
        return self._rendered[1].template_hash if self._rendered else None

    def on_child_deleted(self, pool: FluxWorkerPool) -> None:
        """A child was deleted: make it anew."""
        self._server_side_apply.on_children_changed(self._context.cache.children(PoolKey(pool.namespace, pool.name)))

    def seconds_until_due(self) -> float:
        """Until something that was put off is to be tried; infinite when nothing was."""
        return self._server_side_apply.seconds_until_due()

    async def apply(
        self, pool: FluxWorkerPool, *, replicas: int, secrets_checksum: str, observation: Observation
    ) -> tuple[PoolProblem, ...]:
        """Apply what differs; returns what stands in the way.

        Raises `InvalidPoolError` for a pool that cannot be rendered, and `ClusterUnreachableError`.
        """
        key, cache = PoolKey(pool.namespace, pool.name), self._context.cache
        children = self._render(pool, replicas=replicas, secrets_checksum=secrets_checksum, observation=observation)
        _decided()
        try:
            applied = await self._server_side_apply.reconcile(
                children, observed=cache.children(key), obsolete=self._obsolete(pool, children)
            )
        except ForeignChildError as error:
            return (PoolProblem(reason=Reason.FOREIGN_CHILD, message=str(error)),)
        except ChildRefusedError as error:
            return (PoolProblem(reason=Reason.CHILD_FAILED, message=str(error)),)
        for stored in applied:
            cache.store_child(key, stored["kind"], stored)
            if stored["kind"] == DEPLOYMENT:
                self._note_scaling(pool, before=observation.current_replicas, after=replicas)
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
        """Children that an earlier spec asked for, with the paths at which they would be."""
        obsolete = {}
        if children.service_account is None:
            obsolete["ServiceAccount"] = KindPath.SERVICE_ACCOUNT
        if children.pod_monitor is None and self._context.settings.pod_monitors:
            obsolete["PodMonitor"] = KindPath.POD_MONITOR
        return {kind: path.object(pool.namespace, child_name(pool)) for kind, path in obsolete.items()}

    def _note_scaling(self, pool: FluxWorkerPool, *, before: int, after: int) -> None:
        if before == after:
            return
        direction = "up" if after > before else "down"
        self._context.metrics.scalings.labels(namespace=pool.namespace, pool=pool.name, direction=direction).inc()
        log.info("pool_scaled", pool=f"{pool.namespace}/{pool.name}", before=before, after=after)
