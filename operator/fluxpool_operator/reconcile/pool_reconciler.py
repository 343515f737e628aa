"""Reconciles one pool: reads Secrets, lag and children, plans, applies and reports.

Owns the order of these steps and what each needs of the one before. Decides nothing itself: plan, victims, rollout and
status come from the pure rooms. `pool_loop` calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.assessment import PoolProblem, PoolView, assess, pool_state
from fluxpool_operator.backlog import LaneTarget, lane_targets_of
from fluxpool_operator.children import child_name, required_secret_keys, worker_settings
from fluxpool_operator.cluster import KindPath
from fluxpool_operator.planning import Plan
from fluxpool_operator.reconcile.apply.child_applier import ChildApplier
from fluxpool_operator.reconcile.apply.scaler import Observation, Scaler, desired_replicas
from fluxpool_operator.reconcile.apply.state_reporter import StateReporter
from fluxpool_operator.reconcile.apply.status_writer import StatusWriter
from fluxpool_operator.reconcile.apply.topic_reconciler import TopicReconciler
from fluxpool_operator.reconcile.child_cache import DEPLOYMENT, Change, PoolKey
from fluxpool_operator.reconcile.claims import GroupClaim
from fluxpool_operator.reconcile.context import OperatorContext
from fluxpool_operator.reconcile.kafka.broker_addresses import comparable_server
from fluxpool_operator.reconcile.kafka.kafka_access import KafkaAccess, KafkaAccessFinder, kafka_keys
from fluxpool_operator.reconcile.kafka.lag_watch import LagWatch
from fluxpool_operator.reconcile.kafka.pool_secrets import SecretsReader, SecretValues, signing_certificate
from fluxpool_operator.workload import controller_uid

_READ_AT_ONCE: Final = frozenset({Change.RECORDS, Change.SPEC, Change.TOPICS})
"""Changes after which the lag is read before its interval is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReadTarget:
    """What the lag watch reads, and from what that was derived."""

    pool: FluxWorkerPool
    secrets: SecretValues
    lanes: tuple[LaneTarget, ...]
    access: KafkaAccess
    claim: GroupClaim


