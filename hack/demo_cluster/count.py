"""Compares the records, the images in the bucket and the offsets of a demo with the tasks that were sent.

Sends and changes nothing.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from demo_cluster.pools import BUCKET, POOLS, DemoPool
from fluxpool_cli.local.demo.audit import IMAGE_SUFFIXES, Audit, audit
from fluxpool_contract.messages.result import GenerationResult
from fluxpool_transport.lag.lag_reader import GroupLag
from kit.stores.s3 import S3Service

Submitted = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""The tasks that were sent, by pool and `request_id`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The counts of all pools; `problems` is empty when they are as expected."""

    tasks: int
    """Records of the task topics."""
    images: int
    """Image objects of the tasks that were sent."""
    lost: int
    """Tasks without a result, or without the image of the result."""
    doubled: int
    """Second results and second images of a task."""
    problems: tuple[str, ...]

    def line(self, *, peak_replicas: int, seconds: float) -> str:
        """The demo's last line."""
        return (
            f"demo-cluster: {self.tasks} tasks, {self.images} images, {self.lost} lost, {self.doubled} doubled, "
            f"peak {peak_replicas} replicas, {seconds:.0f} s"
        )


async def count(
    submitted: Submitted,
    *,
    result_values: Mapping[str, Sequence[bytes]],
    backlogs: Mapping[str, GroupLag],
    store: S3Service,
    folder: Path,
) -> Count:
    """Fetch every image of the bucket into `folder`, and check each pool's records, images and offsets."""
    audits: list[Audit] = []
    problems: list[str] = []
    for pool in POOLS:
        images = folder / pool.name
        await asyncio.to_thread(_fetch_images, store, pool, images)
        results, unreadable = _ends(result_values[pool.name])
        backlog = backlogs[pool.name]
        found = await asyncio.to_thread(
            audit,
            submitted[pool.name],
            results=results,
            image_folder=images,
            lag_records={backlog.group: backlog.lag_records_at_least},
        )
        audits.append(found)
        problems += found.problems
        if unreadable:
            problems.append(f"{pool.topics.results} holds {unreadable} records that are no results")
        if backlog.is_stale:
            problems.append(f"the offsets of {backlog.group} could not be read")
    tasks = sum(_records(backlog) for backlog in backlogs.values())
    sent = sum(len(tasks_of_pool) for tasks_of_pool in submitted.values())
    if tasks != sent:
        problems.append(f"the task topics hold {tasks} records, but {sent} were sent")
    return Count(
        tasks=tasks,
        images=sum(found.images for found in audits),
        lost=sum(found.lost for found in audits),
        doubled=sum(found.doubled for found in audits),
        problems=tuple(problems),
    )


def _ends(values: Sequence[bytes]) -> tuple[list[GenerationResult], int]:
    """The different results, and how many records are none.

    Delivery is at least once: a repetition byte by byte counts once.
    """
    results, unreadable = [], 0
    for value in dict.fromkeys(values):
        try:
            results.append(GenerationResult.model_validate_json(value))
        except ValidationError:
            unreadable += 1
    return results, unreadable


def _records(backlog: GroupLag) -> int:
    """Records of the group's topic."""
    return sum(one.log_end_offset - one.log_start_offset for one in backlog.readable_partitions)


def _fetch_images(store: S3Service, pool: DemoPool, folder: Path) -> None:
    """Copy a pool's images to the same keys below a folder."""
    folder.mkdir(parents=True)
    for key in store.keys(BUCKET, prefix=pool.image_prefix):
        file = folder / key.removeprefix(pool.image_prefix)
        if file.suffix in IMAGE_SUFFIXES:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(store.read(BUCKET, key).raise_for_status().content)
