"""How the queue, pools, models and usage are shown. Pure: responses in, results out."""

from collections.abc import Iterable, Sequence

from fluxpool_cli.output import Part, Result, Table
from fluxpool_cli.terminal import minute_text
from fluxpool_client import Model, Pool, Pools, Queue, UsageReport


def queue_result(queue: Queue) -> Result:
    """Each lane."""
    rows = [
        (
            lane.name,
            lane.priority or "-",
            _number(lane.waiting),
            _number(lane.running),
            _number(lane.workers),
            _seconds(lane.oldest_waiting_seconds),
            _number(lane.completed_per_minute, digits=1),
            _seconds(lane.eta_seconds),
        )
        for lane in queue.lanes
    ]
    columns = ("LANE", "PRIORITY", "WAITING", "RUNNING", "WORKERS", "OLDEST", "DONE/MIN", "ETA")
    return Result(
        document=queue.model_dump(mode="json"),
        parts=[
            Table(columns, rows, optional=("PRIORITY", "DONE/MIN")),
            *(f"{lane.name}: {lane.why}" for lane in queue.lanes),
        ],
        names=[lane.name for lane in queue.lanes],
    )


def pools_result(pools: Pools) -> Result:
    """Each pool, with the plan in words."""
    rows = [
        (
            name_of(pool),
            ",".join(pool.lanes),
            _number(pool.ready),
            _number(pool.busy),
            _number(pool.starting),
            _number(pool.draining),
            _number(pool.desired),
            _number(pool.lag),
            _number(pool.completed_per_minute, digits=1),
        )
        for pool in pools.data
    ]
    columns = ("POOL", "LANES", "READY", "BUSY", "STARTING", "DRAINING", "DESIRED", "LAG", "DONE/MIN")
    table = Table(columns, rows, optional=("LANES", "DRAINING", "DONE/MIN", "BUSY"), empty="no pools")
    return Result(
        document=pools.model_dump(mode="json"),
        parts=[table, *_plans(pools.data)],
        names=[name_of(pool) for pool in pools.data],
        notes=[pools.left_out] if pools.left_out else (),
    )


def _plans(pools: Iterable[Pool]) -> Iterable[str]:
    for pool in pools:
        words = [pool.reason, pool.problem]
        if pool.paused:
            words.insert(0, "paused")
        if pool.next_ready_in_seconds is not None:
            words.append(f"the next worker is ready in about {pool.next_ready_in_seconds} s")
        if any(words):
            yield f"{name_of(pool)}: {'; '.join(filter(None, words))}"


def name_of(pool: Pool) -> str:
    """Its name, or its consumer group where no operator publishes one."""
    return pool.name or pool.consumer_group


def top_result(queue: Queue, pools: Pools) -> Result:
    """The service at a glance: totals, pools, lanes."""
    waiting = sum(lane.waiting or 0 for lane in queue.lanes)
    running = sum(lane.running or 0 for lane in queue.lanes)
    per_minute = sum(pool.completed_per_minute or 0.0 for pool in pools.data)
    ready, starting = (sum(getattr(pool, name) or 0 for pool in pools.data) for name in ("ready", "starting"))
    speed = "" if queue.seconds_per_task is None else f", {queue.seconds_per_task:.1f} s a task"
    line = (
        f"tasks: {waiting} waiting, {running} running, {per_minute:.1f} done a minute{speed}; "
        f"workers: {ready} ready, {starting} starting"
    )
    of_pools, of_queue = pools_result(pools), queue_result(queue)
    parts: list[Part] = [line, "", *of_pools.parts, "", *of_queue.parts]
    document = {"queue": of_queue.document, "pools": of_pools.document}
    return Result(document=document, parts=parts, names=of_pools.names, notes=of_pools.notes)


def models_result(models: Sequence[Model]) -> Result:
    """Each family of models."""
    rows = [
        (
            model.id,
            f"{model.limits.min_side_pixels}-{model.limits.max_side_pixels} px",
            f"{model.defaults.steps} (at most {model.limits.max_steps})",
            minute_text(model.last_result_at),
            f"{model.license.name}{'' if model.license.commercial else ', not commercial'}",
        )
        for model in models
    ]
    table = Table(("MODEL", "SIDES", "STEPS", "LAST RESULT (UTC)", "LICENCE"), rows, optional=("SIDES", "STEPS"))
    return Result(
        document={"models": [model.model_dump(mode="json") for model in models]},
        parts=[table],
        names=[model.id for model in models],
    )


def usage_result(report: UsageReport) -> Result:
    """Each hour or day with tasks, and all together."""
    periods = [(minute_text(period.start), period.usage) for period in report.data]
    rows = [
        (
            start,
            *map(str, (usage.tasks.succeeded, usage.tasks.failed, usage.tasks.expired, usage.tasks.canceled)),
            str(usage.images),
            f"{usage.megapixels:.1f}",
            f"{usage.gpu_seconds:.1f}",
        )
        for start, usage in [*periods, ("total", report.total)]
        if start == "total" or any((usage.images, *usage.tasks.model_dump().values()))
    ]
    columns = ("FROM (UTC)", "SUCCEEDED", "FAILED", "EXPIRED", "CANCELED", "IMAGES", "MEGAPIXELS", "GPU SECONDS")
    return Result(
        document=report.model_dump(mode="json"),
        parts=[Table(columns, rows, optional=("EXPIRED", "CANCELED", "MEGAPIXELS"))],
        names=[period.start.isoformat() for period in report.data],
    )


def _number(value: float | None, *, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"
