"""A real worker, a real broker and the tiny pipeline: pictures to start from, LoRAs, qualities, and their refusals."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.task import Quality
from fluxpool_contract.settings.worker import ModelDevice, ModelSettings, QualitySettings
from fluxpool_worker.image_marks import read_marks
from fluxpool_worker.image_parameters import read_parameters
from fluxpool_worker.marks import DigitalSourceType
from kit.brokers.kafka import produce
from kit.waiting import wait_until
from kit.workers.worker import LOOK_SECONDS, UNHURRIED, WorkerBench, task_body, wait_for_step, worker_bench

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

PICTURE = "_inputs/default/halves.png"
LORA = "fox"
STEPS = 8
QUERY = "transformer.transformer_blocks.0.attn.to_q"
"""A layer of the tiny checkpoint, 32 x 32."""


def write_lora(file: Path) -> None:
    numbers = np.random.default_rng(0)
    state = {
        f"{QUERY}.lora_{half}.weight": numbers.normal(size=shape).astype(np.float32)
        for half, shape in (("A", (4, 32)), ("B", (32, 4)))
    }
    save_file(state, file)


def write_picture(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (96, 64), (220, 40, 40))
    picture.paste((40, 40, 220), (48, 0, 96, 64))
    picture.save(file)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(
    bootstrap_servers: str, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path
) -> AsyncIterator[WorkerBench]:
    folder = tmp_path_factory.mktemp("bench")
    loras = folder / "loras"
    loras.mkdir()
    write_lora(loras / f"{LORA}.safetensors")
    async with worker_bench(bootstrap_servers, folder, model=str(tiny_checkpoint), retry_delays=("1s",)) as bench:
        write_picture(bench.images / PICTURE)
        model = ModelSettings(
            id=bench.model,
            device=ModelDevice.CPU,
            offline=True,
            lora_folder=loras,
            quality=QualitySettings(allowed=tuple(Quality)),
        )
        await bench.start_ready(model=model, **UNHURRIED)
        yield bench


async def results_of(bench: WorkerBench, request_id: str, *, count: int = 1) -> list[dict[str, Any]]:
    """That many results of the task; fails when there are more."""

    async def found() -> list[dict[str, Any]]:
        own = [result for result in await bench.results() if result["request_id"] == request_id]
        if len(own) >= count:
            return own
        await asyncio.sleep(LOOK_SECONDS)
        return []

    own: list[dict[str, Any]] = await wait_until(found, deadline_seconds=240, what=f"{count} results of {request_id}")
    assert len(own) == count
    return own


async def dead_letters_of(bench: WorkerBench, request_id: str) -> list[DeadLetter]:
    letters = [DeadLetter.from_headers(record.headers) for record in await bench.records(bench.topics.dead_letters)]
    return [letter for letter in letters if letter.request_id == request_id]


async def send(bench: WorkerBench, request_id: str, *, copies: int = 1, **fields: Any) -> None:
    body = task_body(request_id, **{"steps": STEPS, "seed": 5, **fields})
    await produce(bench.bootstrap_servers, bench.topics.tasks, [(None, body)] * copies, partition=0)


async def image_of(bench: WorkerBench, request_id: str, **fields: Any) -> tuple[dict[str, Any], bytes]:
    """The result of a new task and its one file."""
    await send(bench, request_id, **fields)
    [result] = await results_of(bench, request_id)
    assert result["status"] == "success", result["error"]
    [image] = result["images"]
    return result, (bench.images / image["object"]).read_bytes()


def pixels_of(bench: WorkerBench, result: dict[str, Any]) -> NDArray[np.int64]:
    with Image.open(bench.images / result["images"][0]["object"]) as opened:
        return np.asarray(opened.convert("RGB")).astype(np.int64)


async def test_a_picture_of_the_store_is_started_from(bench: WorkerBench) -> None:
    plain, _ = await image_of(bench, "from-noise")
    result, file = await image_of(bench, "from-picture", image=PICTURE, strength=0.5)

    assert (pixels_of(bench, plain) != pixels_of(bench, result)).any()
    assert read_marks(file).source_type == DigitalSourceType.COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA
    embedded = read_parameters(file)
    assert (embedded["strength"], embedded["steps"]) == (0.5, STEPS)
    assert PICTURE.encode() not in file
    assert result["timings"]["input_image_ms"] > 0
    records = [json.loads(record.value or b"") for record in await bench.records(bench.topics.progress)]
    steps = [event for event in records if event["request_id"] == "from-picture" and event["type"] == "step"]
    assert {event["total_steps"] for event in steps} == {STEPS // 2}


async def test_strength_1_keeps_nothing_of_the_picture(bench: WorkerBench) -> None:
    write_picture(bench.images / "_inputs/default/other.png")
    Image.new("RGB", (64, 64), (0, 255, 0)).save(bench.images / "_inputs/default/green.png")
    one, _ = await image_of(bench, "whole-1", image="_inputs/default/other.png", strength=1)
    other, _ = await image_of(bench, "whole-2", image="_inputs/default/green.png", strength=1)
    assert (pixels_of(bench, one) == pixels_of(bench, other)).all()


async def test_a_copy_of_a_task_has_the_first_result_when_its_picture_is_gone(bench: WorkerBench) -> None:
    picture = bench.images / "_inputs/default/deleted.png"
    write_picture(picture)
    await send(bench, "copied", image="_inputs/default/deleted.png")
    await results_of(bench, "copied")
    picture.unlink()
    await send(bench, "copied", image="_inputs/default/deleted.png")

    first, second = await results_of(bench, "copied", count=2)
    assert first == second
    assert first["status"] == "success"
    assert [path.name for path in bench.stored_images() if path.parent.name == "copied"] == ["0.png"]
    assert await dead_letters_of(bench, "copied") == []


async def test_a_task_whose_engine_dies_starts_from_its_picture_again(bench: WorkerBench) -> None:
    [worker] = bench.workers
    engine = worker.engine_pid()
    fields: dict[str, Any] = {"image": PICTURE, "strength": 0.9, "width": 256, "height": 256, "steps": 60}
    await send(bench, "killed", **fields)
    await wait_for_step(bench, "killed")
    os.kill(engine, signal.SIGKILL)
    [result] = await results_of(bench, "killed")
    assert result["status"] == "success", result["error"]
    assert worker.engine_pid() != engine
    undisturbed, _ = await image_of(bench, "undisturbed", **fields)
    assert (pixels_of(bench, result) == pixels_of(bench, undisturbed)).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"image": "_inputs/default/none.png"},
            "image: there is no _inputs/default/none.png in the pool's storage; put the picture there before",
        ),
        ({"image": "_inputs/acme/cat.png"}, "image: must be below _inputs/default/ in the pool's storage, such as"),
        ({"image": "_inputs/default/notes.png"}, "image: is no PNG, JPEG or WebP file; send a PNG, JPEG or WebP file"),
        ({"quality": "fast"}, "quality: fast is not available on this worker: the device is cpu; use exact"),
        ({"loras": [{"name": "wolf"}]}, f"loras: 'wolf' is unknown; the pool has {LORA}"),
    ],
    ids=["no-object", "another-tenants", "no-picture", "no-device-for-fast", "unknown-lora"],
)
async def test_what_cannot_be_generated_is_refused_by_field_and_remedy(
    bench: WorkerBench, request: pytest.FixtureRequest, fields: dict[str, Any], message: str
) -> None:
    (bench.images / "_inputs/default/notes.png").write_text("these are notes")
    name = f"refused-{request.node.callspec.id}"
    await send(bench, name, copies=2, **fields)
    await image_of(bench, f"after-{name}")

    first, copy = await results_of(bench, name, count=2)
    assert first == copy
    assert (first["status"], first["error"]["code"], first["attempt"]) == ("failed", "invalid-field", 1)
    assert first["error"]["message"].startswith(message)
    assert first["error"]["field"] == message.partition(":")[0]
    assert not first["error"]["retryable"]
    letters = await dead_letters_of(bench, name)
    assert [letter.message for letter in letters] == [first["error"]["message"]] * 2
    assert {letter.error_class for letter in letters} == {"invalid"}
    assert not [path for path in bench.stored_images() if path.parent.name == name]


async def test_a_lora_of_the_pool_is_drawn_with_and_no_other_task_has_it(bench: WorkerBench) -> None:
    before, _ = await image_of(bench, "lora-before")
    result, file = await image_of(bench, "lora", loras=[{"name": LORA, "scale": 1.5}])
    after, _ = await image_of(bench, "lora-after")

    assert read_parameters(file)["loras"] == [{"name": LORA, "scale": 1.5}]
    assert (pixels_of(bench, result) != pixels_of(bench, before)).any()
    assert (pixels_of(bench, after) == pixels_of(bench, before)).all()
