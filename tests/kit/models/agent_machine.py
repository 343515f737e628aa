"""The agent's core under random interleavings: lanes, ledger, attempts and task flow, on a modelled Kafka.

All code of a worker between its consumer, its engine, its store and its producer is real: `LaneConsumer`, `TaskFlow`,
`Attempts`, `Holds`, claims and manifests. The outside is modelled, each of its faults is a rule, and time passes only
in a rule.

Three invariants are checked against the machine's own records. A committed offset never passes a task without a visible
end. No accepted commit lowers an offset that its sender could have known. The ledger counts no crash that did not
happen (a task that moved, or was released) and misses none that did. At the end of each run the faults are removed;
then every task must have exactly one end, and no lag may remain, not even of undecodable records.
"""

import asyncio
import json
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Final

import structlog
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord, OffsetAndMetadata
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fluxpool_contract.kafka.ledger import decode_ledger
from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.headers import parse_envelope
from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.consumer.lane_choice import LOG_APPEND_TIME
from fluxpool_worker.agent.task.outgoing_records import due_record
from fluxpool_worker.agent.task.publisher import OutgoingRecord
from kit.models.modelled_kafka import Commit, LinkState, ModelConsumer, ModelGroup, SteppedLoop
from kit.models.modelled_worker import ModelPod, Run, Surroundings

EPOCH_SECONDS: Final = 1_700_000_000
PARTITIONS: Final = 2
PODS: Final = ("pod-a", "pod-b", "pod-c")
MAX_RECORDS: Final = 12
MAX_MARKERS: Final = 6
CALM_SECONDS: Final = 12.0
"""Longer than any deadline or pause of the lane: a connected pod has committed everything by then."""
MENDING_ROUNDS: Final = 200
SETTINGS: Final = WorkerSettings.model_validate(
    {"kafka": {"bootstrap_servers": ["kafka:9092"]}, "storage": {"url": "s3://images/"}}
)
TOPIC: Final = SETTINGS.lanes[0].topic

RecordPosition = tuple[TopicPartition, int]


