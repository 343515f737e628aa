"""The conditions of a pool except `Ready`: status, reason and message.

`readiness` owns `Ready`; `status` puts them together.
"""

from datetime import timedelta
from typing import Final, assert_never

from fluxpool_contract.kafka import explain_create_time
from fluxpool_operator.api import ConditionType, Reason, ScalingMode, Verdict
from fluxpool_operator.assessment.readiness import readiness
from fluxpool_operator.assessment.view import PoolView, duration_text, false, true, unknown
from fluxpool_operator.backlog.observation import LaneObservation
from fluxpool_operator.planning import Constraint

_UNKNOWN_TOPIC: Final = "UNKNOWN_TOPIC_OR_PART"
"""Kafka's error name, part of a reading's problem, for a topic that does not exist or may not be described."""
_NO_LEADER: Final = "LEADER"
"""Part of the names of Kafka's errors about a partition whose leader is not elected or not known yet."""
_SETTLE: Final = timedelta(seconds=30)
_NEAR_EXPIRY: Final = timedelta(days=5)
"""Two days before the default offsets.retention.minutes; the setting of the brokers may not be readable."""
_LIMIT_REASONS: Final = {
    Constraint.MAXIMUM: Reason.AT_MAX_REPLICAS,
    Constraint.PARTITIONS: Reason.PARTITION_LIMIT,
    Constraint.QUOTA: Reason.QUOTA_EXCEEDED,
    Constraint.CAPACITY: Reason.CAPACITY_SHORT,
    Constraint.RATE: Reason.RATE_LIMITED,
}


def verdict(view: PoolView, type_: ConditionType) -> Verdict:
    """Status, reason and message of a condition."""
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
        case ConditionType.IMAGES_SIGNED:
            return _images_signed(view)
        case _:
            assert_never(type_)


def _scaling_active(view: PoolView) -> Verdict:
    # No numbers in the messages: `plan` has them, and a condition must not change with each reading.
    mode = view.pool.spec.scaling.mode
    if view.pool.spec.paused:
        return false(Reason.PAUSED, "Reconciliation is paused; set spec.paused to false to resume it.")
    if mode is ScalingMode.MANUAL:
        return false(
            Reason.MANUAL_MODE,
            "spec.replicas sets the size; set scaling.mode to Active to follow the plan.",
        )
    if mode is ScalingMode.SHADOW:
        return false(Reason.SHADOW_MODE, "The plan is only shown; set scaling.mode to Active to follow it.")
    if view.obstacle is not None:
        return false(view.obstacle.reason, "Scaling is stopped until the problem reported by Ready is solved.")
    if view.plan.constraint is Constraint.FALLBACK:
        return false(Reason.FALLBACK_APPLIED, "The lag cannot be read: onLagUnavailable.replicas is the minimum.")
    if not view.lag_is_known:
        return false(Reason.LAG_UNAVAILABLE, "The lag cannot be read: no worker is removed.")
    return true(Reason.PLAN_APPLIED, "The plan sets the number of workers; see status.plan.")


def _scaling_limited(view: PoolView) -> Verdict:
    if not view.lag_is_known:
        return unknown(Reason.LAG_UNAVAILABLE, "The lag is not known.")
    reason = _shortage(view) or _limit(view)
    if reason is not None:
        return true(reason, _limit_text(view, reason))
    return false(Reason.WITHIN_LIMITS, "The lag requires no more workers than the limits allow.")


def _shortage(view: PoolView) -> Reason | None:
    """Why required workers that were requested do not run; None when all run or will."""
    if view.plan.required_replicas <= _placed(view):
        return None
    if view.counts.gated or (view.deployment is not None and view.deployment.is_over_quota):
        return Reason.QUOTA_EXCEEDED
    return Reason.CAPACITY_SHORT if view.counts.unschedulable else None


def _placed(view: PoolView) -> int:
    """Workers that run or will run."""
    return view.counts.active - view.counts.unschedulable - view.counts.gated


