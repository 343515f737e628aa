"""Progress events of a task: how often, and the previews in them."""

import json
from pathlib import Path
from typing import Any, cast

import pytest

from fluxpool_contract.messages import MAX_PREVIEW_BYTES
from fluxpool_contract.messages.decoding import decode_task
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_worker.agent.clock import Clock
from fluxpool_worker.agent.task.progress import PROGRESS_SECONDS, AttemptProgress, ProgressPublisher
from fluxpool_worker.engine.protocol import Preview
from kit.workers.task_flow import TASK, FlowBench, task_record


class Reports:
    """Takes the place of the publisher, and of time."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.events: list[tuple[str, dict[str, Any]]] = []
        record = task_record()
        self.progress = AttemptProgress(
            cast("ProgressPublisher", self),
            decode_task(record.value, record.headers),
            attempt=2,
            clock=Clock(monotonic=lambda: self.seconds),
        )

    def report(self, _decoded: object, kind: str, *, attempt: int, **fields: Any) -> None:
        assert attempt == 2
        self.events.append((kind, fields))


def preview_at(step: int, payload: bytes = b"RIFF") -> Preview:
    return Preview(job_id=1, step=step, total_steps=28, index=1, payload=payload)


def test_steps_and_previews_are_reported_twice_a_second_each_and_the_last_step_always() -> None:
    reports = Reports()
    reports.progress.report_started()
    for step in range(1, 29):
        reports.progress.report_preview(preview_at(step))
        reports.progress.report_step(step, 28)
        reports.seconds += PROGRESS_SECONDS / 4
    shown = [(kind, fields.get("step")) for kind, fields in reports.events]
    steps = [step for kind, step in shown if kind == "step"]
    assert shown[0] == ("started", None)
    assert steps == [1, 5, 9, 13, 17, 21, 25, 28]
    assert [step for kind, step in shown if kind == "preview"] == steps[:-1]


def test_a_preview_of_the_largest_size_is_a_valid_event() -> None:
    reports = Reports()
    reports.progress.report_preview(preview_at(4, bytes(MAX_PREVIEW_BYTES)))
    [(kind, fields)] = reports.events
    event = ProgressEvent(request_id="r", type=kind, at=cast("Any", "2026-04-05T10:00:00Z"), **fields)
    assert ProgressEvent.model_validate_json(event.to_json()).preview == fields["preview"]


@pytest.mark.parametrize(
    ("preview", "pool", "every"), [(True, 4, 4), (True, 0, 0), (False, 4, 0), (None, 4, 0)], ids=str
)
async def test_a_task_has_previews_when_it_asks_and_the_pool_makes_them(
    tmp_path: Path, *, preview: bool | None, pool: int, every: int
) -> None:
    bench = FlowBench(tmp_path, image={"preview_every_steps": pool})
    bench.engine.fails = False
    await bench.run(task_record(json.dumps(TASK | ({} if preview is None else {"preview": preview})).encode()))
    assert bench.engine.inputs is not None
    assert bench.engine.inputs.preview_every_steps == every
