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
from fluxpool_operator.reconcile.apply.actuator import Actuator
from fluxpool_operator.reconcile.apply.scaler import Scaler, Sight
from fluxpool_operator.reconcile.apply.status_writer import StatusWriter
from fluxpool_operator.reconcile.apply.topic_keeper import TopicKeeper
from fluxpool_operator.reconcile.claims import GroupClaim
from fluxpool_operator.reconcile.kafka.broker_names import comparable_server
from fluxpool_operator.reconcile.kafka.kafka_access import KafkaAccess, KafkaAccessFinder, kafka_keys
from fluxpool_operator.reconcile.kafka.lag_watch import LagWatch, lane_targets
from fluxpool_operator.reconcile.kafka.pool_secrets import SecretsReader, SecretValues
from fluxpool_operator.reconcile.services import Services
from fluxpool_operator.reconcile.world import DEPLOYMENT, Change, PoolKey
from fluxpool_operator.workload import controller_uid

_READ_AT_ONCE: Final = frozenset({Change.RECORDS, Change.SPEC, Change.TOPICS})
"""Changes after which the backlog is read before its time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aimed:
    """Where the lag watch looks, and what that came from."""

    pool: FluxWorkerPool
    secrets: SecretValues
    access: KafkaAccess
    claim: GroupClaim


class PoolTurns:
    """The turns of one pool, and what they remember from one to the next."""

    def __init__(
        self,
        key: PoolKey,
        *,
        uid: str,
        services: Services,
        writer: StatusWriter,
        wake: Callable[[Change], None],
        tell_rivals: Callable[[frozenset[str]], None],
    ) -> None:
        self._key = key
        self._services = services
        self._writer = writer
        self._tell_rivals = tell_rivals
        # By uid: a pool of the same name that ends later must not take away what the next one uses.
        self._lag = LagWatch(services.hub, key=uid, wake=lambda: wake(Change.RECORDS), clock=services.clock)
        self._secrets = SecretsReader(
            services.cluster,
            namespace=key.namespace,
            interval_seconds=services.settings.secret_interval_seconds,
            clock=services.clock,
        )
        self._kafka = KafkaAccessFinder(services.folder / uid, settings=services.settings)
        self._topics = TopicKeeper(services=services, wake=lambda: wake(Change.TOPICS))
        self._scaler = Scaler(written=writer.written, services=services)
        self._actuator: Actuator | None = None
        self._targets: tuple[FluxWorkerPool, tuple[LaneTarget, ...]] | None = None
        self._aimed: _Aimed | None = None
        self._has_looked = False

    def close(self) -> None:
        """Let go of everything but the children."""
        self._lag.close()
        self._topics.close()
        self._kafka.close()

    async def turn(self, pool: FluxWorkerPool, changes: frozenset[Change]) -> float:
        """Observe, plan, apply, tell; returns the seconds until the next turn is due.

        Raises `InvalidPoolError` for a pool that contradicts itself, `PoolGoneError`, and what the cluster client does.
        """
        started_at = self._services.clock()
        actuator = self._actuator = self._actuator or Actuator(pool, services=self._services)
        if Change.CHILD_GONE in changes:
            actuator.child_gone(pool)
        secrets = await self._secrets.read(required_secret_keys(pool.spec))
        aimed = await self._aim(pool, secrets)
        topic_problems = self._topics.keep(pool, aimed.access.connection)
        if changes & _READ_AT_ONCE or self._lag.seconds_until_due(self._interval(pool)) <= 0:
            await self._lag.read(is_burst=Change.RECORDS in changes)
        sight = await self._see(pool)
        problems = self._claim(aimed.claim) + _missing(pool, secrets, sight) + aimed.access.problems + topic_problems
        plan = self._scaler.plan(pool, sight)
        self._services.metrics.cycle_seconds.observe(self._services.clock() - started_at)
        replicas = desired_replicas(pool, plan)
        if pool.spec.paused or any(problem.stops_scaling for problem in problems):
            replicas = sight.current_replicas
        else:
            replicas = await self._scaler.choose_victims(
                pool, plan, sight, wanted=replicas, look_again=lambda: self._look_again(pool)
            )
            checksum = _checksum(secrets, sight)
            problems += await actuator.act(pool, replicas=replicas, secrets_checksum=checksum, sight=sight)
            sight = replace(sight, deployment=self._services.world.deployment(self._key))
        await self._tell(
            pool, sight=sight, plan=plan, replicas=replicas, problems=problems, template_hash=actuator.template_hash
        )
        self._lag.wake_when_grown()
        due = max(0.0, self._lag.seconds_until_due(self._interval(pool)))
        return min(due, actuator.seconds_until_due(), self._secrets.seconds_until_due())

    def _targets_of(self, pool: FluxWorkerPool) -> tuple[LaneTarget, ...]:
        """What the pool reads; kept until the pool changes, because it takes long to find out."""
        if self._targets is None or self._targets[0] is not pool:
            self._targets = (pool, lane_targets(pool))
        return self._targets[1]

    def _claim(self, claim: GroupClaim) -> tuple[PoolProblem, ...]:
        self._tell_rivals(self._services.claims.put(claim))
        conflict = self._services.claims.conflict(claim.uid)
        if conflict is None:
            return ()
        message = (
            f"kafka.consumerGroup: pool {conflict.holder} already reads group {conflict.group} of these brokers; "
            "each would take the other's partitions. Give this pool a group of its own, or delete one of them"
        )
        return (PoolProblem(reason=Reason.GROUP_CONFLICT, message=message),)

    async def _aim(self, pool: FluxWorkerPool, secrets: SecretValues) -> _Aimed:
        """Point the lag watch at the pool's Kafka; without its credentials nothing can be read."""
        targets, aimed = self._targets_of(pool), self._aimed
        if aimed is None or aimed.pool is not pool or aimed.secrets != secrets or not aimed.access.is_final:
            access = await self._kafka.find(pool, secrets)
            expired = {lane.name: lane.expired or 0 for lane in self._writer.written.lanes}
            self._lag.aim(access.connection, targets, expired_before=expired)
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
            aimed = self._aimed = _Aimed(pool=pool, secrets=secrets, access=access, claim=claim)
        return aimed

    async def _see(self, pool: FluxWorkerPool) -> Sight:
        world = self._services.world
        if world.deployment(self._key) is None and not self._has_looked:
            # The watch may not have come around yet: a Deployment that nobody looked for must not count as zero.
            path = KindPath.DEPLOYMENT.object(self._key.namespace, child_name(pool))
            found = await self._services.cluster.find(path)
            if found is not None and controller_uid(found["metadata"]) == pool.metadata.uid:
                world.remember_child(self._key, DEPLOYMENT, found)
        self._has_looked = True
        return Sight(lanes=self._lag.observe(), deployment=world.deployment(self._key), pods=world.pods(self._key))

    async def _look_again(self, pool: FluxWorkerPool) -> Sight:
        """The backlog read anew, with the pods as they are by now."""
        await self._lag.read(is_burst=False)
        return await self._see(pool)

    async def _tell(
        self,
        pool: FluxWorkerPool,
        *,
        sight: Sight,
        plan: Plan,
        replicas: int,
        problems: tuple[PoolProblem, ...],
        template_hash: str | None,
    ) -> None:
        view = PoolView(
            pool=pool.model_copy(update={"status": self._writer.written}),
            now=self._services.utc_now(),
            lanes=sight.lanes,
            plan=plan,
            desired_replicas=replicas,
            deployment=sight.deployment,
            pods=sight.pods,
            template_hash=template_hash,
            problems=problems,
            topics_are_settling=self._topics.is_settling and pool.spec.kafka.manage_topics,
            create_time_topics=self._topics.create_time,
            topic_partitions=_partition_counts(sight.lanes),
        )
        status = assess(view)
        await self._writer.write(pool, status)
        self._measure(sight, replicas)

    def _measure(self, sight: Sight, replicas: int) -> None:
        metrics, labels = self._services.metrics, {"namespace": self._key.namespace, "pool": self._key.name}
        metrics.desired_replicas.labels(**labels).set(replicas)
        metrics.ready_replicas.labels(**labels).set(sight.deployment.ready if sight.deployment else 0)
        metrics.waiting_records.labels(**labels).set(sum(lane.waiting_records for lane in sight.lanes))
        metrics.expired_records.labels(**labels).set(sum(lane.expired_records_total for lane in sight.lanes))
        metrics.lag_age_seconds.labels(**labels).set(max((lane.age_seconds for lane in sight.lanes), default=0.0))

    def _interval(self, pool: FluxWorkerPool) -> float:
        return float(pool.spec.scaling.poll_interval_seconds)


