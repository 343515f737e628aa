"""Who works on what, out of readings of Kafka; and how it is shown at 80 columns."""

from datetime import UTC, datetime

from fluxpool_cli.kafka.target import KafkaTarget
from fluxpool_cli.output import shown_lines
from fluxpool_cli.workers.reading import ServedLane, Worker, Workers, WorkerState, lanes_of, workers_of
from fluxpool_cli.workers.view import workers_result
from fluxpool_contract.kafka.connection import KafkaConnection
from fluxpool_contract.kafka.ledger import LedgerEntry, encode_ledger
from fluxpool_contract.kafka.worker_clients import worker_client_id
from fluxpool_contract.messages.pool_state import PoolLane, PoolState
from fluxpool_transport.lag.group_offsets import GroupMember
from fluxpool_transport.lag.lag_reader import GroupLag, PartitionLag, StalePartition
from kit.commands.every_form import WIDTH

NOW = datetime(2026, 4, 5, 10, 0, tzinfo=UTC)
STANDARD = ServedLane(pool="flux", name="standard", group="g", topic="tasks")
VIP = ServedLane(pool="flux", name="vip", group="g-vip", topic="vip")


def partition(number: int, *, committed: int, end: int, tasks: dict[int, LedgerEntry] | None = None) -> PartitionLag:
    return PartitionLag(
        partition=number,
        committed_offset=committed,
        log_start_offset=0,
        log_end_offset=end,
        metadata=encode_ledger(tasks or {}),
    )


def lag(
    lane: ServedLane,
    *partitions: PartitionLag | StalePartition,
    owned: dict[str, tuple[int, ...]],
    state: str = "Stable",
) -> GroupLag:
    members = tuple(
        GroupMember(
            member_id=f"member-{name}", client_id=worker_client_id(name.rstrip("*")), partitions={lane.topic: numbers}
        )
        for name, numbers in owned.items()
    )
    return GroupLag(
        group=lane.group,
        topic=lane.topic,
        partitions=partitions,
        member_count=len(members),
        state=state,
        members=members,
    )


def entry(task: str, worker: str, *, seconds: int = 12, crashes: int = 0) -> LedgerEntry:
    return LedgerEntry(task=task, worker=worker, started_at=int(NOW.timestamp()) - seconds, crashes=crashes)


def read(*lags: tuple[ServedLane, GroupLag]) -> dict[str, Worker]:
    found = workers_of([lane for lane, _ in lags], {lane.group: reading for lane, reading in lags})
    return {worker.name: worker for worker in found}


def test_a_worker_is_one_on_all_its_lanes_with_its_tasks_and_what_waits_for_it() -> None:
    standard = lag(
        STANDARD,
        partition(0, committed=5, end=9, tasks={5: entry("t-1", "a", seconds=40), 6: entry("t-2", "a", seconds=3)}),
        partition(1, committed=2, end=2),
        owned={"a": (0,), "b": (1,)},
    )
    vip = lag(VIP, partition(0, committed=0, end=4), owned={"a": (), "b": (), "c": (0,), "d": ()})
    found = read((STANDARD, standard), (VIP, vip))
    assert {name: worker.state for name, worker in found.items()} == {
        "a": WorkerState.BUSY,
        "b": WorkerState.IDLE,
        "c": WorkerState.TAKING,
        "d": WorkerState.SPARE,
    }
    busy = found["a"]
    assert (busy.partitions, busy.waiting) == ({"standard": [0], "vip": []}, 2)
    assert [(task.request_id, task.offset) for task in busy.tasks] == [("t-1", 5), ("t-2", 6)]
    assert found["c"].waiting == 4


def test_a_task_whose_worker_has_left_the_group_is_shown_with_it() -> None:
    left = lag(
        STANDARD, partition(0, committed=0, end=2, tasks={0: entry("t-1", "dead", crashes=1)}), owned={"b": (0,)}
    )
    found = read((STANDARD, left))
    assert (found["dead"].state, found["dead"].tasks[0].crashes) == (WorkerState.GONE, 1)
    # The next owner has not begun it.
    assert (found["b"].state, found["b"].waiting) == (WorkerState.TAKING, 1)


def test_a_task_that_was_given_up_in_good_order_is_nobodys() -> None:
    released = LedgerEntry(task="t-1", worker="dead", started_at=1, released=True)
    assert set(
        read((STANDARD, lag(STANDARD, partition(0, committed=0, end=1, tasks={0: released}), owned={"b": (0,)})))
    ) == {"b"}


def test_two_processes_with_one_name_are_told_apart() -> None:
    twins = lag(
        STANDARD, partition(0, committed=0, end=0), partition(1, committed=0, end=0), owned={"a": (0,), "a*": (1,)}
    )
    assert set(read((STANDARD, twins))) == {"member-a", "member-a*"}


def state(**changes: object) -> PoolState:
    return PoolState.model_validate(
        {
            "namespace": "images",
            "pool": "flux",
            "lanes": [{"name": "standard", "topic": "tasks", "consumer_group": "g"}],
            "desired_replicas": 5,
            "ready_replicas": 2,
            "starting_replicas": 3,
            "min_replicas": 0,
            "max_replicas": 8,
            "constraint": "lag",
            "reason": "The lag is 24.",
            "decided_at": NOW,
            **changes,
        }
    )


def test_lanes_are_those_of_the_pools_then_those_of_the_environment_and_no_group_twice() -> None:
    target = KafkaTarget(kafka=KafkaConnection(bootstrap_servers=("kafka:9092",)))
    named = PoolLane(name="main", topic=target.topics.tasks, consumer_group=target.consumer_group)
    pools = [state(lanes=[named.model_dump()]), state(pool="other")]
    found = [(lane.pool, lane.name, lane.group) for lane in lanes_of(target, pools)]
    assert found == [
        ("flux", "main", "flux-worker-group"),
        ("other", "standard", "g"),
        (None, "vip", "flux-worker-group-vip"),
    ]


def test_at_80_columns_the_task_is_whole_and_the_plan_of_the_pool_is_told() -> None:
    name, task = "flux-worker-6d9c7b5d8f-x2v5p", "0197f0c2-8d6e-7a3b-9c1d-2e4f6a8b0c2d"
    reading = lag(
        STANDARD,
        partition(0, committed=5, end=9, tasks={5: entry(task, name, crashes=1), 6: entry("t-2", name, seconds=1)}),
        owned={name: (0,)},
    )
    found = Workers(
        workers=workers_of([STANDARD], {"g": reading}),
        pools=(state(),),
        problems=("lane standard of flux: 1 of 2 partitions could not be read",),
    )
    result = workers_result(found, now=NOW)
    lines, hidden = shown_lines(result, width=WIDTH)
    assert all(len(line) <= WIDTH for line in lines), lines
    assert any(task in line for line in lines)
    assert "and 1 more, 1 crash before" in " ".join(" ".join(lines).split())
    assert lines[-2:] == ["1 worker: 1 busy", "flux: 2 of 5 ready, 3 starting; The lag is 24."]
    assert set(hidden) <= {"LANES", "PARTITIONS", "POOL", "WAITING"}
    [worker] = result.document["workers"]
    assert (worker["name"], worker["state"], worker["partitions"], worker["waiting"]) == (
        name,
        "busy",
        {"standard": [0]},
        2,
    )
    assert worker["tasks"][0]["running_seconds"] == 12
    assert result.document["pools"][0]["desired"] == 5
    assert result.names == [name]
    assert [*result.notes] == result.document["problems"]