class AgentMachine(RuleBasedStateMachine):
    """Up to three pods on two partitions."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = SteppedLoop()
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(lambda _loop, context: self.broken.append(str(context)))
        clock = Clock(monotonic=self.loop.time, time=lambda: EPOCH_SECONDS + self.loop.time())
        self.logs = structlog.testing.capture_logs()
        self.logged = self.logs.__enter__()
        self.broken: list[str] = []
        self.group = ModelGroup(TOPIC, partitions=PARTITIONS, on_commit=self.see_commit, on_removed=self.see_removed)
        self.around = Surroundings(self.loop, SETTINGS, self.group, self.see_published, clock)
        self.pods: dict[str, ModelPod] = {}
        self.dead: list[ModelPod] = []
        self.records = 0
        self.markers = 0
        self.commits = 0
        """How often the broker accepted an offset of a partition."""
        self.deleted: set[str | None] = set()
        """Request ids of records that retention deleted, done or not."""
        self.ended: set[RecordPosition] = set()
        self.answers: dict[str | None, set[str]] = defaultdict(set)
        self.waiting_retries: list[OutgoingRecord] = []
        self.crashes_possible: Counter[str | None] = Counter()
        """By request id: how often a pod with the task died, or left without a commit."""
        self.crashes_certain: dict[RecordPosition, int] = {}
        """The count that the ledger must show since a connected pod died with the task at the device."""

    # Observations

    def see_commit(self, commit: Commit, partition: TopicPartition, committed: OffsetAndMetadata) -> None:
        self.commits += 1
        if committed.offset < commit.committed_when_sent[partition]:
            self.broken.append(f"{partition}: lowered from {commit.committed_when_sent[partition]} to {committed}")
        ledger = decode_ledger(committed.metadata)
        for offset, entry in ledger.items():
            if entry.crashes > self.crashes_possible[entry.task]:
                self.broken.append(f"{partition}: {offset} was not crashed so often: {entry}")
        for pod in self.living:
            if commit.sender in pod.consumers and pod.is_cut_off:
                # It had been fenced and started the task meanwhile, unaware of the new owner: its entry counts.
                for run in pod.runs:
                    self.crashes_certain.pop(place_of(run), None)
        for (place, offset), crashes in self.crashes_certain.items():
            if place == partition and (place, offset) not in self.ended and offset >= committed.offset:
                shown = ledger[offset].crashes if offset in ledger else None
                if shown is None or shown < crashes:
                    self.broken.append(f"{partition}: {offset} crashed {crashes} times, the ledger says {shown}")

    def see_published(self, sent: OutgoingRecord, run: Run) -> None:
        place, request_id = place_of(run), request_id_of(run.record)
        match sent.topic:
            case SETTINGS.topics.results:
                self.answers[request_id].add(dict(sent.headers)["ce_id"].decode())
                self.ended.add(place)
            case SETTINGS.topics.dead_letters:
                self.check_count(place, request_id, DeadLetter.from_headers(sent.headers).crashes)
            case _:
                self.check_count(place, request_id, parse_envelope(sent.headers).crashes)
                self.waiting_retries.append(due_record(consumer_record(sent), topic=TOPIC))
                self.ended.add(place)

    def check_count(self, place: RecordPosition, request_id: str | None, crashes: int) -> None:
        # Not too few: a pod that lost its partition before another one died during the task cannot know of that.
        if crashes > self.crashes_possible[request_id]:
            self.broken.append(f"{place}: {crashes} crashes published")

    def see_removed(self, consumer: ModelConsumer) -> None:
        for pod in (*self.pods.values(), *self.dead):
            if consumer in pod.consumers and (pod.is_cut_off or not pod.is_draining):
                self.may_have_crashed(pod)

    def may_have_crashed(self, pod: ModelPod) -> None:
        pod.is_cut_off = True
        for run in pod.runs | pod.released:
            self.crashes_possible[request_id_of(run.record)] += 1

    # Records

    @initialize(pods=st.integers(1, 2), records=st.integers(1, 6))
    def begin(self, pods: int, records: int) -> None:
        for name in PODS[:pods]:
            self.start(name)
        for number in range(records):
            self.a_record_arrives(number=number % PARTITIONS, gap=0, garbage=1)

    @precondition(lambda self: self.records < MAX_RECORDS)
    @rule(number=st.integers(0, PARTITIONS - 1), gap=st.integers(0, 1), garbage=st.integers(0, 9))
    def a_record_arrives(self, number: int, gap: int, garbage: int) -> None:
        body = {"request_id": f"task-{self.records}", "prompt": "a city"}
        value = b"{" if garbage == 0 else json.dumps(body).encode()
        self.append(number, OutgoingRecord(topic=TOPIC, key=None, value=value, headers=[]), gap=gap)

    @precondition(lambda self: self.markers < MAX_MARKERS)
    @rule(number=st.integers(0, PARTITIONS - 1))
    def a_transaction_ends(self, number: int) -> None:
        self.group.append_marker(TopicPartition(TOPIC, number))
        self.markers += 1
        self.loop.run_for()

    @rule(number=st.integers(0, PARTITIONS - 1), records=st.integers(1, 3))
    def retention_deletes_records(self, number: int, records: int) -> None:
        partition = TopicPartition(TOPIC, number)
        taken = self.group.log[partition][:records]
        if taken:
            self.deleted |= {request_id_of(record) for record in taken}
            self.group.delete_before(partition, taken[-1].offset + 1)
            self.loop.run_for()

    @precondition(lambda self: self.waiting_retries)
    @rule(number=st.integers(0, PARTITIONS - 1))
    def a_retry_is_due(self, number: int) -> None:
        self.append(number, self.waiting_retries.pop(0))

    def append(self, number: int, sent: OutgoingRecord, *, gap: int = 0, producers_time_ms: int | None = None) -> None:
        offset = self.group.ends[TopicPartition(TOPIC, number)] + gap
        # None later than now, and no two equal: the order among equals is that of a set, which differs between
        # processes.
        now_ms = round((EPOCH_SECONDS + self.loop.time() - 1) * 1000) + self.records
        record = consumer_record(sent, number=number, offset=offset, timestamp_ms=now_ms)
        if producers_time_ms is not None:
            record = replace(record, timestamp=producers_time_ms, timestamp_type=0)
        self.group.append(record)
        self.records += 1
        self.loop.run_for()

    # Work

    @precondition(lambda self: any(pod.may_begin for pod in self.living))
    @rule(data=st.data(), tasks=st.integers(1, 2))
    def tasks_begin(self, data: st.DataObject, tasks: int) -> None:
        pod = data.draw(st.sampled_from([pod for pod in self.living if pod.may_begin]))
        for _ in range(tasks):
            pod.begin()
            self.loop.run_for()

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def the_device_is_half_way(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.busy)).engine.step()

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def an_image_is_generated(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.busy)).engine.finish()
        self.loop.run_for()

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def a_generation_fails(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.busy)).engine.fail()
        self.loop.run_for()

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def an_engine_dies(self, data: st.DataObject) -> None:
        for run in data.draw(st.sampled_from(self.busy)).engine.die():
            self.crashes_possible[request_id_of(run.record)] += 1
        self.loop.run_for()

    # Pods

    @precondition(lambda self: len(self.living) < len(PODS))
    @rule(data=st.data())
    def a_pod_starts(self, data: st.DataObject) -> None:
        living = [pod.name for pod in self.living]
        name = data.draw(st.sampled_from([name for name in PODS if name not in living]))
        if name in self.pods:
            self.dead.append(self.pods.pop(name))
            self.loop.run_for(1.0)
        self.start(name)

    def start(self, name: str) -> None:
        self.pods[name] = ModelPod(self.around, name=name, started_at=EPOCH_SECONDS + int(self.loop.time()))
        self.loop.run_for()

    @precondition(lambda self: self.living)
    @rule(data=st.data(), deliver=st.booleans())
    def a_pod_is_killed(self, data: st.DataObject, *, deliver: bool) -> None:
        self.kill(data.draw(st.sampled_from(self.living)), deliver=deliver)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), expired=st.booleans())
    def a_pod_is_killed_at_work(self, data: st.DataObject, *, expired: bool) -> None:
        pod = data.draw(st.sampled_from(self.busy))
        self.kill(pod, deliver=True)
        if expired:
            self.group.remove(pod.consumers[-1])
            self.loop.run_for()

    def kill(self, pod: ModelPod, *, deliver: bool) -> None:
        if not pod.is_in_order:
            self.may_have_crashed(pod)
        else:
            for run in pod.runs:
                suspected = run.is_recorded and not run.is_generated
                self.crashes_possible[request_id_of(run.record)] += suspected
                if suspected and run.is_begun and not run.taken.lost and place_of(run) not in self.ended:
                    counted = max(run.taken.crashes, parse_envelope(run.record.headers).crashes)
                    self.crashes_certain[place_of(run)] = counted + 1
        pod.kill(deliver=deliver)
        pod.released.clear()

    @precondition(lambda self: any(not pod.is_draining for pod in self.living))
    @rule(data=st.data())
    def a_pod_gets_sigterm(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([pod for pod in self.living if not pod.is_draining])).drain()
        self.loop.run_for()

    # The group

    @rule(shift=st.integers(0, PARTITIONS - 1))
    def the_group_rebalances(self, shift: int) -> None:
        self.group.shift = shift
        self.group.rebalance()
        self.loop.run_for()

    @precondition(lambda self: self.group.members)
    @rule(data=st.data())
    def a_session_expires(self, data: st.DataObject) -> None:
        member = self.group.members[data.draw(st.sampled_from(sorted(self.group.members)))]
        for pod in self.living:
            # It cannot release its tasks.
            pod.is_cut_off = pod.is_cut_off or member in pod.consumers
        self.group.remove(member)
        self.loop.run_for()

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def a_heartbeat_response_arrives(self, data: st.DataObject) -> None:
        self.group.heartbeat(data.draw(st.sampled_from(self.living)).consumers[-1])
        self.loop.run_for()

    # The network and time

    @precondition(lambda self: self.living)
    @rule(data=st.data(), state=st.sampled_from([LinkState.SLOW, LinkState.DEAF]))
    def a_link_is_disturbed(self, data: st.DataObject, state: LinkState) -> None:
        pod = data.draw(st.sampled_from(self.living))
        link = data.draw(st.sampled_from(range(len(pod.links))))
        if pod.links[link].state is LinkState.UP:
            pod.links[link].become(state)
            pod.is_cut_off = pod.is_cut_off or pod.links[link] is pod.kafka

    @precondition(lambda self: self.disturbed)
    @rule(data=st.data(), last_first=st.booleans())
    def a_link_is_restored(self, data: st.DataObject, *, last_first: bool) -> None:
        pod, index = data.draw(st.sampled_from(self.disturbed))
        if last_first and pod.kafka.waiting_requests > 1:
            # A request that overtakes a release undoes it: other pods cannot distinguish that from a crash.
            self.may_have_crashed(pod)
        pod.links[index].become(LinkState.UP, last_first=last_first)
        self.loop.run_for()

    @rule(seconds=st.sampled_from([0.5, 3.0, CALM_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_for(seconds)
        for pod in self.living:
            self.group.heartbeat(pod.consumers[-1])
        self.loop.run_for()
        for pod in self.living:
            if seconds >= CALM_SECONDS and self.group.owns(pod.consumers[-1]) and pod.kafka.state is LinkState.UP:
                pod.is_cut_off = False

    # Invariants

    @invariant()
    def nothing_failed(self) -> None:
        assert not self.broken, "\n".join(self.broken)

    @invariant()
    def no_committed_offset_has_passed_a_task_without_an_end(self) -> None:
        for partition, log in self.group.log.items():
            committed = self.group.committed_offset(partition)
            passed = [record.offset for record in log if record.offset < committed]
            assert all((partition, offset) in self.ended for offset in passed), f"{partition}: {committed} committed"

    def teardown(self) -> None:
        try:
            self.mend()
            self.nothing_failed()
            self.no_committed_offset_has_passed_a_task_without_an_end()
            for request_id, event_ids in self.answers.items():
                assert request_id is None or len(event_ids) == 1, f"{request_id} has several ends: {event_ids}"
            wanted = {request_id_of(record) for log in self.group.log.values() for record in log}
            assert wanted <= set(self.answers) <= wanted | self.deleted
            self.only_deleted_records_were_reported_lost()
        finally:
            self.close()

    def only_deleted_records_were_reported_lost(self) -> None:
        for told in self.logged:
            if told["event"] == "records_lost":
                assert told["first"] < told["end"] <= self.group.starts[TopicPartition(TOPIC, told["partition"])]

    def mend(self) -> None:
        """Remove every fault, and run until all is done."""
        for pod, index in self.disturbed:
            pod.links[index].become(LinkState.UP)
        for _ in range(MENDING_ROUNDS):
            if self.is_done:
                break
            if not any(not pod.is_draining for pod in self.living):
                self.start(f"pod-{len(self.pods)}")
            consumers = {pod.consumers[-1] for pod in self.living}
            for member in list(self.group.members.values()):
                if member not in consumers:
                    self.group.remove(member)
            while self.waiting_retries:
                self.append(0, self.waiting_retries.pop(0))
            for pod in self.living:
                self.group.heartbeat(pod.consumers[-1])
                if pod.may_begin:
                    pod.begin()
            self.loop.run_for(1.0)
            for pod in self.busy:
                pod.engine.finish()
            self.loop.run_for(1.0)
        assert self.is_done, f"unfinished: {self.group.committed}"

    def close(self) -> None:
        """End all pods."""
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self.loop.close()
        asyncio.set_event_loop(None)
        self.logs.__exit__(None, None, None)

    # Queries

    @property
    def living(self) -> list[ModelPod]:
        return [pod for pod in self.pods.values() if pod.is_alive]

    @property
    def busy(self) -> list[ModelPod]:
        return [pod for pod in self.living if pod.engine.is_busy]

    @property
    def disturbed(self) -> list[tuple[ModelPod, int]]:
        return [
            (pod, index)
            for pod in self.living
            for index, link in enumerate(pod.links)
            if link.state is not LinkState.UP
        ]

    @property
    def is_done(self) -> bool:
        return not self.waiting_retries and all(
            self.group.committed_offset(partition) == end for partition, end in self.group.ends.items()
        )


def consumer_record(sent: OutgoingRecord, *, number: int = 0, offset: int = 0, timestamp_ms: int = 0) -> ConsumerRecord:
    return ConsumerRecord(
        sent.topic, number, offset, timestamp_ms, LOG_APPEND_TIME, sent.key, sent.value, None, -1, -1, sent.headers
    )


def place_of(run: Run) -> RecordPosition:
    return run.taken.partition, run.record.offset


def request_id_of(record: ConsumerRecord) -> str | None:
    return None if record.value == b"{" else str(json.loads(record.value)["request_id"])
