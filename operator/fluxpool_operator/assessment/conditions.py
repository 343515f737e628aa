"""Every condition of a pool but `Ready`, each with its cause."""

from datetime import timedelta
from typing import Final, assert_never

from fluxpool_contract.kafka import explain_create_time
from fluxpool_operator.api import ConditionStatus, ConditionType, Reason, ScalingMode
from fluxpool_operator.assessment.coarse import duration_text
from fluxpool_operator.assessment.readiness import readiness
from fluxpool_operator.assessment.view import PoolView, Verdict
from fluxpool_operator.backlog.observation import LaneObservation
from fluxpool_operator.planning import Constraint

_UNKNOWN_TOPIC: Final = "UNKNOWN_TOPIC_OR_PART"
"""Kafka's name, which a reading's problem carries, for a topic that is not there or may not be seen."""
_NO_LEADER: Final = "LEADER"
"""In the names of Kafka's errors about a partition whose leader is not elected, or not known, yet."""
_SETTLE: Final = timedelta(seconds=30)
_NEAR_EXPIRY: Final = timedelta(days=5)
"""Two days before Kafka's own offsets.retention.minutes are over; the brokers' setting itself may not be readable."""
_LIMIT_REASONS: Final = {
    Constraint.MAXIMUM: Reason.AT_MAX_REPLICAS,
    Constraint.PARTITIONS: Reason.PARTITION_LIMIT,
    Constraint.QUOTA: Reason.QUOTA_EXCEEDED,
    Constraint.CAPACITY: Reason.CAPACITY_SHORT,
    Constraint.RATE: Reason.RATE_LIMITED,
}


def verdict(view: PoolView, type_: ConditionType) -> Verdict:
    """What a condition is to say."""
    match type_:
        case ConditionType.READY:
            return readiness(view)
        case ConditionType.SCALING_ACTIVE:
            return _scaling_active(view)
        case ConditionType.SCALING_LIMITED:
            return _scaling_limited(view)
        case ConditionType.LAG_AVAILABLE:
            return _lag_available(view)
        case ConditionType.TOPICS_READY:
            return _topics_ready(view)
        case ConditionType.TASKS_EXPIRED:
            return _tasks_expired(view)
        case ConditionType.OFFSETS_RETAINED:
            return _offsets_retained(view)
        case ConditionType.LOG_APPEND_TIME:
            return _log_append_time(view)
        case _:
            assert_never(type_)


def _scaling_active(view: PoolView) -> Verdict:
    # Numbers stay out of the messages: `plan` has them, and a condition is to stand still.
    mode = view.pool.spec.scaling.mode
    if view.pool.spec.paused:
        return _false(Reason.PAUSED, "The pool is paused: everything stays as it is until paused is false.")
    if mode is ScalingMode.MANUAL:
        return _false(Reason.MANUAL_MODE, "spec.replicas decides; set scaling.mode to Active to follow the plan.")
    if mode is ScalingMode.SHADOW:
        return _false(Reason.SHADOW_MODE, "The plan is only shown; set scaling.mode to Active to follow it.")
    if view.obstacle is not None:
        return _false(view.obstacle.reason, "Nothing is changed until the problem that Ready tells is solved.")
    if view.plan.constraint is Constraint.FALLBACK:
        return _false(Reason.FALLBACK_APPLIED, "The backlog is not known, so onLagUnavailable.replicas decides.")
    if not view.lag_is_known:
        return _false(Reason.LAG_UNAVAILABLE, "The backlog is not known, so no worker is taken away.")
    return _true(Reason.PLAN_APPLIED, "The plan decides; status.plan explains it.")


def _scaling_limited(view: PoolView) -> Verdict:
    if not view.lag_is_known:
        return _unknown(Reason.LAG_UNAVAILABLE, "The backlog is not known.")
    reason = _shortage(view) or _limit(view)
    if reason is not None:
        return _true(reason, _limit_text(view, reason))
    return _false(Reason.WITHIN_LIMITS, "The work asks for no more workers than there may be.")


