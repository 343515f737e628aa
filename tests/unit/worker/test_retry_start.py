"""Where a pool's relay begins: at its own offsets, else at those of earlier versions, else at the log's start."""

from collections.abc import Iterable

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, NotLeaderForPartitionError

from fluxpool_contract.kafka.retries import former_scheduler_group, retry_offset_text
from fluxpool_transport.lag.group_offsets import GroupOffsetsError, StoredOffset
from fluxpool_worker.agent.retry import retry_start
from fluxpool_worker.agent.retry.retry_start import RetryStart

TOPIC, GROUP = "retry-15s", "group-retry"
PARTITION = TopicPartition(TOPIC, 0)


class Reader:
    """A consumer whose partitions all hold offsets 3 to 9; those in `leaderless` do not answer."""

    def __init__(self, leaderless: Iterable[int] = ()) -> None:
        self.leaderless = set(leaderless)
        self.assigned: list[TopicPartition] = []
        self.sought: dict[TopicPartition, int] = {}

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = partitions

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought[partition] = offset

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        if partitions[0].partition in self.leaderless:
            raise NotLeaderForPartitionError
        return dict.fromkeys(partitions, 3)

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 10)


class Offsets:
    """Committed offsets of groups; reading a group without an entry is not permitted."""

    def __init__(self, **groups: StoredOffset | None) -> None:
        self.groups = groups

    async def fetch(self, group: str, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, StoredOffset]:
        if group not in self.groups:
            raise GroupOffsetsError("refused") from GroupAuthorizationFailedError()
        stored = self.groups[group]
        return {} if stored is None else dict.fromkeys(partitions, stored)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_start, "CONFIRMING_SECONDS", 0.0)


def start(offsets: Offsets, *, partitions: Iterable[int] = (0,), topic_id: str | None = "now") -> RetryStart:
    async def partitions_of(_topic: str) -> set[int]:
        return set(partitions)

    async def ask_topic_id(_topic: str) -> str | None:
        return topic_id

    return RetryStart(
        (TOPIC,),
        group=GROUP,
        offsets=offsets,  # type: ignore[arg-type]  # a stub
        partitions_of=partitions_of,
        ask_topic_id=ask_topic_id,
    )


@pytest.mark.parametrize(
    ("own", "former", "begins"),
    [
        (StoredOffset(5), StoredOffset(8), 5),
        (StoredOffset(1), None, 3),
        (StoredOffset(11), None, 3),
        (StoredOffset(5, retry_offset_text(commit_offset=5, relayed=(), topic_id="before")), None, 3),
        (StoredOffset(5, retry_offset_text(commit_offset=5, relayed=(), topic_id="now")), None, 5),
        (None, StoredOffset(8), 8),
        (None, StoredOffset(11), 3),
        (None, None, 3),
    ],
    ids=["own", "expired", "past the end", "made again", "same topic", "former", "former of another log", "none"],
)
async def test_a_relay_begins_at_the_committed_offset_of_its_pool(
    own: StoredOffset | None, former: StoredOffset | None, begins: int
) -> None:
    reader = Reader()
    offsets = Offsets(**{GROUP: own, former_scheduler_group(TOPIC): former})
    found = await start(offsets).find(reader)
    assert (found[PARTITION].position, reader.sought) == (begins, {PARTITION: begins})


async def test_a_former_group_that_may_not_be_read_counts_as_none() -> None:
    found = await start(Offsets(**{GROUP: None})).find(Reader())
    assert found[PARTITION].position == 3


async def test_a_partition_without_a_leader_is_skipped_and_checked_again() -> None:
    reader = Reader(leaderless=[1])
    starting = start(Offsets(**{GROUP: StoredOffset(5)}), partitions=(0, 1))
    found = await starting.find(reader)
    assert (list(found), reader.assigned) == ([PARTITION], [PARTITION])
    assert not starting.is_complete
    assert await starting.is_outdated(found)


async def test_a_topic_with_another_id_is_read_from_its_beginning() -> None:
    offsets = Offsets(**{GROUP: StoredOffset(5)})
    found = await start(offsets).find(Reader())
    assert not await start(offsets).is_outdated(found)
    assert not await start(offsets, topic_id=None).is_outdated(found)
    assert await start(offsets, topic_id="another").is_outdated(found)
