"""What is read for a pool: its lanes, and its retry topics at the first of them. Pure."""

from fluxpool_contract.settings import WorkerSettings
from fluxpool_operator.backlog.observation import LaneTarget, RetryTier


def lane_targets_of(settings: WorkerSettings) -> tuple[LaneTarget, ...]:
    """The lanes of the workers that have these settings, with their groups as the workers name them."""
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
