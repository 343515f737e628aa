"""One turn of a pool: look at its Secrets, its backlog and its children, plan, apply, and say what is so.

Owns the order of these steps and what each needs from the one before. Decides nothing itself: the plan, the victims,
the width of a rollout and every word of the status come from the pure rooms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.assessment import PoolProblem, PoolView, assess
from fluxpool_operator.backlog import LaneObservation, LaneTarget
from fluxpool_operator.children import child_name, required_secret_keys
from fluxpool_operator.cluster import KindPath
from fluxpool_operator.planning import Plan
from fluxpool_operator.pool_scaling import desired_replicas
from fluxpool_operator.reconcile.apply.child_applier import ChildApplier
from fluxpool_operator.reconcile.apply.scaler import Observation, Scaler
from fluxpool_operator.reconcile.apply.status_writer import StatusWriter
from fluxpool_operator.reconcile.apply.topic_reconciler import TopicReconciler
from fluxpool_operator.reconcile.child_cache import DEPLOYMENT, Change, PoolKey
from fluxpool_operator.reconcile.claims import GroupClaim
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.kafka.broker_names import comparable_server
from fluxpool_operator.reconcile.kafka.kafka_access import KafkaAccess, KafkaAccessFinder, kafka_keys
from fluxpool_operator.reconcile.kafka.lag_watch import LagWatch, lane_targets
from fluxpool_operator.reconcile.kafka.pool_secrets import SecretsReader, SecretValues
from fluxpool_operator.workload import controller_uid

_READ_AT_ONCE: Final = frozenset({Change.RECORDS, Change.SPEC, Change.TOPICS})
"""Changes after which the backlog is read before its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadTarget:
    """Where the lag watch looks, and what that came from."""

    pool: FluxWorkerPool
    secrets: SecretValues
    access: KafkaAccess
    claim: GroupClaim


