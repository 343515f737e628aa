"""Counts the due retries of each pool: records of its lanes on retry topics that are due and not relayed yet.

A pool's offsets are read only while the topic holds a due record of it, so that a thousand idle pools cost one request
for the end offsets of the retry topics. A count that cannot be read is a text with the reason, never zero. `retry_scan`
reads the records.
"""

import time
from collections.abc import Iterable, Mapping

from fluxpool_contract.kafka import former_scheduler_group, relayed_ahead
from fluxpool_operator.backlog.observation import RetryTier
from fluxpool_operator.backlog.retries.retry_log import RetryLog
from fluxpool_operator.backlog.retries.retry_scan import RetryScan
from fluxpool_transport.lag import GroupLag, LagReader, LogBounds, PartitionLag, StalePartition

_GroupOnTopic = tuple[str, str]


class DueRetries:
    """Counts for all pools of a cluster with one scan of the retry topics."""

    def __init__(self, scan: RetryScan) -> None:
        self._scan = scan

    async def count(self, reader: LagReader, tiers: Iterable[RetryTier]) -> dict[RetryTier, int | str]:
        """The due records of each tier, or why they are not known; raises as `LagReader.read` does."""
        wanted = list(dict.fromkeys(tiers))
        if not wanted:
            return {}
        bounds = await reader.log_bounds({tier.topic for tier in wanted})
        await self._scan.keep_up(
            {
                (topic, number): bound
                for topic, numbers in bounds.items()
                if not isinstance(numbers, str)
                for number, bound in numbers.items()
                if isinstance(bound, LogBounds)
            }
        )
        now = time.time()
        found = {tier: self._due_offsets(tier, bounds[tier.topic], now) for tier in wanted}
        asking = [tier for tier, due in found.items() if not isinstance(due, str) and any(due.values())]
        backlogs = await read_groups(reader, [(tier.group, tier.topic) for tier in asking])
        former = await self._former(reader, asking, backlogs)
        counts = {tier: due if isinstance(due, str) else 0 for tier, due in found.items()}
        return counts | {tier: self._unrelayed(tier, found[tier], backlogs, former) for tier in asking}

    def _due_offsets(
        self, tier: RetryTier, bounds: Mapping[int, LogBounds | str] | str, now: float
    ) -> dict[int, list[int]] | str:
        if isinstance(bounds, str):
            return bounds
        due: dict[int, list[int]] = {}
        for number, bound in bounds.items():
            if isinstance(bound, str):
                return f"{tier.topic}: partition {number}: {bound}"
            known = self._scan.log_of((tier.topic, number))
            if known is not None and not known.knows(tier.origins):
                self._scan.read_again((tier.topic, number), start=bound.start)
                known = None
            if known is None:
                return f"{tier.topic}: the records are being read"
            due[number] = known.due(tier.origins, now, delay_seconds=tier.delay_seconds)
        return due

    def _unrelayed(
        self,
        tier: RetryTier,
        due: dict[int, list[int]] | str,
        backlogs: Mapping[_GroupOnTopic, GroupLag],
        former: Mapping[str, GroupLag],
    ) -> int | str:
        backlog = backlogs[tier.group, tier.topic]
        if isinstance(due, str) or not backlog.partitions:
            return due if isinstance(due, str) else backlog.problem or f"{tier.topic}: could not be read"
        before = (
            {item.partition: item for item in former[tier.topic].readable_partitions} if tier.topic in former else {}
        )
        count = 0
        for item in backlog.partitions:
            if isinstance(item, StalePartition):
                return f"{tier.topic}: {item.reason}"
            own = item if item.committed_offset is not None else before.get(item.partition, item)
            done = relayed_ahead(item.metadata, item.committed_offset or 0)
            known = self._scan.log_of((tier.topic, item.partition))
            self._forget_relayed(known, own, tier)
            count += sum(offset >= own.next_offset and offset not in done for offset in due.get(item.partition, ()))
        return count

    @staticmethod
    def _forget_relayed(known: RetryLog | None, own: PartitionLag, tier: RetryTier) -> None:
        if known is not None and own.committed_offset is not None and not own.is_recreated:
            known.forget_before(own.committed_offset, tier.origins)

    @staticmethod
    async def _former(
        reader: LagReader, tiers: Iterable[RetryTier], backlogs: Mapping[_GroupOnTopic, GroupLag]
    ) -> dict[str, GroupLag]:
        """The groups of earlier versions, for pools without offsets of their own."""
        topics = {
            tier.topic
            for tier in tiers
            if any(item.committed_offset is None for item in backlogs[tier.group, tier.topic].readable_partitions)
        }
        found = await read_groups(reader, [(former_scheduler_group(topic), topic) for topic in topics])
        return {topic: backlog for (_, topic), backlog in found.items()}


async def read_groups(reader: LagReader, groups: Iterable[_GroupOnTopic]) -> dict[_GroupOnTopic, GroupLag]:
    """The lag of each group on its topic. One request, unless a group has several topics."""
    backlogs: dict[_GroupOnTopic, GroupLag] = {}
    remaining = set(groups)
    while remaining:
        topics = dict(remaining)
        backlogs |= {(group, topics[group]): item for group, item in (await reader.read(topics)).items()}
        remaining -= topics.items()
    return backlogs
