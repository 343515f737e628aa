"""One turn of a pool: look at its Secrets, its backlog and its children, plan, apply, and say what is so.

Owns the order of these steps and what each needs from the one before. Decides nothing itself: the plan, the victims,
the width of a rollout and every word of the status come from the pure rooms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from fluxpool_contract.kafka_connection import KafkaConnection
from fluxpool_operator.api import FluxWorkerPool, Reason
from fluxpool_operator.assessment import PoolProblem, PoolView, assess
from fluxpool_operator.backlog import LaneObservation, LaneTarget
from fluxpool_operator.children import (
    child_name,
    kafka_connection,
    required_secret_keys,
    secret_files,
    secret_variables,
)
from fluxpool_operator.cluster import KindPath
from fluxpool_operator.planning import Plan
from fluxpool_operator.pool_scaling import desired_replicas
from fluxpool_operator.reconcile.actuator import Actuator
from fluxpool_operator.reconcile.claims import GroupClaim
from fluxpool_operator.reconcile.lag_watch import LagWatch, lane_targets
from fluxpool_operator.reconcile.pool_secrets import SecretFiles, SecretsReader, SecretValues
from fluxpool_operator.reconcile.scaler import Scaler, Sight
from fluxpool_operator.reconcile.services import Services
from fluxpool_operator.reconcile.status_writer import StatusWriter
from fluxpool_operator.reconcile.topic_keeper import TopicKeeper
from fluxpool_operator.reconcile.world import Change, PoolKey
from fluxpool_operator.workload import summarize_deployment

RECHECK_SECONDS: Final = 2.0
"""Between turns while something stands in the way that a person is about to mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _PoolGroups:
    """The consumer groups that a pool reads."""

    pool: FluxWorkerPool
    targets: tuple[LaneTarget, ...]
    claim: GroupClaim


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aimed:
    """Where the lag watch looks, and what that came from."""

    groups: _PoolGroups
    secrets: SecretValues
    connection: KafkaConnection | None