class PoolReconciler:
    """The turns of one pool, and what they remember from one to the next."""

    def __init__(
        self,
        key: PoolKey,
        *,
        uid: str,
        context: OperatorContext,
        writer: StatusWriter,
        wake: Callable[[Change], None],
        notify_conflicting_pools: Callable[[frozenset[str]], None],
    ) -> None:
        self._key = key
        self._context = context
        self._writer = writer
        self._notify_conflicting_pools = notify_conflicting_pools
        # By uid: a pool of the same name that ends later must not take away what the next one uses.
        self._lag = LagWatch(context.hub, key=uid, wake=lambda: wake(Change.RECORDS), clock=context.clock)
        self._secrets = SecretsReader(
            context.cluster,
            namespace=key.namespace,
            interval_seconds=context.settings.secret_interval_seconds,
            clock=context.clock,
        )
        self._kafka = KafkaAccessFinder(context.folder / uid, settings=context.settings)
        self._topics = TopicReconciler(context=context, wake=lambda: wake(Change.TOPICS))
        self._scaler = Scaler(written=writer.written, context=context)
        self._applier: ChildApplier | None = None
        self._targets: tuple[FluxWorkerPool, tuple[LaneTarget, ...]] | None = None
        self._target: _ReadTarget | None = None
        self._has_looked_up = False

    def close(self) -> None:
        """Let go of everything but the children."""
        self._lag.close()
        self._topics.close()
        self._kafka.close()

    async def reconcile(self, pool: FluxWorkerPool, changes: frozenset[Change]) -> float:
        """Observe, plan, apply, tell; returns the seconds until the next turn is due.

        Raises `InvalidPoolError` for a pool that contradicts itself, `PoolGoneError`, and what the cluster client does.
        """
        started_at = self._context.clock()
        applier = self._applier = self._applier or ChildApplier(pool, context=self._context)
        if Change.CHILD_DELETED in changes:
            applier.on_child_deleted(pool)
        secrets = await self._secrets.read(required_secret_keys(pool.spec))
        target = await self._configure_lag_watch(pool, secrets)
        topic_problems = self._topics.reconcile(pool, target.access.connection)
        if changes & _READ_AT_ONCE or self._lag.seconds_until_due(self._interval(pool)) <= 0:
            await self._lag.read(is_burst=Change.RECORDS in changes)
        observation = await self._observe(pool)
        problems = (
            self._claim(target.claim) + _missing(pool, secrets, observation) + target.access.problems + topic_problems
        )
        plan = self._scaler.plan(pool, observation)
        self._context.metrics.cycle_seconds.observe(self._context.clock() - started_at)
        replicas = desired_replicas(pool, plan)
        if pool.spec.paused or any(problem.stops_scaling for problem in problems):
            replicas = observation.current_replicas
        else:
            replicas = await self._scaler.choose_victims(
                pool, plan, observation, wanted=replicas, observe_again=lambda: self._observe_again(pool)
            )
            checksum = _checksum(secrets, observation)
            problems += await applier.apply(pool, replicas=replicas, secrets_checksum=checksum, observation=observation)
            observation = replace(observation, deployment=self._context.cache.deployment(self._key))
        await self._report(
            pool,
            observation=observation,
            plan=plan,
            replicas=replicas,
            problems=problems,
            template_hash=applier.template_hash,
        )
        self._lag.wake_when_grown()
        due = max(0.0, self._lag.seconds_until_due(self._interval(pool)))
        return min(due, applier.seconds_until_due(), self._secrets.seconds_until_due())

    def _targets_of(self, pool: FluxWorkerPool) -> tuple[LaneTarget, ...]:
        """What the pool reads; kept until the pool changes, because it takes long to find out."""
        if self._targets is None or self._targets[0] is not pool:
            self._targets = (pool, lane_targets(pool))
        return self._targets[1]

    def _claim(self, claim: GroupClaim) -> tuple[PoolProblem, ...]:
        self._notify_conflicting_pools(self._context.claims.put(claim))
        conflict = self._context.claims.conflict(claim.uid)
        if conflict is None:
            return ()
        message = (
            f"kafka.consumerGroup: pool {conflict.holder} already reads group {conflict.group} of these brokers; "
            "each would take the other's partitions. Give this pool a group of its own, or delete one of them"
        )
        return (PoolProblem(reason=Reason.GROUP_CONFLICT, message=message),)

    async def _configure_lag_watch(self, pool: FluxWorkerPool, secrets: SecretValues) -> _ReadTarget:
        """Point the lag watch at the pool's Kafka; without its credentials nothing can be read."""
        targets, target = self._targets_of(pool), self._target
        if target is None or target.pool is not pool or target.secrets != secrets or not target.access.is_final:
            access = await self._kafka.find(pool, secrets)
            expired = {lane.name: lane.expired or 0 for lane in self._writer.written.lanes}
            self._lag.configure(access.connection, targets, expired_before=expired)
            groups = frozenset(
                (comparable_server(server), group)
                for server in access.servers
                for target in targets
                for group in (target.consumer_group, *(tier.group for tier in target.retry_tiers))
            )
            claim = GroupClaim(
                uid=pool.metadata.uid,
                name=str(self._key),
                created=pool.metadata.creation_timestamp,
                groups=groups,
            )
            target = self._target = _ReadTarget(pool=pool, secrets=secrets, access=access, claim=claim)
        return target

    async def _observe(self, pool: FluxWorkerPool) -> Observation:
        cache = self._context.cache
        if cache.deployment(self._key) is None and not self._has_looked_up:
            # The watch may not have come around yet: a Deployment that nobody looked for must not count as zero.
            path = KindPath.DEPLOYMENT.object(self._key.namespace, child_name(pool))
            found = await self._context.cluster.find(path)
            if found is not None and controller_uid(found["metadata"]) == pool.metadata.uid:
                cache.store_child(self._key, DEPLOYMENT, found)
        self._has_looked_up = True
        return Observation(
            lanes=self._lag.observe(), deployment=cache.deployment(self._key), pods=cache.pods(self._key)
        )

    async def _observe_again(self, pool: FluxWorkerPool) -> Observation:
        """The backlog read anew, with the pods as they are by now."""
        await self._lag.read(is_burst=False)
        return await self._observe(pool)

    async def _report(
        self,
        pool: FluxWorkerPool,
        *,
        observation: Observation,
        plan: Plan,
        replicas: int,
        problems: tuple[PoolProblem, ...],
        template_hash: str | None,
    ) -> None:
        view = PoolView(
            pool=pool.model_copy(update={"status": self._writer.written}),
            now=self._context.utc_now(),
            lanes=observation.lanes,
            plan=plan,
            desired_replicas=replicas,
            deployment=observation.deployment,
            pods=observation.pods,
            template_hash=template_hash,
            problems=problems,
            topics_are_settling=self._topics.is_settling and pool.spec.kafka.manage_topics,
            create_time_topics=self._topics.create_time,
            topic_partitions=_partition_counts(observation.lanes),
        )
        status = assess(view)
        await self._writer.write(pool, status)
        self._export(observation, replicas)

    def _export(self, observation: Observation, replicas: int) -> None:
        metrics, labels = self._context.metrics, {"namespace": self._key.namespace, "pool": self._key.name}
        metrics.desired_replicas.labels(**labels).set(replicas)
        metrics.ready_replicas.labels(**labels).set(observation.deployment.ready if observation.deployment else 0)
        metrics.pending_records.labels(**labels).set(sum(lane.pending_records for lane in observation.lanes))
        metrics.expired_records.labels(**labels).set(sum(lane.expired_records_total for lane in observation.lanes))
        metrics.lag_age_seconds.labels(**labels).set(max((lane.age_seconds for lane in observation.lanes), default=0.0))

    def _interval(self, pool: FluxWorkerPool) -> float:
        return float(pool.spec.scaling.poll_interval_seconds)


def _missing(pool: FluxWorkerPool, secrets: SecretValues, observation: Observation) -> tuple[PoolProblem, ...]:
    """What is said of missing Secrets. Workers that run have what they were started with; others wait for them."""
    if not secrets.missing:
        return ()
    names = ", ".join(map(str, secrets.missing))
    message = f"missing Secret entries (name/key): {names}; create them in the pool's namespace"
    stops_reading = bool(kafka_keys(pool) & set(secrets.missing))
    # Nothing is known of the work then, and the first worker could not do any.
    stops_scaling = stops_reading and observation.deployment is None
    remark = "nothing is created until then" if stops_scaling else "new pods wait until then"
    problem = PoolProblem(
        reason=Reason.SECRET_NOT_FOUND,
        message=f"{message}; {remark}",
        stops_scaling=stops_scaling,
        stops_reading=stops_reading,
    )
    return (problem,)


def _checksum(secrets: SecretValues, observation: Observation) -> str:
    """Of the Secrets; while an entry is missing, of the pods that run: others could not start in their place."""
    if secrets.missing and observation.deployment is not None:
        return observation.deployment.secrets_checksum
    return secrets.checksum


def _partition_counts(lanes: tuple[LaneObservation, ...]) -> Mapping[str, int]:
    return {lane.target.name: len(lane.partitions) for lane in lanes if lane.partitions}
