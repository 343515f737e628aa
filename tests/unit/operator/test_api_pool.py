"""What the operator reads from a pool: defaults, validation errors, and only the fields that it knows."""

import pytest

from fluxpool_operator.api import FluxWorkerPool, InvalidPoolError, ScalingMode, scaling_config
from fluxpool_operator.planning import ScalingConfig
from kit.scaling.pool_refusals import RULE_REFUSALS, SCHEMA_REFUSALS, Refusal
from kit.scaling.pools import ACCEPTED, FULL_SPEC, edited, pool_body

# Rules that a schema can express; the API server checks types, names and duplicates.
_OF_THE_MODEL = [refusal for refusal in (*RULE_REFUSALS, *SCHEMA_REFUSALS) if refusal.by_model]


def _refused(body: dict[str, object]) -> str:
    with pytest.raises(InvalidPoolError) as caught:
        FluxWorkerPool.parse(body)
    return str(caught.value)


def test_a_minimal_pool_has_every_default() -> None:
    pool = FluxWorkerPool.parse(pool_body())
    spec = pool.spec
    assert (pool.namespace, pool.name) == ("images", "standard")
    assert (spec.replicas, spec.paused, spec.scaling.mode) == (1, False, ScalingMode.ACTIVE)
    assert spec.model.id == "black-forest-labs/FLUX.1-dev"
    assert spec.model.cache.empty_dir is not None
    assert [(lane.name, lane.topic) for lane in spec.kafka.lanes] == [("standard", "flux-generation-tasks")]
    assert (spec.kafka.consumer_group, spec.kafka.manage_topics) == ("flux-worker-group", False)
    assert (spec.scaling.min_replicas, spec.scaling.target_lag_per_replica) == (0, 5)
    assert (spec.worker.gpu.resource_name, spec.worker.gpu.count) == ("nvidia.com/gpu", 1)
    assert (spec.retry.max_attempts, spec.disruption.max_unavailable, spec.pod_monitor) == (3, 1, None)
    assert pool.status.conditions == ()


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_pool_can_be_read(name: str) -> None:
    assert FluxWorkerPool.parse(ACCEPTED[name]).spec.worker.image


def test_a_parsed_pool_can_be_written_again() -> None:
    pool = FluxWorkerPool.parse(pool_body(FULL_SPEC))
    again = FluxWorkerPool.parse({"metadata": pool.metadata.to_manifest(), "spec": pool.spec.to_manifest()})
    assert again == pool


@pytest.mark.parametrize("refusal", _OF_THE_MODEL, ids=lambda refusal: refusal.name)
def test_the_model_rejects_one_invalid_field(refusal: Refusal) -> None:
    message = _refused(edited(pool_body(), refusal.edits))
    field = refusal.message.partition(":")[0].removeprefix("spec.")
    assert message.startswith("spec.")
    assert field in message or refusal.message in message


def test_every_invalid_field_is_named() -> None:
    message = _refused(edited(pool_body(), {"scaling": {}, "kafka.bootstrapServers": ["kafka"], "worker": {}}))
    assert "spec.scaling.maxReplicas: is required" in message
    assert "spec.kafka.bootstrapServers.0: bootstrapServers: each must have the form host:port" in message
    assert "spec.worker.image: is required" in message


@pytest.mark.parametrize("server", ["kafka", "kafka:", ":9092", "kafka:0", "kafka:65536", "kafka:9092\n", "a b:1"])
def test_an_address_needs_host_and_port(server: str) -> None:
    assert "host:port" in _refused(edited(pool_body(), {"kafka.bootstrapServers": [server]}))


@pytest.mark.parametrize("server", ["kafka:1", "10.0.0.1:65535", "[::1]:9092", "kafka-0.kafka.eu_1.svc:9092"])
def test_an_address_may_be_a_name_or_a_number(server: str) -> None:
    pool = FluxWorkerPool.parse(edited(pool_body(), {"kafka.bootstrapServers": [server]}))
    assert pool.spec.kafka.bootstrap_servers == (server,)


