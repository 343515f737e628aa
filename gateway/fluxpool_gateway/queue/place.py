"""The place of a task in the queue, and when its result is to be expected. Pure.

An estimate: it takes workers and their speed as they are now, and the workers that the pool's operator expects. Tasks
are bound to partitions and partitions to workers, so the tasks that count are those before it on its own partition, and
as many of its worker's others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fluxpool_contract.messages import PoolState
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
    starts_in_seconds: float | None = None
    """Until a worker begins it; None when that is not known."""
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
        why = f"a worker has begun it; {_speed(queue)}"
        return Estimate(position=0, eta_seconds=rest, starts_in_seconds=0.0, why=why)
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
    starts_in, eta_seconds = _with_coming(
        queue, lane, in_lane + preferred, eta_seconds=eta_seconds, wall_seconds=wall_seconds
    )
    return Estimate(
        position=in_lane + preferred,
        eta_seconds=eta_seconds,
        starts_in_seconds=starts_in,
        why=_why(queue, lane, in_lane, preferred, missing, wall_seconds=wall_seconds),
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
    position = lane.waiting + preferred
    starts_in, eta_seconds = _with_coming(
        queue,
        lane,
        position,
        eta_seconds=min((eta for eta in etas if eta is not None), default=None),
        wall_seconds=wall_seconds,
    )
    if starts_in is None and lane.pool is not None and lane.pool.eta_seconds is not None and position:
        # The operator saw the lag shrink where this process has seen too little: behind all of it.
        starts_in = eta_seconds = float(lane.pool.eta_seconds)
    return Estimate(
        position=position,
        eta_seconds=eta_seconds,
        starts_in_seconds=starts_in,
        why=_why(queue, lane, lane.waiting, preferred, missing, wall_seconds=wall_seconds),
    )


def estimate_running(queue: Queue) -> Estimate:
    """Of a task that a worker has begun, at the latest."""
    why = f"a worker has begun it; {_speed(queue)}"
    return Estimate(position=0, eta_seconds=queue.seconds_per_task, starts_in_seconds=0.0, why=why)


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


def _with_coming(
    queue: Queue, lane: LaneQueue, ahead: int, *, eta_seconds: float | None, wall_seconds: float
) -> tuple[float | None, float | None]:
    """Seconds until a worker begins a task with so many before it, and until its result; with the workers that start.

    `eta_seconds` is by the ready ones. When others join, partitions are reassigned, so the tasks are spread over all.
    """
    seconds = queue.seconds_per_task
    starts_in = None if eta_seconds is None or seconds is None else max(0.0, eta_seconds - seconds)
    ready_in, coming, ready = lane.next_ready_in(wall_seconds), lane.coming_workers, len(lane.workers)
    if ready_in is None:
        return starts_in, eta_seconds
    if seconds is None:
        return (ready_in if ahead == 0 and ready == 0 else None), None
    done = ready * ready_in / seconds
    joint = (
        ahead * seconds / ready if ready and ahead < done else ready_in + (ahead - done) * seconds / (ready + coming)
    )
    starts_in = joint if starts_in is None else min(starts_in, joint)
    return starts_in, starts_in + seconds


def _rest(queue: Queue, begun: Sequence[float], wall_seconds: float) -> float | None:
    """Until a worker is done with what it began at these times; it has one task at a time, the first of them."""
    seconds = queue.seconds_per_task
    if seconds is None or not begun:
        return None
    return min(seconds, max(LEAST_REST * seconds, seconds - (wall_seconds - min(begun))))


def _unknown(why: str) -> Estimate:
    return Estimate(position=None, eta_seconds=None, why=why)


def _why(
    queue: Queue, lane: LaneQueue, in_lane: int, preferred: int, missing: str | None, *, wall_seconds: float
) -> str:
    before = f"{_tasks(in_lane)} of the lane {lane.lane.name}"
    if preferred:
        before += f" and {_tasks(preferred)} of preferred lanes"
    parts = [f"{before} {'are' if in_lane + preferred > 1 else 'is'} before it"]
    count = len(lane.workers)
    workers = {0: "no worker is ready", 1: "1 worker is ready"}.get(count, f"{count} workers are ready")
    parts.append(workers if missing is None else f"{workers}, and {missing}")
    if lane.coming_workers:
        ready_in = lane.next_ready_in(wall_seconds)
        when = "" if ready_in is None else f", the first is expected in about {ready_in:.0f} s"
        parts.append(f"{_workers(lane.coming_workers)} starting{when}")
    parts.append(_speed(queue))
    if lane.pool is not None:
        parts.append(_plan(lane.pool, ready=count))
    if lane.problem is not None:
        parts.append(lane.problem)
    return "; ".join(parts)


def _workers(count: int) -> str:
    return "1 worker is" if count == 1 else f"{count} workers are"


def _plan(pool: PoolState, *, ready: int) -> str:
    desired = pool.desired_replicas
    verb = "grows to" if desired > ready else "shrinks to" if desired < ready else "stays at"
    count = "1 worker" if desired == 1 else f"{desired} workers"
    return f"the pool {pool.pool} {verb} {count}: {pool.reason.rstrip('.')}"


def _tasks(count: int) -> str:
    return {0: "no task", 1: "1 task"}.get(count, f"{count} tasks")


def _speed(queue: Queue) -> str:
    if queue.seconds_per_task is None:
        return "too few tasks were finished lately to know how long one takes"
    seconds = queue.seconds_per_task
    return f"one takes a worker about {seconds:.1f} s" if seconds < 10 else f"one takes a worker about {seconds:.0f} s"