def _limit(view: PoolView) -> Reason | None:
    """Why no more workers are requested; None when no more are required."""
    plan, maximum = view.plan, view.pool.spec.scaling.max_replicas
    if plan.constraint is Constraint.PARTITIONS:
        # More partitions alone would not help a pool at its maximum.
        return Reason.AT_MAX_REPLICAS if plan.required_replicas >= maximum else Reason.PARTITION_LIMIT
    if plan.required_replicas <= plan.replicas:
        return None
    return Reason.PAUSED if view.pool.spec.paused else _LIMIT_REASONS.get(plan.constraint)


def _limit_text(view: PoolView, reason: Reason) -> str:
    scaling = view.pool.spec.scaling
    # At most the maximum, so that the message does not change while the lag grows.
    required = min(view.plan.required_replicas, scaling.max_replicas)
    match reason:
        case Reason.AT_MAX_REPLICAS:
            return f"The lag requires more than scaling.maxReplicas ({scaling.max_replicas}) workers."
        case Reason.PARTITION_LIMIT:
            return (
                "The lag requires more workers than there are partitions with tasks;"
                " distribute the tasks over more partitions or add partitions."
            )
        case Reason.QUOTA_EXCEEDED:
            return f"The lag requires {required} workers, and the quota admits {_placed(view)}; raise the quota."
        case Reason.CAPACITY_SHORT:
            return f"The lag requires {required} workers, and nodes have room for {_placed(view)}; add GPU nodes."
        case Reason.RATE_LIMITED:
            return f"scaling.scaleUp.maxStepPods ({scaling.scale_up.max_step_pods}) limits how many are added at once."
        case _:
            return "The lag requires more workers, and the pool is paused; set spec.paused to false."


def _lag_available(view: PoolView) -> Verdict:
    if view.lag_is_known:
        return true(Reason.LAG_READ, "The lag of every lane is read.")
    if all(_is_settling(view, lane) for lane in view.stale_lanes) and view.stale_lanes:
        return unknown(Reason.LAG_UNAVAILABLE, "The topics are new and cannot be read yet.")
    for problem in view.problems:
        if problem.stops_reading:
            return false(problem.reason, f"The lag is not read: {problem.message}.")
    reason = Reason.FALLBACK_APPLIED if view.plan.constraint is Constraint.FALLBACK else Reason.LAG_UNAVAILABLE
    return false(reason, " ".join(_silence(lane) for lane in view.stale_lanes) or "No lane was read yet.")


def _is_settling(view: PoolView, lane: LaneObservation) -> bool:
    """Whether a lane was never read because its topic is new: its partitions have no leader for some seconds."""
    if lane.partitions:
        return False
    return view.topics_are_settling or (view.age < _SETTLE and _NO_LEADER in (lane.problem or ""))


def _silence(lane: LaneObservation) -> str:
    """How long a lane was not read, and why."""
    since = "was never read" if not lane.partitions else f"was not read for {duration_text(lane.age_seconds)}"
    return f"Lane {lane.name} {since}: {lane.problem or 'the brokers did not respond'}."


def _topics_ready(view: PoolView) -> Verdict:
    for problem in view.problems:
        if problem.reason is Reason.TOPICS_FAILED:
            return false(Reason.TOPICS_FAILED, problem.message)
    unread = [lane for lane in view.lanes if not lane.partitions]
    missing = [lane.target.topic for lane in unread if _UNKNOWN_TOPIC in (lane.problem or "")]
    if missing and not view.topics_are_settling:
        return false(
            Reason.TOPICS_MISSING,
            f"kafka.lanes: {', '.join(missing)} cannot be found; create the topics or set kafka.manageTopics,"
            " and grant the Kafka user DESCRIBE on them.",
        )
    if unread or not view.lanes:
        return unknown(Reason.LAG_UNAVAILABLE, "The topics could not be read yet.")
    partitions = sum(len(lane.partitions) for lane in view.lanes)
    maximum = view.pool.spec.scaling.max_replicas
    if partitions < maximum:
        return false(
            Reason.PARTITIONS_FEWER_THAN_REPLICAS,
            f"The topics have {partitions} partitions for up to {maximum} workers, and a worker without a partition is"
            " idle; add partitions or lower scaling.maxReplicas.",
        )
    return true(Reason.TOPICS_FOUND, f"The topics have {partitions} partitions for up to {maximum} workers.")