def test_fields_of_a_newer_definition_do_not_stop_an_older_operator() -> None:
    body = edited(pool_body(), {"scaling.waitTargetSeconds": 30, "status": {"novel": 1}})
    assert FluxWorkerPool.parse(body) == FluxWorkerPool.parse(pool_body())


def test_a_status_of_another_version_leaves_the_pool_readable() -> None:
    """Conditions and plans with unknown words are dropped, the others kept."""
    known = {"status": "True", "message": "m", "lastTransitionTime": "2026-05-04T12:00:00Z"}
    status = {
        "lag": 3,
        "inFlight": 2,
        "conditions": [
            known | {"type": "Ready", "reason": "Ready"},
            known | {"type": "OffsetsKept", "reason": "OffsetsStay"},
            known | {"type": "OffsetsRetained", "reason": "OffsetsStay"},
        ],
        "plan": {"need": 1, "replicas": 1, "constraint": "novel", "reason": "r"},
    }
    parsed = FluxWorkerPool.parse(edited(pool_body(), {".status": status})).status
    assert [condition.type for condition in parsed.conditions] == ["Ready"]
    assert (parsed.pending, parsed.in_flight, parsed.plan) == (None, 2, None)


def test_a_quantity_is_a_number_or_a_text() -> None:
    for quantity in (0, 2, "2Gi", "1.5", "500m", "1e9"):
        FluxWorkerPool.parse(edited(pool_body(), {"worker.sharedMemorySize": quantity}))
    for quantity in (-1, "-1", "Gi", "1 Gi", "1GB", ""):
        assert "sharedMemorySize" in _refused(edited(pool_body(), {"worker.sharedMemorySize": quantity}))


def test_the_plan_gets_the_limits_of_the_pool() -> None:
    pool = FluxWorkerPool.parse(edited(pool_body(FULL_SPEC), {"paused": True}))
    assert scaling_config(pool.spec) == ScalingConfig(
        min_replicas=1,
        max_replicas=12,
        target_lag_per_replica=8,
        activation_lag_records=2,
        idle_grace_seconds=600,
        scale_up_window_seconds=5,
        scale_up_step_replicas=4,
        scale_up_period_seconds=60,
        cool_down_seconds=90,
        scale_down_step_replicas=1,
        scale_down_period_seconds=30,
        stale_after_seconds=45,
        fallback_replicas=3,
        paused=True,
    )


def test_the_policy_hold_has_no_fallback() -> None:
    assert scaling_config(FluxWorkerPool.parse(pool_body()).spec).fallback_replicas is None


def test_the_time_of_creation_is_read_as_it_is_written() -> None:
    body = edited(pool_body(), {".metadata.creationTimestamp": "2026-05-04T12:00:00Z"})
    assert FluxWorkerPool.parse(body).metadata.creation_timestamp == "2026-05-04T12:00:00Z"
    assert FluxWorkerPool.parse(pool_body()).metadata.creation_timestamp == ""


def test_limits_that_contradict_each_other_are_refused_without_the_server_too() -> None:
    pool = FluxWorkerPool.parse(edited(pool_body(), {"scaling.minReplicas": 7}))
    with pytest.raises(InvalidPoolError, match=r"spec\.scaling: min_replicas: 7 is above max_replicas"):
        scaling_config(pool.spec)


@pytest.mark.parametrize(("mode", "follows"), [("Active", True), ("Shadow", False), ("Manual", False)])
def test_only_an_active_pool_follows_the_plan(mode: str, follows: bool) -> None:
    assert ScalingMode(mode).follows_plan is follows


def test_pools_share_the_parts_in_which_they_are_equal_and_no_others() -> None:
    body = pool_body(FULL_SPEC)
    pool, twin = FluxWorkerPool.parse(body), FluxWorkerPool.parse(body)
    other = FluxWorkerPool.parse(edited(body, {"scaling.maxReplicas": 77}))
    assert pool == twin
    assert pool.spec is twin.spec
    assert other.spec.worker is pool.spec.worker
    assert other.spec.scaling.scale_up is pool.spec.scaling.scale_up
    assert (pool.spec.scaling.max_replicas, other.spec.scaling.max_replicas) == (
        FULL_SPEC["scaling"]["maxReplicas"],
        77,
    )
