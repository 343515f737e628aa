"""The place of a task in the queue, and when its result is to be expected. Pure.

An estimate: it takes workers and their speed as they are now. Tasks are bound to partitions and partitions to workers,
so the tasks that count are those before it on its own partition, and as many of its worker's others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fluxpool_gateway.queue.lanes import LaneQueue, PartitionQueue, Queue
from fluxpool_gateway.store.task_state import RecordRef

PREFERRED_EACH: Final = 4
"""Of its preferred lanes a worker takes at most so many tasks before it takes one of the others."""
LEAST_REST: Final = 0.1
"""A task that takes longer than expected is nearly finished: a tenth is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The place of one task."""

    position: int | None
    """Waiting tasks that are likely to begin before it; None when that is not known."""
    eta_seconds: float | None
    """Until its result; None when that is not known."""
    why: str
    """One sentence: what the numbers come from, and what is missing."""


def estimate(queue: Queue, place: RecordRef | None, *, wall_seconds: float) -> Estimate:
    """The place of a task that waits; `place` is where its record lies, `wall_seconds` the time since 1970."""
    if place is None:
        return _unknown("where its record lies in Kafka is not known")
    topic, number, offset = place
    lane = queue.by_topic.get(topic)
    if lane is None:
        return _unknown(f"no lane of this gateway has the topic {topic}")
    partition = lane.partitions.get(number)
    if partition is None:
        return _unknown(f"the lane {lane.lane.name}: {lane.problem or f'there is no partition {number}'}")
    if offset in partition.running:
        rest = _rest(queue, [partition.running[offset]], wall_seconds)
        return Estimate(position=0, eta_seconds=rest, why=f"a worker has begun it; {_speed(queue)}")
    if offset < partition.next_offset:
        return _unknown("a worker has taken it: another attempt of it is due later, or its result is about to be there")
    before = partition.waiting_before(offset)
    in_lane = sum(min(other.waiting, before) for other in lane.partitions.values() if other is not partition) + before
    preferred = min(
        sum(other.waiting for other in queue.preferred_to(lane)), PREFERRED_EACH * (in_lane + max(1, len(lane.workers)))
    )
    eta_seconds, missing = None, None
    if not lane.workers:
        missing = "it begins when one is"
    elif partition.worker is None:
        missing = "partitions are being assigned to them"
    else:
        eta_seconds = _eta(queue, lane, partition.worker, ahead=before, own=partition, wall_seconds=wall_seconds)
    return Estimate(
        position=in_lane + preferred, eta_seconds=eta_seconds, why=_why(queue, lane, in_lane, preferred, missing)
    )


def estimate_new(queue: Queue, lane: LaneQueue, *, wall_seconds: float) -> Estimate:
    """Of a task that is sent to this lane now: it gets a partition of the worker that is free first."""
    if not lane.partitions:
        return _unknown(f"the lane {lane.lane.name}: {lane.problem or 'there is no partition'}")
    preferred = min(
        sum(other.waiting for other in queue.preferred_to(lane)),
        PREFERRED_EACH * (lane.waiting + max(1, len(lane.workers))),
    )
    owners = {partition.worker for partition in lane.partitions.values() if partition.worker is not None}
    missing = None
    if not lane.workers:
        missing = "it begins when one is"
    elif not owners:
        missing = "partitions are being assigned to them"
    etas = [_eta(queue, lane, worker, ahead=None, own=None, wall_seconds=wall_seconds) for worker in owners]
    return Estimate(
        position=lane.waiting + preferred,
        eta_seconds=min((eta for eta in etas if eta is not None), default=None),
        why=_why(queue, lane, lane.waiting, preferred, missing),
    )


def estimate_running(queue: Queue) -> Estimate:
    """Of a task that a worker has begun, at the latest."""
    return Estimate(position=0, eta_seconds=queue.seconds_per_task, why=f"a worker has begun it; {_speed(queue)}")


def _eta(
    queue: Queue,
    lane: LaneQueue,
    worker: str,
    *,
    ahead: int | None,
    own: PartitionQueue | None,
    wall_seconds: float,
) -> float | None:
    """Until the result of a task with so many before it on its partition `own`; None for both: behind all others."""
    seconds = queue.seconds_per_task
    if seconds is None:
        return None
    mine = lane.of_worker(worker)
    tasks = sum(
        partition.waiting if ahead is None else ahead if partition is own else min(partition.waiting, ahead)
        for partition in mine
    )
    preferred = sum(partition.waiting for other in queue.preferred_to(lane) for partition in other.of_worker(worker))
    tasks += min(preferred, PREFERRED_EACH * (tasks + 1))
    begun = [at for other in queue.lanes for partition in other.of_worker(worker) for at in partition.running.values()]
    return (tasks + 1) * seconds + (_rest(queue, begun, wall_seconds) or 0.0)


def _rest(queue: Queue, begun: Sequence[float], wall_seconds: float) -> float | None:
    """Until a worker is done with what it began at these times; it has one task at a time, the first of them."""
    seconds = queue.seconds_per_task
    if seconds is None or not begun:
        return None
    return min(seconds, max(LEAST_REST * seconds, seconds - (wall_seconds - min(begun))))


def _unknown(why: str) -> Estimate:
    return Estimate(position=None, eta_seconds=None, why=why)


def _why(queue: Queue, lane: LaneQueue, in_lane: int, preferred: int, missing: str | None) -> str:
    before = f"{_tasks(in_lane)} of the lane {lane.lane.name}"
    if preferred:
        before += f" and {_tasks(preferred)} of preferred lanes"
    parts = [f"{before} {'are' if in_lane + preferred > 1 else 'is'} before it"]
    count = len(lane.workers)
    workers = {0: "no worker is ready", 1: "1 worker is ready"}.get(count, f"{count} workers are ready")
    parts.append(workers if missing is None else f"{workers}, and {missing}")
    parts.append(_speed(queue))
    if lane.problem is not None:
        parts.append(lane.problem)
    return "; ".join(parts)


def _tasks(count: int) -> str:
    return {0: "no task", 1: "1 task"}.get(count, f"{count} tasks")


def _speed(queue: Queue) -> str:
    if queue.seconds_per_task is None:
        return "too few tasks were finished lately to know how long one takes"
    seconds = queue.seconds_per_task
    return f"one takes a worker about {seconds:.1f} s" if seconds < 10 else f"one takes a worker about {seconds:.0f} s"
