"""The lanes to read for a pool, with its retry topics at the first lane. Pure."""

from fluxpool_contract.settings import WorkerSettings
from fluxpool_operator.backlog.observation import LaneTarget, RetryTier


def lane_targets_of(settings: WorkerSettings) -> tuple[LaneTarget, ...]:
    """The lanes of workers with these settings, with the groups that the workers use."""
    tiers = tuple(
        RetryTier(
            topic=topic,
            group=settings.retry_group,
            delay_seconds=delay_seconds,
            origins=tuple(dict.fromkeys(lane.topic for lane in settings.lanes)),
        )
        for topic, delay_seconds in zip(settings.topics.retry, settings.retry_delays_seconds, strict=True)
    )
    return tuple(
        LaneTarget(
            name=lane.name,
            topic=lane.topic,
            consumer_group=settings.group_of(lane),
            retry_tiers=tiers if lane == settings.lanes[0] else (),
        )
        for lane in settings.lanes
    )
