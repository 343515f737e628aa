"""Which partition a new task goes to. The one place that decides it; knows nothing of producers."""

import random


class Partitioner:
    """Round robin over the partitions of each topic, from a random start.

    Hashing ids to partitions would give some workers half as much again as others; taking turns cannot. The random
    start keeps many gateway processes from walking in step.
    """

    def __init__(self, source: random.Random) -> None:
        """`source` draws the first partition of each topic."""
        self._source = source
        self._turns: dict[str, int] = {}

    def choose(self, topic: str, partitions: int) -> int:
        """The partition, 0 to `partitions` - 1, of the next task for `topic`."""
        turn = self._turns.get(topic)
        chosen = self._source.randrange(partitions) if turn is None else turn % partitions
        self._turns[topic] = chosen + 1
        return chosen
