"""Cancel commands of the control topic reach the tasks in progress; estimates of the time of a denoising step."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.task import Quality
from fluxpool_transport.kafka.undecodable_records import lost_records
from fluxpool_worker.agent.engine.job import MAX_SIZES, RECENT, StepTimes, TaskSize
from fluxpool_worker.agent.task.cancellations import KEPT_FOR, Cancellations, TaskName

NOON = datetime(2026, 4, 5, 12, tzinfo=UTC)
TASK = TaskName(tenant="default", request_id="r", epoch=0)


def record_of(value: bytes | None, headers: list[tuple[str, bytes]] | None = None) -> ConsumerRecord:
    return ConsumerRecord(
        topic="control",
        partition=0,
        offset=7,
        timestamp=0,
        timestamp_type=0,
        key=b"r",
        value=value,
        checksum=None,
        serialized_key_size=1,
        serialized_value_size=len(value or b""),
        headers=headers or [],
    )


def command(request_id: str = "r", *, at: datetime = NOON, waiting_only: bool = False) -> bytes:
    command = CancelCommand(request_id=request_id, at=at, requested_by="ops", waiting_only=waiting_only)
    return command.model_dump_json().encode()


def known(cancellations: Cancellations, task: TaskName = TASK) -> bool:
    with cancellations.watch(task) as watch:
        return watch.command is not None


@pytest.fixture
def cancellations() -> Cancellations:
    return Cancellations(clock=lambda: NOON)


def test_a_command_that_comes_before_its_task_is_kept(cancellations: Cancellations) -> None:
    assert not known(cancellations)
    cancellations.learn(record_of(command()))
    assert known(cancellations)


def test_a_task_in_progress_is_notified_once(cancellations: Cancellations) -> None:
    notified: list[str] = []
    with cancellations.watch(TASK) as watch, cancellations.watch(TASK) as copy:
        watch.on_cancel = lambda: notified.append("first")
        copy.on_cancel = lambda: notified.append("second")
        cancellations.learn(record_of(command("another")))
        assert notified == []
        cancellations.learn(record_of(command()))
        cancellations.learn(record_of(command()))
        assert watch.command is not None
        assert watch.command.requested_by == "ops"
    assert sorted(notified) == ["first", "second"]


@pytest.mark.parametrize(
    ("headers", "task"),
    [
        ([("fluxpool-tenant", b"acme")], TaskName(tenant="acme", request_id="r", epoch=0)),
        ([("fluxpool-epoch", b"2")], TaskName(tenant="default", request_id="r", epoch=2)),
    ],
)
def test_a_command_means_one_tenants_task_and_one_replay(
    cancellations: Cancellations, headers: list[tuple[str, bytes]], task: TaskName
) -> None:
    cancellations.learn(record_of(command(), headers))
    assert known(cancellations, task)
    assert not known(cancellations)


def test_a_command_for_waiting_tasks_reaches_one_that_a_worker_has_and_no_engine(cancellations: Cancellations) -> None:
    notified: list[str] = []
    with cancellations.watch(TASK) as watch:
        watch.on_cancel = lambda: notified.append("canceled")
        cancellations.learn(record_of(command(waiting_only=True)))
        assert notified == ["canceled"]
        assert watch.command is not None


def test_a_command_for_waiting_tasks_spares_one_that_has_begun_until_it_waits_again(
    cancellations: Cancellations,
) -> None:
    notified: list[str] = []
    with cancellations.watch(TASK) as watch:
        watch.on_cancel = lambda: notified.append("canceled")
        watch.begun = True
        cancellations.learn(record_of(command(waiting_only=True)))
        assert (notified, watch.command) == ([], None)
        cancellations.learn(record_of(command()))
        assert notified == ["canceled"]
    cancellations.learn(record_of(command(waiting_only=True)))
    assert known(cancellations)


def test_a_command_can_be_withdrawn(cancellations: Cancellations) -> None:
    cancellations.learn(record_of(command()))
    cancellations.learn(record_of(None))
    assert not known(cancellations)
    cancellations.learn(record_of(None))


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (b"\xff not json", []),
        (b'{"request_id": "r"}', []),
        (b"[]", []),
        (command(), [("fluxpool-epoch", b"first")]),
    ],
    ids=["garbage", "incomplete", "list", "header"],
)
def test_records_that_are_no_commands_are_ignored(
    cancellations: Cancellations, value: bytes, headers: list[tuple[str, bytes]]
) -> None:
    cancellations.learn(record_of(value, headers))
    assert len(cancellations) == 0


def test_undecodable_records_withdraw_no_command(cancellations: Cancellations) -> None:
    cancellations.learn(record_of(command()))
    cancellations.learn(lost_records(TopicPartition("control", 0), first=8, last=9, problem="its CRC is wrong"))
    assert known(cancellations)


def test_old_commands_are_forgotten() -> None:
    now = [NOON]
    cancellations = Cancellations(clock=lambda: now[0])
    cancellations.learn(record_of(command("old", at=NOON - KEPT_FOR - timedelta(seconds=1))))
    assert len(cancellations) == 0
    cancellations.learn(record_of(command("first")))
    now[0] += KEPT_FOR + timedelta(seconds=1)
    cancellations.learn(record_of(command("second", at=now[0])))
    assert len(cancellations) == 1


SMALL, LARGE = TaskSize(64, Quality.EXACT), TaskSize(128, Quality.EXACT)


def test_the_estimate_of_a_step_is_the_fastest_recent_one_of_the_same_size() -> None:
    times = StepTimes()
    assert times.least_seconds(size=SMALL, steps=50) == 0
    times.learn(size=SMALL, steps=10, seconds=20)
    times.learn(size=SMALL, steps=10, seconds=5)
    times.learn(size=SMALL, steps=10, seconds=30)
    assert times.least_seconds(size=SMALL, steps=50) == pytest.approx(25)
    assert times.least_seconds(size=LARGE, steps=50) == 0
    assert times.least_seconds(size=replace(SMALL, quality=Quality.FAST), steps=50) == 0
    for _ in range(RECENT):
        times.learn(size=SMALL, steps=10, seconds=10)
    assert times.least_seconds(size=SMALL, steps=50) == pytest.approx(50)
    for size in range(MAX_SIZES):
        times.learn(size=TaskSize(1000 + size, Quality.EXACT), steps=1, seconds=1)
    assert times.least_seconds(size=SMALL, steps=50) == 0