class PoolTurns:
    """The turns of one pool, and what they remember from one to the next."""

    def __init__(
        self,
        key: PoolKey,
        *,
        services: Services,
        writer: StatusWriter,
        wake: Callable[[Change], None],
        tell_rivals: Callable[[frozenset[str]], None],
    ) -> None:
        self._key = key
        self._services = services
        self._writer = writer
        self._tell_rivals = tell_rivals
        self._lag = LagWatch(services.hub, key=str(key), wake=lambda: wake(Change.RECORDS), clock=services.clock)
        self._secrets = SecretsReader(
            services.cluster,
            namespace=key.namespace,
            interval_seconds=services.settings.secret_interval_seconds,
            clock=services.clock,
        )
        self._files = SecretFiles(services.folder / key.namespace / key.name)
        self._topics = TopicKeeper(clock=services.clock)
        self._scaler = Scaler(written=writer.written, services=services)
        self._actuator: Actuator | None = None
        self._groups: _PoolGroups | None = None
        self._aimed: _Aimed | None = None

    def close(self) -> None:
        """Let go of everything but the children."""
        self._lag.close()
        self._files.remove()

    async def turn(self, pool: FluxWorkerPool, changes: frozenset[Change]) -> float:
        """Observe, plan, apply, tell; returns the seconds until the next turn is due.

        Raises `InvalidPoolError` for a pool that contradicts itself, `PoolGoneError`, and what the cluster client does.
        """
        started_at = self._services.clock()
        actuator = self._actuator = self._actuator or Actuator(pool, services=self._services)
        if Change.DEPLOYMENT_GONE in changes:
            actuator.deployment_gone()
        secrets = await self._secrets.read(required_secret_keys(pool.spec))
        problems = self._claim(pool) + _missing(secrets)
        connection = self._aim(pool, secrets)
        problems += await self._topics.keep(pool, connection)
        if changes & {Change.RECORDS, Change.SPEC} or self._lag.seconds_until_due(self._interval(pool)) <= 0:
            await self._lag.read(is_burst=Change.RECORDS in changes)
        sight = await self._see(pool)
        plan = self._scaler.plan(pool, sight)
        self._services.metrics.cycle_seconds.observe(self._services.clock() - started_at)
        replicas = desired_replicas(pool, plan)
        if pool.spec.paused or problems:
            replicas = sight.current_replicas
        else:
            replicas = await self._scaler.choose_victims(
                pool, plan, sight, wanted=replicas, look_again=lambda: self._look_again(pool)
            )
            problems += await actuator.act(pool, replicas=replicas, secrets=secrets, sight=sight)
            sight = replace(sight, deployment=self._services.world.deployment(self._key))
        await self._tell(
            pool, sight=sight, plan=plan, replicas=replicas, problems=problems, template_hash=actuator.template_hash
        )
        self._lag.wake_when_grown()
        return self._delay(pool, problems)

    def _groups_of(self, pool: FluxWorkerPool) -> _PoolGroups:
        """What the pool reads; the same object until the pool changes, because it takes long to find out."""
        if self._groups is None or self._groups.pool is not pool:
            targets = lane_targets(pool)
            claim = GroupClaim(
                uid=pool.metadata.uid,
                name=str(self._key),
                created=pool.metadata.creation_timestamp,
                groups=frozenset(
                    (server, target.consumer_group)
                    for server in pool.spec.kafka.bootstrap_servers
                    for target in targets
                ),
            )
            self._groups = _PoolGroups(pool=pool, targets=targets, claim=claim)
        return self._groups

    def _claim(self, pool: FluxWorkerPool) -> tuple[PoolProblem, ...]:
        self._tell_rivals(self._services.claims.put(self._groups_of(pool).claim))
        conflict = self._services.claims.conflict(pool.metadata.uid)
        if conflict is None:
            return ()
        message = (
            f"kafka.consumerGroup: pool {conflict.holder} already reads group {conflict.group} of these brokers; "
            "each would take the other's partitions. Give this pool a group of its own, or delete one of them"
        )
        return (PoolProblem(reason=Reason.GROUP_CONFLICT, message=message),)

    def _aim(self, pool: FluxWorkerPool, secrets: SecretValues) -> KafkaConnection | None:
        """Point the lag watch at the pool's Kafka; without its credentials nothing can be read."""
        groups = self._groups_of(pool)
        if self._aimed is None or self._aimed.groups is not groups or self._aimed.secrets != secrets:
            connection = self._connection(pool, secrets)
            expired = {lane.name: lane.expired or 0 for lane in self._writer.written.lanes}
            self._lag.aim(connection, groups.targets, expired_before=expired)
            self._aimed = _Aimed(groups=groups, secrets=secrets, connection=connection)
        return self._aimed.connection

    def _connection(self, pool: FluxWorkerPool, secrets: SecretValues) -> KafkaConnection | None:
        needed = [key for name, key in secret_variables(pool.spec).items() if name.startswith("FLUXPOOL_KAFKA_")]
        needed += secret_files(pool.spec).values()
        if set(needed) & set(secrets.missing):
            return None
        files = self._files.write(pool, secrets)
        return kafka_connection(pool.spec.kafka, secrets.variables(pool), files=files)

    async def _see(self, pool: FluxWorkerPool) -> Sight:
        world = self._services.world
        if world.deployment(self._key) is None:
            # The watch may not have come around yet: a Deployment that nobody looked for must not count as zero.
            path = KindPath.DEPLOYMENT.object(self._key.namespace, child_name(pool))
            if (found := await self._services.cluster.find(path)) is not None:
                world.remember_deployment(self._key, summarize_deployment(found))
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

    def _delay(self, pool: FluxWorkerPool, problems: tuple[PoolProblem, ...]) -> float:
        due = max(0.0, self._lag.seconds_until_due(self._interval(pool)))
        return min(due, RECHECK_SECONDS) if problems else due


def _missing(secrets: SecretValues) -> tuple[PoolProblem, ...]:
    if not secrets.missing:
        return ()
    names = ", ".join(str(key) for key in secrets.missing)
    message = f"missing Secret entries (name/key): {names}; create them in the pool's namespace, pods wait until then"
    return (PoolProblem(reason=Reason.SECRET_NOT_FOUND, message=message),)


def _partition_counts(lanes: tuple[LaneObservation, ...]) -> Mapping[str, int]:
    return {lane.target.name: len(lane.partitions) for lane in lanes if lane.partitions}