def _shortage(view: PoolView) -> Reason | None:
    """Why workers that are needed and were asked for do not run, None when all do or will."""
    if view.plan.required_replicas <= _placed(view):
        return None
    if view.counts.gated or (view.deployment is not None and view.deployment.is_over_quota):
        return Reason.QUOTA_EXCEEDED
    return Reason.CAPACITY_SHORT if view.counts.unschedulable else None


def _placed(view: PoolView) -> int:
    """Workers that run or will."""
    return view.counts.active - view.counts.unschedulable - view.counts.gated


def _limit(view: PoolView) -> Reason | None:
    """Why no more workers are asked for than there are, None when no more are needed."""
    plan, maximum = view.plan, view.pool.spec.scaling.max_replicas
    if plan.constraint is Constraint.PARTITIONS:
        # More partitions alone would not help a pool at its maximum.
        return Reason.AT_MAX_REPLICAS if plan.required_replicas >= maximum else Reason.PARTITION_LIMIT
    if plan.required_replicas <= plan.replicas:
        return None
    return Reason.PAUSED if view.pool.spec.paused else _LIMIT_REASONS.get(plan.constraint)


def _limit_text(view: PoolView, reason: Reason) -> str:
    scaling = view.pool.spec.scaling
    # No more than the maximum, so that the words stand still under a backlog that grows.
    asked = min(view.plan.required_replicas, scaling.max_replicas)
    match reason:
        case Reason.AT_MAX_REPLICAS:
            return f"The work asks for more than scaling.maxReplicas ({scaling.max_replicas}) workers."
        case Reason.PARTITION_LIMIT:
            return (
                "The work asks for more workers than there are partitions with tasks;"
                " spread tasks over more partitions, or add some."
            )
        case Reason.QUOTA_EXCEEDED:
            return f"The work asks for {asked} workers, and the quota admits {_placed(view)}."
        case Reason.CAPACITY_SHORT:
            return f"The work asks for {asked} workers, and nodes have room for {_placed(view)}; add GPU nodes."
        case Reason.RATE_LIMITED:
            return f"scaling.scaleUp.maxStepPods ({scaling.scale_up.max_step_pods}) lets workers be added step by step."
        case _:
            return "The work asks for more workers, and the pool is paused."


def _lag_available(view: PoolView) -> Verdict:
    if view.lag_is_known:
        return _true(Reason.LAG_READ, "The backlog of every lane is read.")
    if all(_is_settling(view, lane) for lane in view.stale_lanes) and view.stale_lanes:
        return _unknown(Reason.LAG_UNAVAILABLE, "The topics are new and cannot be read yet.")
    for problem in view.problems:
        if problem.stops_reading:
            return _false(problem.reason, f"Kafka is not asked for the backlog: {problem.message}.")
    reason = Reason.FALLBACK_APPLIED if view.plan.constraint is Constraint.FALLBACK else Reason.LAG_UNAVAILABLE
    return _false(reason, " ".join(_silence(lane) for lane in view.stale_lanes) or "No lane was read yet.")


def _is_settling(view: PoolView, lane: LaneObservation) -> bool:
    """Whether a lane was never read because its topic is new: its partitions have no leader for some seconds."""
    if lane.partitions:
        return False
    return view.topics_are_settling or (view.age < _SETTLE and _NO_LEADER in (lane.problem or ""))


def _silence(lane: LaneObservation) -> str:
    """Since when a lane is not read, and why."""
    since = "was never read" if not lane.partitions else f"was not read for {_ago(lane)}"
    return f"Lane {lane.target.name} {since}: {lane.problem or 'no answer came'}."


def _ago(lane: LaneObservation) -> str:
    return "long" if lane.age_seconds == float("inf") else duration_text(lane.age_seconds)