class PoolReconciler:
    """Reconciles one pool, and remembers what the next reconcile needs of the last one."""

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
        # Lag watch and secrets folder are keyed by uid, not by name: a deleted pool may be closed after its successor
        # of the same name has started, and must not take away what that one uses.
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
        self._applier = ChildApplier(key, owner_uid=uid, context=context)
        self._states = StateReporter(context)
        self._target: _ReadTarget | None = None
        self._deployment_was_sought = False
        self._expired_records = 0

    def close(self) -> None:
        """Release everything but the children; the next `reconcile` takes it again."""
        # The connection reads files that are removed here.
        self._target = None
        self._lag.close()
        self._topics.close()
        self._kafka.close()

    def withdraw(self) -> None:
        """Say that the pool was deleted."""
        self._states.withdraw()

    async def reconcile(self, pool: FluxWorkerPool, changes: frozenset[Change]) -> float:
        """Observe, plan, apply, report; returns the seconds until the next reconcile is due.

        Raises `InvalidPoolError` for a pool that contradicts itself, `PoolGoneError`, and what the cluster client does.
        """
        started_at, interval_seconds = self._context.clock(), float(pool.spec.scaling.poll_interval_seconds)
        if Change.CHILD_DELETED in changes:
            self._applier.on_child_deleted()
        secrets = await self._secrets.read(required_secret_keys(pool.spec))
        target = await self._read_target(pool, secrets)
        topic_problems = self._topics.reconcile(pool, target.access.connection)
        if changes & _READ_AT_ONCE or self._lag.seconds_until_due(interval_seconds) <= 0:
            await self._lag.read(is_burst=Change.RECORDS in changes)
        # After the lag: pods that the cache learns of during the reading count in this plan.
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
            checksum = _checksum(pool, secrets, observation)
            problems += await self._applier.apply(
                pool, replicas=replicas, secrets_checksum=checksum, observation=observation
            )
            observation = replace(observation, deployment=self._context.cache.deployment(self._key))
        await self._report(
            pool, secrets=secrets, observation=observation, plan=plan, replicas=replicas, problems=problems
        )
        # Last: the watch begins at the ends of the latest reading, and until here the loop is awake anyway.
        self._lag.wake_when_grown()
        due = max(0.0, self._lag.seconds_until_due(interval_seconds))
        return min(due, self._applier.seconds_until_due(), self._secrets.seconds_until_due())

    async def _read_target(self, pool: FluxWorkerPool, secrets: SecretValues) -> _ReadTarget:
        """Connect the lag watch to the pool's Kafka; without its credentials nothing can be read."""
        last = self._target
        if last is not None and last.pool is pool and last.secrets == secrets and last.access.is_final:
            return last
        # Deriving the lanes takes long enough to do it once for each change of the pool.
        lanes = last.lanes if last is not None and last.pool is pool else lane_targets_of(worker_settings(pool))
        access = await self._kafka.find(pool, secrets)
        expired = {lane.name: lane.expired or 0 for lane in self._writer.written.lanes}
        self._lag.configure(access.connection, lanes, expired_before=expired)
        groups = frozenset(
            (comparable_server(server), group)
            for server in access.servers
            for lane in lanes
            for group in (lane.consumer_group, *(tier.group for tier in lane.retry_tiers))
        )
        claim = GroupClaim(
            uid=pool.metadata.uid, name=str(self._key), created=pool.metadata.creation_timestamp, groups=groups
        )
        self._target = _ReadTarget(pool=pool, secrets=secrets, lanes=lanes, access=access, claim=claim)
        return self._target

    def _claim(self, claim: GroupClaim) -> tuple[PoolProblem, ...]:
        self._notify_conflicting_pools(self._context.claims.put(claim))
        conflict = self._context.claims.conflict(claim.uid)
        if conflict is None:
            return ()
        group, older = conflict
        message = (
            f"kafka.consumerGroup: pool {older.name} already reads group {group} of these brokers; "
            "each would take the other's partitions. Give this pool a group of its own, or delete one of them"
        )
        return (PoolProblem(reason=Reason.GROUP_CONFLICT, message=message),)

    async def _observe(self, pool: FluxWorkerPool) -> Observation:
        cache = self._context.cache
        # A new operator may plan before its watch has listed the Deployments: absent from the cache is not yet 0.
        if cache.deployment(self._key) is None and not self._deployment_was_sought:
            path = KindPath.DEPLOYMENT.object(self._key.namespace, child_name(pool.name))
            found = await self._context.cluster.find(path)
            if found is not None and controller_uid(found["metadata"]) == pool.metadata.uid:
                cache.store_child(self._key, DEPLOYMENT, found)
        self._deployment_was_sought = True
        return Observation(
            lanes=self._lag.observe(), deployment=cache.deployment(self._key), pods=cache.pods(self._key)
        )

    async def _observe_again(self, pool: FluxWorkerPool) -> Observation:
        """A fresh reading of the lag, with the pods as they are by now."""
        await self._lag.read(is_burst=False)
        return await self._observe(pool)

    async def _report(
        self,
        pool: FluxWorkerPool,
        *,
        secrets: SecretValues,
        observation: Observation,
        plan: Plan,
        replicas: int,
        problems: tuple[PoolProblem, ...],
    ) -> None:
        """Write the status, and export the pool's metrics."""
        view = PoolView(
            pool=pool.model_copy(update={"status": self._writer.written}),
            now=self._context.utc_now(),
            lanes=observation.lanes,
            plan=plan,
            desired_replicas=replicas,
            deployment=observation.deployment,
            pods=observation.pods,
            template_hash=self._applier.template_hash,
            problems=problems,
            topics_are_settling=self._topics.is_settling and pool.spec.kafka.manage_topics,
            create_time_topics=self._topics.create_time,
            signing_certificate=signing_certificate(pool, secrets),
        )
        status = assess(view)
        await self._writer.write(pool, status)
        if self._target is not None and self._target.access.connection is not None:
            self._states.report(pool, pool_state(view, status), self._target.access.connection)
        metrics, labels = self._context.metrics, {"namespace": self._key.namespace, "pool": self._key.name}
        metrics.desired_replicas.labels(**labels).set(replicas)
        metrics.ready_replicas.labels(**labels).set(observation.deployment.ready if observation.deployment else 0)
        metrics.pending_records.labels(**labels).set(sum(lane.pending_records for lane in observation.lanes))
        metrics.lag_age_seconds.labels(**labels).set(max((lane.age_seconds for lane in observation.lanes), default=0.0))
        # The status remembers the sum across operators, a counter only grows.
        before, self._expired_records = self._expired_records, sum(it.expired_records_total for it in observation.lanes)
        metrics.expired_records.labels(**labels).inc(max(0, self._expired_records - before))


def _missing(pool: FluxWorkerPool, secrets: SecretValues, observation: Observation) -> tuple[PoolProblem, ...]:
    """The problem of missing Secrets. Running workers keep what they were started with; new pods wait."""
    if not secrets.missing:
        return ()
    names = ", ".join(map(str, secrets.missing))
    message = f"missing Secret entries (name/key): {names}; create them in the pool's namespace"
    stops_reading = bool(kafka_keys(pool) & set(secrets.missing))
    # Without a lag and without workers there is nothing to scale by, and the first worker could not start.
    stops_scaling = stops_reading and observation.deployment is None
    remark = "nothing is created until then" if stops_scaling else "new pods wait until then"
    problem = PoolProblem(
        reason=Reason.SECRET_NOT_FOUND,
        message=f"{message}; {remark}",
        stops_scaling=stops_scaling,
        stops_reading=stops_reading,
    )
    return (problem,)


def _checksum(pool: FluxWorkerPool, secrets: SecretValues, observation: Observation) -> str:
    """Of the Secrets; while an entry is missing, of the running pods, whose replacements could not start."""
    if secrets.missing and observation.deployment is not None:
        return observation.deployment.secrets_checksum
    return secrets.checksum(pool)
