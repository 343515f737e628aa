"""The audit of a demo finds and names every lost, duplicate or different result and image."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from fluxpool_cli.local.demo.audit import Audit, audit
from fluxpool_cli.local.demo.demo import prompts
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus, TaskError
from fluxpool_contract.messages.task import GenerationTask
from fluxpool_worker.image_parameters import png_entries, png_with_text

BODY = {"prompt": "a fox", "width": 64, "height": 64, "steps": 2, "seed": 7}
OBJECT = "default/2026/04/05/{request_id}/0.png"


def store(
    folder: Path, request_id: str = "a", *, name: str = OBJECT, changes: Mapping[str, object] | None = None
) -> GenerationResult:
    """Write an image as a worker does and return its result."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "png")
    entries = png_entries(parameters={**BODY, "request_id": request_id, **(changes or {})}, labels={})
    payload = png_with_text(buffer.getvalue(), entries)
    key = name.format(request_id=request_id)
    file = folder / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(payload)
    image = ImageDescription(
        index=0,
        url="http://127.0.0.1/x",
        object=key,
        width=64,
        height=64,
        seed=7,
        format="png",
        content_type="image/png",
        bytes=len(payload),
        sha256=hashlib.sha256(payload).hexdigest(),
    )
    return GenerationResult(request_id=request_id, image_url=image.url, status=ResultStatus.SUCCESS, images=(image,))


def judge(folder: Path, *results: GenerationResult, lag: Mapping[str, int] | None = None) -> Audit:
    return audit({"a": BODY}, results=results, image_folder=folder, lag_records=lag or {})


def test_one_result_with_its_image_is_a_success(tmp_path: Path) -> None:
    found = judge(tmp_path, store(tmp_path))
    assert found == Audit(images=1, succeeded=1, lost=0, doubled=0)
    assert found.line(seconds=12.4) == "demo: 1 images, 1 results success, 0 lost, 0 doubled, 12 s"


def test_a_task_without_a_result_is_lost(tmp_path: Path) -> None:
    found = judge(tmp_path)
    assert (found.succeeded, found.lost, found.problems) == (0, 1, ["a has no result"])


def test_a_success_without_its_file_is_lost(tmp_path: Path) -> None:
    result = store(tmp_path)
    (tmp_path / result.images[0].object).unlink()
    found = judge(tmp_path, result)
    assert (found.images, found.lost) == (0, 1)
    assert "missing" in found.problems[0]


def test_a_second_result_is_a_double(tmp_path: Path) -> None:
    result = store(tmp_path)
    found = judge(tmp_path, result, result)
    assert (found.succeeded, found.doubled, found.problems) == (1, 1, ["a has 2 results"])


@pytest.mark.parametrize("second", ["default/2026/04/06/{request_id}/0.png", "default/2026/04/05/{request_id}~1/0.png"])
def test_a_second_image_file_is_a_double(tmp_path: Path, second: str) -> None:
    store(tmp_path, name=second)
    found = judge(tmp_path, store(tmp_path))
    assert (found.images, found.doubled) == (2, 1)


def test_a_failed_task_is_named_with_its_reason(tmp_path: Path) -> None:
    failed = GenerationResult(
        request_id="a",
        image_url=None,
        status=ResultStatus.FAILED,
        error=TaskError(code="generation-failed", error_class="transient", message="no luck"),
    )
    found = judge(tmp_path, failed)
    assert (found.succeeded, found.problems) == (0, ["a failed: no luck"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", "an owl"), ("seed", 8), ("steps", 3), ("width", 128), ("height", 128), ("request_id", "b")],
)
def test_an_image_with_other_parameters_than_submitted_is_named(tmp_path: Path, field: str, value: object) -> None:
    found = judge(tmp_path, store(tmp_path, changes={field: value}))
    assert len(found.problems) == 1
    assert f"{field} is {value!r} in the image" in found.problems[0]


def test_an_image_changed_after_its_result_is_named(tmp_path: Path) -> None:
    result = store(tmp_path)
    store(tmp_path, changes={"extra": 1})
    assert "sha256" in judge(tmp_path, result).problems[0]


def test_uncommitted_records_are_named(tmp_path: Path) -> None:
    found = judge(tmp_path, store(tmp_path), lag={"flux-worker-group": 2})
    assert found.problems == ["group flux-worker-group has a lag of 2"]


def test_foreign_results_and_images_are_not_counted(tmp_path: Path) -> None:
    foreign = store(tmp_path, "other")
    assert judge(tmp_path, foreign, store(tmp_path)) == Audit(images=1, succeeded=1, lost=0, doubled=0)


@pytest.mark.parametrize("tiny", [True, False])
def test_the_prompts_are_distinct_valid_and_use_both_lanes(tiny: bool) -> None:
    bodies = prompts(24, tiny=tiny)
    assert len({body["prompt"] for body in bodies}) == len({body["seed"] for body in bodies}) == 24
    assert [body.get("priority") for body in bodies].count("vip") == 4
    for body in bodies:
        parameters = {name: value for name, value in body.items() if name != "priority"}
        assert GenerationTask.model_validate({"request_id": "a", **parameters}).prompt == body["prompt"]