def _missing(pool: FluxWorkerPool, secrets: SecretValues, sight: Sight) -> tuple[PoolProblem, ...]:
    """What is said of missing Secrets. Workers that run have what they were started with; others wait for them."""
    if not secrets.missing:
        return ()
    names = ", ".join(map(str, secrets.missing))
    message = f"missing Secret entries (name/key): {names}; create them in the pool's namespace"
    stops_reading = bool(kafka_keys(pool) & set(secrets.missing))
    # Nothing is known of the work then, and the first worker could not do any.
    stops_scaling = stops_reading and sight.deployment is None
    remark = "nothing is created until then" if stops_scaling else "new pods wait until then"
    problem = PoolProblem(
        reason=Reason.SECRET_NOT_FOUND,
        message=f"{message}; {remark}",
        stops_scaling=stops_scaling,
        stops_reading=stops_reading,
    )
    return (problem,)


def _checksum(secrets: SecretValues, sight: Sight) -> str:
    """Of the Secrets; while an entry is missing, of the pods that run: others could not start in their place."""
    if secrets.missing and sight.deployment is not None:
        return sight.deployment.secrets_checksum
    return secrets.checksum


def _partition_counts(lanes: tuple[LaneObservation, ...]) -> Mapping[str, int]:
    return {lane.target.name: len(lane.partitions) for lane in lanes if lane.partitions}
