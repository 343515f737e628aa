"""What the agent lets an image file say of its task, how it signs the file, and what the result says of it."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fluxpool_contract.messages.task import EmbedParameters
from fluxpool_worker.agent.task.holds import HoldExpiredError
from fluxpool_worker.engine.files.images import encode_image
from fluxpool_worker.engine.protocol import EncodedImage, GenerationInputs
from fluxpool_worker.image_marks import SignatureState, read_marks
from fluxpool_worker.marks.signing import SigningError
from kit.waiting import wait_until
from kit.workers.signing_keys import make_signing_key
from kit.workers.task_flow import TASK, FlowBench, task_record

ALL, NO_PROMPT, NONE = EmbedParameters


def bench_with(folder: Path, *, limit: EmbedParameters | None = None) -> FlowBench:
    bench = FlowBench(folder, image={} if limit is None else {"embed_parameters": limit})
    bench.engine.fails = False
    return bench


@pytest.mark.parametrize(
    ("limit", "asked", "used"),
    [
        (ALL, None, ALL),
        (ALL, ALL, ALL),
        (ALL, NO_PROMPT, NO_PROMPT),
        (ALL, NONE, NONE),
        (NO_PROMPT, None, NO_PROMPT),
        (NO_PROMPT, NO_PROMPT, NO_PROMPT),
        (NO_PROMPT, NONE, NONE),
        (NONE, None, NONE),
        (NONE, NONE, NONE),
        (None, None, NO_PROMPT),
    ],
)
async def test_a_task_may_ask_for_less_than_its_pool_allows(
    tmp_path: Path, limit: EmbedParameters | None, asked: EmbedParameters | None, used: EmbedParameters
) -> None:
    bench = bench_with(tmp_path, limit=limit)
    await bench.run(task_record(json.dumps({**TASK, "embed_parameters": asked}).encode()))

    assert bench.engine.inputs is not None
    assert bench.engine.inputs.embed_parameters is used
    assert [(result["status"], result["warnings"]) for result in bench.results] == [("success", [])]


@pytest.mark.parametrize(("limit", "asked"), [(NO_PROMPT, ALL), (NONE, ALL), (NONE, NO_PROMPT), (None, ALL)])
async def test_a_task_that_asks_for_more_is_told_what_it_gets(
    tmp_path: Path, limit: EmbedParameters | None, asked: EmbedParameters
) -> None:
    bench = bench_with(tmp_path, limit=limit)
    await bench.run(task_record(json.dumps({**TASK, "embed_parameters": asked}).encode()))

    assert bench.engine.inputs is not None
    assert bench.engine.inputs.embed_parameters is (limit or NO_PROMPT)
    [result] = bench.results
    assert result["status"] == "success"
    assert result["warnings"] == [
        f"embed_parameters: {asked} is more than the pool allows; {limit or NO_PROMPT} was used"
    ]


async def test_a_word_that_is_no_choice_is_refused_with_the_choices(tmp_path: Path) -> None:
    bench = bench_with(tmp_path)
    await bench.run(task_record(json.dumps({**TASK, "embed_parameters": "some"}).encode()))

    [result] = bench.results
    assert result["error"]["field"] == "embed_parameters"
    assert "all', 'noPrompt' or 'none" in result["error"]["message"]


def picture(inputs: GenerationInputs) -> EncodedImage:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    return encode_image(pixels, inputs=inputs, index=0, model="flux-tiny")


def signing_bench(folder: Path, *, key_folder: Path | None, **changes: Any) -> FlowBench:
    image = {} if key_folder is None else {"signing_folder": key_folder}
    bench = FlowBench(folder, image=image, **changes)
    bench.engine.fails = False
    bench.engine.encode = picture
    return bench


def stored(bench: FlowBench, image: dict[str, Any]) -> bytes:
    return (bench.folder / str(image["object"])).read_bytes()


async def test_a_pool_without_a_key_says_that_its_files_are_not_signed(tmp_path: Path) -> None:
    bench = signing_bench(tmp_path / "store", key_folder=None)
    await bench.run(task_record())

    [result] = bench.results
    [image] = result["images"]
    assert image["marks"] == ["xmp"]
    assert "signing_ms" not in result["timings"]
    assert read_marks(stored(bench, image)).credentials is None


async def test_the_result_describes_the_signed_file(tmp_path: Path) -> None:
    key = make_signing_key()
    bench = signing_bench(tmp_path / "store", key_folder=key.write(tmp_path / "key"))
    await bench.run(task_record())

    [result] = bench.results
    [image] = result["images"]
    payload = stored(bench, image)
    assert image["marks"] == ["xmp", "c2pa"]
    assert (image["sha256"], image["bytes"]) == (hashlib.sha256(payload).hexdigest(), len(payload))
    assert result["timings"]["signing_ms"] > 0
    found = read_marks(payload, anchors=key.anchor)
    assert found.credentials is not None
    assert found.credentials.state is SignatureState.TRUSTED
    assert found.credentials.source_type == found.source_type
    [manifest] = bench.folder.rglob("manifest.json")
    assert json.loads(manifest.read_bytes())["result"] == result


async def test_a_file_that_was_stored_unsigned_is_not_said_to_be_signed(tmp_path: Path) -> None:
    unsigned = signing_bench(tmp_path / "store", key_folder=None)
    await unsigned.run(task_record())
    for manifest in unsigned.folder.rglob("manifest.json"):
        manifest.unlink()
    bench = signing_bench(tmp_path / "store", key_folder=make_signing_key().write(tmp_path / "key"))
    await bench.run(task_record())

    [image] = bench.results[0]["images"]
    assert image["marks"] == ["xmp"]
    assert image["sha256"] == hashlib.sha256(stored(bench, image)).hexdigest()


async def test_a_file_that_another_worker_signed_keeps_its_mark(tmp_path: Path) -> None:
    folder = make_signing_key().write(tmp_path / "key")
    first = signing_bench(tmp_path / "store", key_folder=folder)
    await first.run(task_record())
    for manifest in first.folder.rglob("manifest.json"):
        manifest.unlink()
    bench = signing_bench(tmp_path / "store", key_folder=folder)
    await bench.run(task_record())

    assert bench.results[0]["images"] == first.results[0]["images"]


async def test_a_worker_tells_at_its_start_that_its_key_cannot_sign(tmp_path: Path) -> None:
    bench = signing_bench(tmp_path / "store", key_folder=tmp_path / "missing")

    with pytest.raises(SigningError, match=r"missing/tls\.crt: cannot be read"):
        await bench.probe_signing()


async def test_no_file_is_stored_unsigned_while_the_key_is_away(tmp_path: Path) -> None:
    folder = make_signing_key().write(tmp_path / "key")
    hidden = (folder / "tls.key").rename(folder / "hidden")
    bench = signing_bench(tmp_path / "store", key_folder=folder)
    running = asyncio.create_task(bench.run(task_record()))
    await wait_until(lambda: bench.held_by == {"signing"}, deadline_seconds=20, what="the task to wait for its key")

    assert not list(bench.folder.rglob("*.png"))
    hidden.rename(folder / "tls.key")
    await running

    assert bench.results[0]["images"][0]["marks"] == ["xmp", "c2pa"]
    assert bench.held_by == set()
    assert bench.engine.jobs == 1, "the image is generated once"


async def test_a_key_that_stays_away_releases_the_task_without_a_file(tmp_path: Path) -> None:
    bench = signing_bench(tmp_path / "store", key_folder=tmp_path / "missing", hold_limit_seconds=0.2)

    with pytest.raises(HoldExpiredError, match=r"signing was unavailable .*/missing/tls\.crt: cannot be read"):
        await bench.run(task_record())

    assert bench.lane.ends[-1] == "released"
    assert bench.results == []
    assert not list(bench.folder.rglob("*.png"))
