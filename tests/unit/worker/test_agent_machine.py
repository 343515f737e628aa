"""The agent's core under random interleavings, and rare interleavings one by one.

`kit.models.agent_machine` defines the machine, its rules and its invariants.
"""

from collections.abc import Iterator

import pytest
from aiokafka import TopicPartition
from hypothesis import HealthCheck, settings

from fluxpool_worker.agent.task.publisher import OutgoingRecord
from kit.models.agent_machine import CALM_SECONDS, PARTITIONS, TOPIC, AgentMachine
from kit.models.modelled_kafka import LinkState


@pytest.fixture
def machine() -> Iterator[AgentMachine]:
    machine = AgentMachine()
    machine.begin(pods=1, records=3)
    yield machine
    machine.teardown()


def test_a_fenced_member_does_not_lower_the_offset_of_an_empty_group(machine: AgentMachine) -> None:
    thrown_out = machine.pods["pod-a"]
    thrown_out.begin()
    machine.loop.run_for()
    machine.may_have_crashed(thrown_out)
    machine.group.remove(thrown_out.consumers[-1])
    machine.start("pod-b")
    other = machine.pods["pod-b"]
    other.begin()
    machine.loop.run_for()
    other.engine.finish()
    machine.loop.run_for()
    machine.kill(other, deliver=True)
    machine.group.remove(other.consumers[-1])
    assert machine.group.committed_offset(TopicPartition(TOPIC, 0)) == 1
    machine.group.heartbeat(thrown_out.consumers[-1])
    machine.loop.run_for(CALM_SECONDS)
    machine.nothing_failed()
    assert machine.group.committed_offset(TopicPartition(TOPIC, 0)) == 1


def test_a_commit_that_a_late_older_one_overwrote_is_repeated(machine: AgentMachine) -> None:
    pod, partition = machine.pods["pod-a"], TopicPartition(TOPIC, 0)
    machine.a_record_arrives(number=0, gap=0, garbage=1)
    for _ in range(2):
        pod.begin()
        machine.loop.run_for()
        pod.engine.finish()
        machine.loop.run_for()
    for _ in range(2):
        pod.begin()
        machine.loop.run_for()
    assert machine.group.committed_offset(partition) == 1
    pod.kafka.become(LinkState.SLOW)
    for _ in range(2):
        pod.engine.finish()
        machine.loop.run_for(CALM_SECONDS)
    assert pod.kafka.waiting_requests > 1
    pod.kafka.become(LinkState.UP, last_first=True)
    machine.loop.run_for(CALM_SECONDS)
    assert machine.group.committed_offset(partition) == 3


def test_a_marker_behind_the_last_record_is_committed_once_all_before_it_is_done(machine: AgentMachine) -> None:
    pod, partition = machine.pods["pod-a"], TopicPartition(TOPIC, 0)
    machine.a_transaction_ends(number=0)
    for _ in range(2):
        pod.begin()
    machine.loop.run_for(CALM_SECONDS)
    pod.engine.finish()
    machine.loop.run_for(CALM_SECONDS)
    assert machine.group.committed_offset(partition) == 1
    for _ in range(2):
        pod.begin()
        machine.loop.run_for()
        pod.engine.finish()
        machine.loop.run_for(CALM_SECONDS)
    assert machine.group.committed_offset(partition) == machine.group.ends[partition] == 3


def test_an_unchanged_position_is_committed_once(machine: AgentMachine) -> None:
    pod, partition = machine.pods["pod-a"], TopicPartition(TOPIC, 1)
    for _ in range(3):
        pod.begin()
        machine.loop.run_for()
        pod.engine.finish()
    machine.a_transaction_ends(number=1)
    machine.loop.run_for(CALM_SECONDS)
    assert machine.group.committed_offset(partition) == machine.group.ends[partition] == 2
    known = machine.commits
    machine.loop.run_for(CALM_SECONDS)
    machine.kill(pod, deliver=True)
    machine.group.remove(pod.consumers[-1])
    machine.start("pod-b")
    machine.loop.run_for(CALM_SECONDS)
    assert machine.commits == known


def test_a_draining_pod_leaves_no_marker_behind_and_passes_no_record_that_it_never_began(
    machine: AgentMachine,
) -> None:
    pod, done, waiting = machine.pods["pod-a"], TopicPartition(TOPIC, 1), TopicPartition(TOPIC, 0)
    for number in range(PARTITIONS):
        machine.a_transaction_ends(number=number)
    pod.begin()
    machine.loop.run_for()
    pod.engine.finish()
    pod.begin()
    machine.loop.run_for()
    pod.drain()
    machine.loop.run_for(1.0)
    assert machine.group.members, "it has a task in flight"
    pod.engine.finish()
    machine.loop.run_for()
    assert machine.group.committed_offset(done) == machine.group.ends[done] == 2
    assert machine.group.committed_offset(waiting) == 1


TestAgentMachine = AgentMachine.TestCase
TestAgentMachine.settings = settings(
    derandomize=True,
    max_examples=50,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.mark.parametrize("timestamp_ms", [-1, 0, 1_775_383_200])
def test_a_producers_timestamp_does_not_change_the_order_of_records(machine: AgentMachine, timestamp_ms: int) -> None:
    pod = machine.pods["pod-a"]
    body = b'{"request_id": "task-3", "prompt": "a city"}'
    sent = OutgoingRecord(topic=TOPIC, key=None, value=body, headers=[])
    machine.append(1, sent, producers_time_ms=timestamp_ms)
    machine.loop.run_for(1.0)
    for _ in range(2):
        pod.begin()
        machine.loop.run_for()
    pod.engine.finish()
    machine.loop.run_for()
    pod.begin()
    machine.loop.run_for()
    assert (0, 1) in {(run.record.partition, run.record.offset) for run in pod.runs}