def _tasks_expired(view: PoolView) -> Verdict:
    expired = {lane.target.name: lane.expired_records_total for lane in view.lanes if lane.expired_records_total}
    if expired:
        counts = ", ".join(f"{count} of lane {name}" for name, count in expired.items())
        return true(
            Reason.RETENTION_PASSED,
            f"Topic retention deleted tasks before a worker consumed them, since the pool was created: {counts}."
            " Raise the topic's retention.ms or scaling.maxReplicas.",
        )
    if not any(lane.partitions for lane in view.lanes):
        return unknown(Reason.LAG_UNAVAILABLE, "The lag was never read.")
    return false(Reason.NO_OFFSETS_EXPIRED, "Topic retention deleted no task before a worker consumed it.")


def _offsets_retained(view: PoolView) -> Verdict:
    lanes = [lane for lane in view.lanes if lane.has_foreign_commits and lane.member_count == 0]
    if lanes and view.asleep_for >= _NEAR_EXPIRY:
        groups = ", ".join(f"{lane.target.consumer_group} (lane {lane.target.name})" for lane in lanes)
        return false(
            Reason.OFFSETS_MAY_EXPIRE,
            f"Offsets of consumer group {groups} were committed by a client that is not a worker, and the pool has had"
            f" no worker for {_NEAR_EXPIRY.days} days. Kafka deletes such offsets offsets.retention.minutes (7 days by"
            " default) after the last member left; all tasks that are still in the topic are then processed again."
            " Set scaling.minReplicas to 1 until a worker is ready: it commits the offsets again so that they are"
            " retained.",
        )
    if not any(lane.partitions for lane in view.lanes):
        return unknown(Reason.LAG_UNAVAILABLE, "The offsets were never read.")
    return true(Reason.OFFSETS_SAFE, "No committed offset is about to expire.")


def _log_append_time(view: PoolView) -> Verdict:
    topics = view.create_time_topics
    if topics is None:
        return unknown(
            Reason.TOPICS_UNREADABLE,
            "The configuration of the topics cannot be read; grant the Kafka user DESCRIBE_CONFIGS.",
        )
    if topics:
        likewise = f" The same applies to: {', '.join(topics[1:])}." if topics[1:] else ""
        return false(Reason.CREATE_TIME, f"{explain_create_time(topics[0])}.{likewise} kafka.manageTopics sets it.")
    return true(Reason.LOG_APPEND_TIME, "No task topic is known to use the timestamps of producers.")


def _images_signed(view: PoolView) -> Verdict:
    reference, found = view.pool.spec.image.provenance.signing_secret_ref, view.signing_certificate
    if reference is None:
        return false(
            Reason.SIGNING_OFF,
            "Image files are marked in XMP and not signed; name a Secret in image.provenance.signingSecretRef to sign"
            " them.",
        )
    if found is None:
        return false(
            Reason.SECRET_NOT_FOUND,
            f"image.provenance.signingSecretRef: Secret {reference.name} has no entry {reference.certificate_key};"
            " create it in the pool's namespace.",
        )
    if found.valid_from is None or found.valid_until is None:
        return false(
            Reason.SECRET_INVALID, f"The entry {found.entry} holds no PEM certificates; put the signer's there."
        )
    validity = f"valid from {found.valid_from:%Y-%m-%dT%H:%M:%SZ} to {found.valid_until:%Y-%m-%dT%H:%M:%SZ}"
    if not found.valid_from <= view.now <= found.valid_until:
        return false(
            Reason.CERTIFICATE_NOT_VALID,
            f"The certificate in {found.entry} is {validity}; workers keep their images until it is renewed.",
        )
    return true(Reason.CERTIFICATE_VALID, f"Image files are signed; the certificate in {found.entry} is {validity}.")
