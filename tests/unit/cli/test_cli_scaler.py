"""How local mode scales by the lag, and the settings of its parts."""

from pathlib import Path

import pytest

from fluxpool_cli.kafka.target import find_target
from fluxpool_cli.local.data_dir import DataDir
from fluxpool_cli.local.options import StackOptions
from fluxpool_cli.local.stack_parts import PartSettings
from fluxpool_cli.local.workers.fleet import WorkerFleet
from fluxpool_cli.local.workers.scaler import FleetScaler
from fluxpool_operator.backlog.observation import LaneTarget
from fluxpool_operator.backlog.reading import LaneReading
from fluxpool_operator.planning import ScalingConfig
from fluxpool_transport.lag.lag_reader import PartitionLag

LANE = LaneTarget(name="standard", topic="flux-tasks", consumer_group="flux-worker-group")


def reading(*, committed: int, start: int, end: int) -> LaneReading:
    """A reading of a lane with one partition."""
    partition = PartitionLag(
        partition=0, committed_offset=committed, log_start_offset=start, log_end_offset=end, metadata=""
    )
    return LaneReading(target=LANE, partitions=(partition,))


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def scaler(reports: list[str], tmp_path: Path) -> FleetScaler:
    """A scaler whose fleet has no worker and starts none."""
    fleet = WorkerFleet(
        environment=lambda _name, _port: {}, log_dir=tmp_path, drain_grace_seconds=1, report=reports.append
    )
    config = ScalingConfig(max_replicas=3, target_lag_per_replica=5)
    return FleetScaler(targets=(LANE,), config=config, fleet=fleet, report=reports.append, on_round=lambda: None)


def test_tasks_that_retention_deleted_are_counted_and_reported_once(scaler: FleetScaler, reports: list[str]) -> None:
    scaler.decide([reading(committed=10, start=10, end=12)], now_seconds=1.0)
    scaler.decide([reading(committed=10, start=13, end=16)], now_seconds=2.0)
    scaler.decide([reading(committed=10, start=13, end=16)], now_seconds=3.0)
    told = [line for line in reports if "retention" in line]
    sentence = (
        "topic retention deleted 3 tasks of lane standard before a worker consumed them; "
        "raise the topic's retention.ms or --max-workers"
    )
    assert told == [sentence]
    assert [lane.expired_records for lane in scaler.lane_states()] == [3]


def test_a_reading_without_the_commit_does_not_change_the_number_of_workers(scaler: FleetScaler) -> None:
    assert scaler.decide([reading(committed=0, start=0, end=10)], now_seconds=1.0).replicas == 1
    assert scaler.decide([LaneReading(target=LANE, problem="coordinator loading")], now_seconds=2.0).replicas == 1
    assert [lane.lag_records for lane in scaler.lane_states()] == [10]


def test_gateway_and_workers_use_the_topics_that_the_environment_names(tmp_path: Path) -> None:
    environment = {"FLUXPOOL_TOPICS_TASKS": "own-tasks", "FLUXPOOL_TOPICS_RESULTS": "own-results"}
    target = find_target("127.0.0.1:9092", tmp_path, environment)
    options = StackOptions(data_dir=tmp_path)
    parts = PartSettings(data_dir=DataDir(tmp_path), target=target, gateway_port=8000, options=options)
    settings = parts.worker_settings()
    assert {settings.group_of(lane): lane.topic for lane in settings.lanes} == {
        "flux-worker-group-vip": "flux-generation-tasks-vip",
        "flux-worker-group": "own-tasks",
    }
    assert settings.topics.results == "own-results"
    for of_part in (parts.gateway_environment(), parts.worker_environment("worker-1", 8001)):
        assert of_part["FLUXPOOL_TOPICS_RESULTS"] == "own-results"


def test_workers_offer_the_loras_of_the_folder_that_up_names(tmp_path: Path) -> None:
    target = find_target("127.0.0.1:9092", tmp_path, {})
    options = StackOptions(data_dir=tmp_path, lora_folder=tmp_path / "loras")
    parts = PartSettings(data_dir=DataDir(tmp_path), target=target, gateway_port=8000, options=options)
    assert parts.worker_environment("worker-1", 8001)["FLUXPOOL_MODEL_LORA_FOLDER"] == str(tmp_path / "loras")
