"""Choices shared by processes through memory, also by ones that are killed."""

import subprocess
import sys
import time
from pathlib import Path

from fluxpool_transport.partitioner.shared_sends import MAX_AGE_SECONDS, RING_ENTRIES, SharedSend, SharedSends
from kit.waiting import PATIENCE

NOW = 1000.0
WRITER = """
import itertools, sys
from pathlib import Path
from fluxpool_transport.partitioner.shared_sends import SharedSends
sends = SharedSends(Path(sys.argv[1]))
for number in itertools.count():
    sends.tell("tasks", partition=number % 24, work=float(number), now=1000.0)
    if number == 5000:
        print("writing", flush=True)
"""


def joined(folder: Path, *topics: str) -> SharedSends:
    sends = SharedSends(folder)
    for topic in topics or ("tasks",):
        sends.know(topic)
    return sends


def pair(folder: Path) -> tuple[SharedSends, SharedSends]:
    first, second = joined(folder), joined(folder)
    first.find_others()
    return first, second


def tell(sends: SharedSends, partition: int, *, work: float = 1.0, now: float = NOW) -> None:
    sends.tell("tasks", partition=partition, work=work, now=now)


def partitions_of(news: list[SharedSend]) -> list[int]:
    return [sent.partition for sent in news]


def test_each_choice_is_told_once_to_every_other_process(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    tell(first, 3, work=1.5)
    tell(second, 4)
    assert second.news(now=NOW) == [SharedSend("tasks", 3, 1.5, NOW)]
    assert partitions_of(first.news(now=NOW)) == [4]
    assert first.news(now=NOW) == second.news(now=NOW) == []


def test_a_process_hears_nothing_of_the_time_before_it(tmp_path: Path) -> None:
    first = joined(tmp_path)
    tell(first, 1)
    second = joined(tmp_path)
    tell(first, 2)
    assert partitions_of(second.news(now=NOW)) == [2]


def test_old_choices_and_those_for_other_topics_are_left_out(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    tell(first, 1, now=NOW - MAX_AGE_SECONDS - 0.1)
    first.tell("others", partition=2, work=1.0, now=NOW)
    tell(first, 3)
    assert partitions_of(second.news(now=NOW)) == [3]


def test_a_reader_that_is_far_behind_gets_the_latest(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    for number in range(3 * RING_ENTRIES):
        tell(first, number)
    news = partitions_of(second.news(now=NOW))
    assert news == list(range(3 * RING_ENTRIES - len(news), 3 * RING_ENTRIES))
    assert RING_ENTRIES - 1 <= len(news) <= RING_ENTRIES


def test_a_writer_that_is_killed_leaves_whole_choices_and_a_ring_for_the_next(tmp_path: Path) -> None:
    reader = joined(tmp_path)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            reader.find_others()
            reader.news(now=NOW)
            deadline = time.monotonic() + 30 * PATIENCE
            heard: list[SharedSend] = []
            while len(heard) < 5000 and time.monotonic() < deadline:
                heard += reader.news(now=NOW)
            writer.kill()
        heard += reader.news(now=NOW)
        assert len(heard) >= 5000
        assert all(sent.partition == sent.work % 24 for sent in heard), "an entry is half of one and half of another"
        assert [sent.work for sent in heard] == sorted({sent.work for sent in heard})
    successor = joined(tmp_path)
    assert len(list(tmp_path.glob("*.ring"))) == 2
    tell(successor, 7)
    assert partitions_of(reader.news(now=NOW)) == [7]
