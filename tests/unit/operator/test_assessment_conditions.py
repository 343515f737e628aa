"""The conditions of a pool, cause by cause; those about its Kafka are in `test_assessment_kafka_conditions`."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fluxpool_contract.settings.worker import EXIT_MODEL_LOAD_FAILED
from fluxpool_operator.api import ConditionStatus, ConditionType, Reason
from fluxpool_operator.assessment import PoolProblem, PoolView, SigningCertificate, assess
from fluxpool_operator.planning import Constraint
from fluxpool_operator.workload import PodStage
from fluxpool_operator.workload.pods import ContainerExit
from kit.scaling.pool_views import (
    GENERATION,
    NOON,
    condition_of,
    decision,
    deployment,
    lane,
    later,
    pod,
    pods,
    pool,
    view,
)

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
QUOTA = 'pods "standard-worker-1" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=1'


def short(others: tuple[Any, ...], *, ready: int = 1, **fields: Any) -> PoolView:
    """A pool of three, of which not all are ready."""
    return view(3, pods=pods(ready, *others), deployment=deployment(3, ready=ready, **fields))


def stuck(name: str, reason: str, message: str = "", **fields: Any) -> Any:
    return pod(name, PodStage.STARTING, waiting_reason=reason, waiting_message=message or None, **fields)


LOAD_FAILED = ContainerExit(EXIT_MODEL_LOAD_FAILED, "Error", "model '/models/flux': there is no such folder")
UNSCHEDULABLE = (
    pod("a", PodStage.UNSCHEDULABLE, unschedulable_message=NO_GPU),
    pod("b", PodStage.UNSCHEDULABLE, unschedulable_message=NO_GPU),
)


@pytest.mark.parametrize(
    ("seen", "status", "reason", "words"),
    [
        (view(3), TRUE, Reason.READY, "3 workers are ready."),
        (view(1), TRUE, Reason.READY, "1 worker is ready."),
        (view(0), TRUE, Reason.READY, "The pool is scaled to zero"),
        (
            view(2, problems=(PoolProblem(reason=Reason.SECRET_NOT_FOUND, message="missing: hub/token"),)),
            FALSE,
            Reason.SECRET_NOT_FOUND,
            "missing: hub/token.",
        ),
        (
            view(
                2,
                problems=(
                    PoolProblem(reason=Reason.GROUP_CONFLICT, message="pool b reads it"),
                    PoolProblem(reason=Reason.TOPICS_FAILED, message="no right"),
                ),
            ),
            FALSE,
            Reason.GROUP_CONFLICT,
            "pool b reads it. no right.",
        ),
        (view(2, deployment=None, pods=()), FALSE, Reason.CHILD_FAILED, "The Deployment does not exist"),
        (view(0, deployment=None, pods=(), pool=pool(paused=True)), FALSE, Reason.PAUSED, "set paused to false"),
        (
            short((), replica_failure=("FailedCreate", QUOTA)),
            FALSE,
            Reason.QUOTA_EXCEEDED,
            f"Kubernetes refuses to create pods: {QUOTA}.",
        ),
        (
            short((), replica_failure=("FailedCreate", "violates PodSecurity restricted: hostPath volumes")),
            FALSE,
            Reason.CHILD_FAILED,
            "violates PodSecurity restricted: hostPath volumes.",
        ),
        (
            short((stuck("a", "CrashLoopBackOff", restarts=4, last_exit=ContainerExit(137, "OOMKilled")),)),
            FALSE,
            Reason.WORKER_CRASH_LOOPING,
            "1 of 3 workers are ready. a: the worker crashes repeatedly (exit code 137, OOMKilled)",
        ),
        (
            short((pod("a", PodStage.STARTING, restarts=2, last_exit=ContainerExit(1, "Error")),)),
            FALSE,
            Reason.WORKER_CRASH_LOOPING,
            "exit code 1, Error",
        ),
        (
            short((pod("a", PodStage.STARTING, restarts=1, last_exit=ContainerExit(1, "Error")),)),
            FALSE,
            Reason.WORKERS_LOADING,
            "1 starting.",
        ),
        (
            short((pod("a", PodStage.STARTING, last_exit=LOAD_FAILED),)),
            FALSE,
            Reason.WORKERS_LOADING,
            "1 starting.",
        ),
        (
            short((pod("a", PodStage.STARTING, restarts=2, last_exit=replace(LOAD_FAILED, count=2)),)),
            FALSE,
            Reason.MODEL_LOAD_FAILED,
            "a: the model cannot be loaded: model '/models/flux': there is no such folder.",
        ),
        (
            short((pod("a", PodStage.STARTING, last_exit=LOAD_FAILED), stuck("b", "X", last_exit=LOAD_FAILED))),
            FALSE,
            Reason.MODEL_LOAD_FAILED,
            "a, b: the model cannot be loaded",
        ),
        (
            short((stuck("a", "CrashLoopBackOff", last_exit=ContainerExit(1, "Error", "no topic x", 3)),)),
            FALSE,
            Reason.WORKER_CRASH_LOOPING,
            "exit code 1, Error: no topic x",
        ),
        (
            short((stuck("b", "ImagePullBackOff", "not found"), stuck("a", "ErrImagePull", "not found"))),
            FALSE,
            Reason.IMAGE_PULL_FAILED,
            "worker.image: a (2 pods): ErrImagePull: not found.",
        ),
        (
            short((stuck("a", "CreateContainerConfigError", 'secret "hub" not found'),)),
            FALSE,
            Reason.SECRET_NOT_FOUND,
            'a: CreateContainerConfigError: secret "hub" not found.',
        ),
        (
            short((stuck("a", "CreateContainerError", "no such device"),)),
            FALSE,
            Reason.CONTAINER_FAILED,
            "no such device",
        ),
        (short((stuck("a", "ContainerCreating"),)), FALSE, Reason.WORKERS_LOADING, "1 of 3 workers are ready."),
        (short(UNSCHEDULABLE), FALSE, Reason.PODS_UNSCHEDULABLE, f"2 unschedulable: {NO_GPU}"),
        (
            short((*UNSCHEDULABLE, pod("x", PodStage.TERMINATING), pod("y", PodStage.TERMINATING))),
            FALSE,
            Reason.WAITING_FOR_GPU,
            "2 waiting for the GPUs of 2 terminating workers",
        ),
        (
            short((pod("a", PodStage.GATED, unschedulable_message="Scheduling is blocked"),)),
            FALSE,
            Reason.PODS_GATED,
            "1 gated: Scheduling is blocked.",
        ),
        (short((pod("a", PodStage.NOT_READY),)), FALSE, Reason.WORKERS_NOT_READY, "1 running but not ready"),
        (short(()), FALSE, Reason.WORKERS_LOADING, "The other pods are being created."),
        (
            short(
                (pod("a", PodStage.STARTING),),
                progressing=("ProgressDeadlineExceeded", "has timed out progressing"),
            ),
            FALSE,
            Reason.WORKERS_LOADING,
            "1 starting. has timed out progressing.",
        ),
        (
            view(3, deployment=deployment(3, updated=1)),
            FALSE,
            Reason.ROLLING_OUT,
            "1 of 3 workers have the current template.",
        ),
        (view(3, template_hash="newer"), FALSE, Reason.ROLLING_OUT, "current template"),
        (view(3, deployment=deployment(3, observed_generation=6)), FALSE, Reason.ROLLING_OUT, "current template"),
        (view(3, template_hash="newer", pool=pool(paused=True)), TRUE, Reason.READY, "3 workers are ready."),
        (
            view(
                3,
                deployment=deployment(
                    3, foreign_template_managers=("kubectl", "mesh"), foreign_template_fields=tuple("abcdefg")
                ),
            ),
            TRUE,
            Reason.FOREIGN_FIELDS,
            "has fields of kubectl, mesh; remove them there: a, b, c, d, e and 2 more.",
        ),
    ],
)
def test_ready_reports_the_first_cause(seen: PoolView, status: ConditionStatus, reason: Reason, words: str) -> None:
    condition = condition_of(seen, ConditionType.READY)
    assert (condition.status, condition.reason) == (status, reason)
    assert words in condition.message


def test_a_new_number_of_workers_does_not_end_readiness_before_it_is_observed() -> None:
    ready = view(3)
    fewer = later(
        ready,
        assess(ready),
        desired_replicas=2,
        deployment=deployment(3, spec_replicas=2, generation=8),
        template_hash=ready.template_hash,
    )
    assert condition_of(fewer, ConditionType.READY).status is TRUE
    changed = replace(fewer, template_hash="newer", deployment=deployment(3, generation=8, template_hash="newer"))
    status = assess(changed)
    assert condition_of(changed, ConditionType.READY).status is FALSE
    still = later(changed, status)
    assert condition_of(still, ConditionType.READY).status is FALSE


@pytest.mark.parametrize(
    ("seen", "status", "reason"),
    [
        (view(), TRUE, Reason.PLAN_APPLIED),
        (view(pool=pool(paused=True)), FALSE, Reason.PAUSED),
        (view(pool=pool(scaling__mode="Manual")), FALSE, Reason.MANUAL_MODE),
        (view(pool=pool(scaling__mode="Shadow")), FALSE, Reason.SHADOW_MODE),
        (view(problems=(PoolProblem(reason=Reason.FOREIGN_CHILD, message="taken"),)), FALSE, Reason.FOREIGN_CHILD),
        (view(lanes=(lane(age_seconds=99),)), FALSE, Reason.LAG_UNAVAILABLE),
        (
            view(lanes=(lane(age_seconds=99),), plan=decision(2, constraint=Constraint.FALLBACK)),
            FALSE,
            Reason.FALLBACK_APPLIED,
        ),
    ],
)
def test_scaling_is_active_when_the_plan_sets_the_number(
    seen: PoolView, status: ConditionStatus, reason: Reason
) -> None:
    condition = condition_of(seen, ConditionType.SCALING_ACTIVE)
    assert (condition.status, condition.reason) == (status, reason)


@pytest.mark.parametrize(
    ("seen", "status", "reason"),
    [
        (view(), FALSE, Reason.WITHIN_LIMITS),
        (view(6, plan=decision(6, constraint=Constraint.MAXIMUM, required=9)), TRUE, Reason.AT_MAX_REPLICAS),
        (view(6, plan=decision(6, constraint=Constraint.MAXIMUM, required=0)), FALSE, Reason.WITHIN_LIMITS),
        (view(2, plan=decision(2, constraint=Constraint.PARTITIONS)), TRUE, Reason.PARTITION_LIMIT),
        (view(2, plan=decision(2, constraint=Constraint.QUOTA, required=4)), TRUE, Reason.QUOTA_EXCEEDED),
        (view(2, plan=decision(2, constraint=Constraint.CAPACITY, required=4)), TRUE, Reason.CAPACITY_SHORT),
        (view(2, plan=decision(2, constraint=Constraint.RATE, required=4)), TRUE, Reason.RATE_LIMITED),
        (view(2, plan=decision(2, constraint=Constraint.RATE, required=0)), FALSE, Reason.WITHIN_LIMITS),
        (view(2, plan=decision(2, constraint=Constraint.HOLD, required=0)), FALSE, Reason.WITHIN_LIMITS),
        (short(UNSCHEDULABLE), TRUE, Reason.CAPACITY_SHORT),
        (
            replace(short(UNSCHEDULABLE), plan=decision(3, constraint=Constraint.HOLD, required=1)),
            FALSE,
            Reason.WITHIN_LIMITS,
        ),
        (short((pod("a", PodStage.GATED),)), TRUE, Reason.QUOTA_EXCEEDED),
        (short((), replica_failure=("FailedCreate", QUOTA)), TRUE, Reason.QUOTA_EXCEEDED),
        (view(6, plan=decision(6, constraint=Constraint.PARTITIONS)), TRUE, Reason.AT_MAX_REPLICAS),
        (short((pod("a", PodStage.STARTING),)), FALSE, Reason.WITHIN_LIMITS),
        (
            view(2, pool=pool(paused=True), plan=decision(2, constraint=Constraint.PAUSED, required=5)),
            TRUE,
            Reason.PAUSED,
        ),
        (view(lanes=(lane(age_seconds=99),)), UNKNOWN, Reason.LAG_UNAVAILABLE),
    ],
)
def test_scaling_is_limited_when_the_lag_requires_more(seen: PoolView, status: ConditionStatus, reason: Reason) -> None:
    condition = condition_of(seen, ConditionType.SCALING_LIMITED)
    assert (condition.status, condition.reason) == (status, reason)


def test_the_message_of_a_shortage_does_not_change_while_the_lag_grows() -> None:
    crowded = replace(short(UNSCHEDULABLE), plan=decision(3, required=90, constraint=Constraint.MAXIMUM))
    condition = condition_of(crowded, ConditionType.SCALING_LIMITED)
    assert condition.message == "The lag requires 6 workers, and nodes have room for 1; add GPU nodes."


def test_every_condition_has_this_generation_and_a_fixed_order() -> None:
    conditions = assess(view()).conditions
    assert [condition.type for condition in conditions] == list(ConditionType)
    assert {condition.observed_generation for condition in conditions} == {GENERATION}
    assert all(condition.message.endswith(".") for condition in conditions)


def test_an_unchanged_condition_keeps_its_transition_time() -> None:
    first = view(3)
    status = assess(first)
    again = later(first, status, 60, deployment=deployment(3, ready=2), pods=pods(2))
    times = {condition.type: condition.last_transition_time for condition in assess(again).conditions}
    assert times.pop(ConditionType.READY) == NOON + timedelta(seconds=60)
    assert set(times.values()) == {NOON}


def test_a_problem_that_does_not_stop_scaling_leaves_scaling_active() -> None:
    secret = PoolProblem(reason=Reason.SECRET_NOT_FOUND, message="missing: hub/token", stops_scaling=False)
    seen = view(2, problems=(secret,))
    assert condition_of(seen, ConditionType.READY).status is FALSE
    assert condition_of(seen, ConditionType.SCALING_ACTIVE).status is TRUE


SIGNED: dict[str, Any] = {"image__provenance": {"signingSecretRef": {"name": "image-signer"}}}
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("edits", "validity", "status", "reason", "words"),
    [
        ({}, None, FALSE, Reason.SIGNING_OFF, "name a Secret in image.provenance.signingSecretRef"),
        (SIGNED, None, FALSE, Reason.SECRET_NOT_FOUND, "Secret image-signer has no entry tls.crt; create it"),
        (SIGNED, (None, None), FALSE, Reason.SECRET_INVALID, "image-signer/tls.crt holds no PEM certificates"),
        (SIGNED, (-HOUR, HOUR), TRUE, Reason.CERTIFICATE_VALID, "to 2026-05-04T13:00:00Z"),
        (SIGNED, (-2 * HOUR, -HOUR), FALSE, Reason.CERTIFICATE_NOT_VALID, "to 2026-05-04T11:00:00Z; workers keep"),
        (SIGNED, (HOUR, 2 * HOUR), FALSE, Reason.CERTIFICATE_NOT_VALID, "valid from 2026-05-04T13:00:00Z"),
    ],
)
def test_the_condition_says_whether_images_are_signed(
    edits: dict[str, Any],
    validity: tuple[timedelta | None, timedelta | None] | None,
    status: ConditionStatus,
    reason: Reason,
    words: str,
) -> None:
    certificate = None
    if validity is not None:
        valid_from, valid_until = (None if moment is None else NOON + moment for moment in validity)
        certificate = SigningCertificate(entry="image-signer/tls.crt", valid_from=valid_from, valid_until=valid_until)
    seen = view(pool=pool(**edits), signing_certificate=certificate)
    condition = condition_of(seen, ConditionType.IMAGES_SIGNED)
    assert (condition.status, condition.reason) == (status, reason)
    assert words in condition.message