def _topics_ready(view: PoolView) -> Verdict:
    for problem in view.problems:
        if problem.reason is Reason.TOPICS_FAILED:
            return _false(Reason.TOPICS_FAILED, problem.message)
    unread = [lane for lane in view.lanes if lane.target.name not in view.topic_partitions]
    missing = [lane.target.topic for lane in unread if _UNKNOWN_TOPIC in (lane.problem or "")]
    if missing and not view.topics_are_settling:
        return _false(
            Reason.TOPICS_MISSING,
            f"kafka.lanes: {', '.join(missing)} cannot be found; create what is missing or set kafka.manageTopics,"
            " and let the Kafka user DESCRIBE it.",
        )
    if unread or not view.lanes:
        return _unknown(Reason.LAG_UNAVAILABLE, "The topics could not be read yet.")
    partitions = sum(view.topic_partitions[lane.target.name] for lane in view.lanes)
    maximum = view.pool.spec.scaling.max_replicas
    if partitions < maximum:
        return _false(
            Reason.PARTITIONS_FEWER_THAN_REPLICAS,
            f"The topics have {partitions} partitions for up to {maximum} workers, and a worker without one idles;"
            " add partitions or lower scaling.maxReplicas.",
        )
    return _true(Reason.TOPICS_FOUND, f"The topics have {partitions} partitions for up to {maximum} workers.")


def _tasks_expired(view: PoolView) -> Verdict:
    expired = {lane.target.name: lane.expired_records_total for lane in view.lanes if lane.expired_records_total}
    if expired:
        counts = ", ".join(f"{count} of lane {name}" for name, count in expired.items())
        return _true(
            Reason.RETENTION_PASSED,
            f"Tasks that the topic's retention deleted before a worker took them, since the pool was made: {counts}."
            " Raise the topic's retention.ms or scaling.maxReplicas.",
        )
    if not any(lane.partitions for lane in view.lanes):
        return _unknown(Reason.LAG_UNAVAILABLE, "The backlog was never read.")
    return _false(Reason.NO_OFFSETS_EXPIRED, "No task was deleted by the topic's retention before a worker took it.")


def _offsets_retained(view: PoolView) -> Verdict:
    lanes = [lane for lane in view.lanes if lane.has_foreign_commits and lane.member_count == 0]
    if lanes and view.asleep_for >= _NEAR_EXPIRY:
        groups = ", ".join(f"{lane.target.consumer_group} (lane {lane.target.name})" for lane in lanes)
        return _false(
            Reason.OFFSETS_MAY_EXPIRE,
            f"Offsets of consumer group {groups} were committed by another client than a worker, and the pool has had"
            f" none for {_NEAR_EXPIRY.days} days. Kafka forgets such offsets offsets.retention.minutes (7 days unless"
            " set) after the last member left, and then all tasks that are still in the topic are done again."
            " Set scaling.minReplicas to 1 until a worker is ready: it has them kept.",
        )
    if not any(lane.partitions for lane in view.lanes):
        return _unknown(Reason.LAG_UNAVAILABLE, "The offsets were never read.")
    return _true(Reason.OFFSETS_SAFE, "No committed offset is about to be forgotten by the brokers.")


def _log_append_time(view: PoolView) -> Verdict:
    topics = view.create_time_topics
    if topics is None:
        return _unknown(
            Reason.TOPICS_UNREADABLE,
            "The configuration of the topics is not known; let the Kafka user DESCRIBE_CONFIGS them.",
        )
    if topics:
        likewise = f" Likewise: {', '.join(topics[1:])}." if topics[1:] else ""
        return _false(
            Reason.CREATE_TIME, f"{explain_create_time(topics[0])}.{likewise} kafka.manageTopics does it too."
        )
    return _true(Reason.LOG_APPEND_TIME, "No topic with tasks is known to keep the times of its producers.")


def _true(reason: Reason, message: str) -> Verdict:
    return Verdict(status=ConditionStatus.TRUE, reason=reason, message=message)


def _false(reason: Reason, message: str) -> Verdict:
    return Verdict(status=ConditionStatus.FALSE, reason=reason, message=message)


def _unknown(reason: Reason, message: str) -> Verdict:
    return Verdict(status=ConditionStatus.UNKNOWN, reason=reason, message=message)
