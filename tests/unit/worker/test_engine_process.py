"""The engine as a real child process behind a real socket pair: with the tiny model, and with a stand-in for it."""

import contextlib
import io
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fluxpool_contract.messages import EmbedParameters
from fluxpool_worker.engine.protocol import (
    Cancel,
    Device,
    DeviceFree,
    EncodedImage,
    EnginePath,
    EngineSpec,
    Failed,
    FailureKind,
    Generate,
    Generated,
    LoadFailed,
    Preview,
    Started,
    Step,
)
from fluxpool_worker.image_parameters import read_parameters
from fluxpool_worker.marks import XMP_PNG_KEYWORD, DigitalSourceType
from kit.engines.engine import (
    DEADLINE_SECONDS,
    INPUTS,
    REAL_ENGINE,
    SECRET_PROMPT,
    Engine,
    StartEngine,
    ends,
    the_end,
)


@pytest.fixture(scope="module")
def real(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One engine with the tiny model, for the tests that do not end it."""
    engine = Engine(REAL_ENGINE, stderr=tmp_path_factory.mktemp("engine") / "engine.log")
    with contextlib.closing(engine):
        ready = engine.load(EngineSpec(model=str(tiny_checkpoint), device=Device.CPU, offline=True))
        assert ready.model == tiny_checkpoint.name
        assert ready.device == "cpu"
        assert list(ready.phase_seconds) == ["imports", "weights", "kernels", "warm_up"]
        assert 0 < sum(ready.phase_seconds.values()) <= ready.load_seconds
        yield engine


def test_previews_reach_the_agent_as_small_files_of_their_steps(real: Engine) -> None:
    real.send(Generate(11, replace(INPUTS, steps=4, n=2, preview_every_steps=1)))
    messages = real.receive_until(ends(11))
    previews = [message for message in messages if isinstance(message, Preview)]
    assert previews
    for preview in previews:
        assert (preview.job_id, preview.total_steps, preview.index) == (11, 8, (preview.step - 1) // 4)
        with Image.open(io.BytesIO(preview.payload)) as picture:
            assert (picture.format, picture.size) == ("WEBP", (256, 256))


def test_jobs_run_in_order_and_free_the_device_before_their_images_are_ready(real: Engine) -> None:
    real.send(Generate(1, replace(INPUTS, n=2, embedded={"request_id": "req_1"})))
    real.send(Generate(2, replace(INPUTS, seed=9, output_format="webp")))
    messages = real.receive_until(ends(2))
    if not any(ends(1)(message) for message in messages):
        messages += real.receive_until(ends(1))

    of_device = [message for message in messages if not isinstance(message, Generated)]
    assert of_device == [
        Started(1),
        *(Step(1, step, 4) for step in (1, 2, 3, 4)),
        DeviceFree(1),
        Started(2),
        Step(2, 1, 2),
        Step(2, 2, 2),
        DeviceFree(2),
    ]
    for job_id in (1, 2):
        assert messages.index(DeviceFree(job_id)) < messages.index(the_end(messages, job_id))
    first, second = the_end(messages, 1), the_end(messages, 2)
    assert isinstance(first, Generated)
    assert isinstance(second, Generated)
    assert set(first.timings_ms) == {"text_encode", "denoise", "vae", "image_encode"}
    assert [(image.index, image.seed, image.content_type) for image in first.images] == [
        (0, 1, "image/png"),
        (1, 2, "image/png"),
    ]
    assert read_parameters(first.images[1].payload) == {
        "prompt": SECRET_PROMPT,
        "negative_prompt": None,
        "width": 64,
        "height": 64,
        "steps": 2,
        "seed": 2,
        "guidance": 3.5,
        "true_cfg_scale": 1.0,
        "model": "flux-tiny",
        "quality": "exact",
        "request_id": "req_1",
    }
    assert first.path is EnginePath.DIFFUSERS
    assert second.images[0].content_type == "image/webp"
    for image in (*first.images, *second.images):
        with Image.open(io.BytesIO(image.payload)) as decoded:
            assert decoded.size == (64, 64)
            assert np.asarray(decoded).std() > 10


def test_a_running_job_is_cancelled_between_steps_and_the_next_is_right(real: Engine) -> None:
    real.send(Generate(10, INPUTS))
    expected = the_end(real.receive_until(ends(10)), 10)
    real.send(Generate(11, replace(INPUTS, width=256, height=256, steps=100)))
    real.receive_until(lambda message: isinstance(message, Step))
    real.send(Cancel(11))
    real.send(Generate(12, INPUTS))

    messages = real.receive_until(ends(12))

    canceled, after = the_end(messages, 11), the_end(messages, 12)
    assert isinstance(canceled, Failed)
    assert canceled.kind is FailureKind.CANCELED
    assert DeviceFree(11) not in messages
    assert isinstance(expected, Generated)
    assert isinstance(after, Generated)
    assert after.images == expected.images


def test_a_waiting_job_is_dropped_at_once(real: Engine) -> None:
    real.send(Generate(20, replace(INPUTS, width=256, height=256, steps=100)))
    real.send(Generate(21, INPUTS))
    real.receive_until(lambda message: isinstance(message, Step))
    real.send(Cancel(21))

    dropped = real.receive_until(ends(21))

    assert dropped[-1] == Failed(21, FailureKind.CANCELED, "canceled while it was waiting")
    assert not any(ends(20)(message) for message in dropped), "it did not wait for the job before it"
    real.send(Cancel(20))
    assert Started(21) not in real.receive_until(ends(20))


def test_parameters_that_the_model_does_not_support_are_invalid(real: Engine) -> None:
    real.send(Generate(30, replace(INPUTS, width=100)))

    failed = the_end(real.receive_until(ends(30)), 30)

    assert failed == Failed(30, FailureKind.INVALID, "width: 100 is not a multiple of 16; use 96")


def test_the_log_is_json_without_prompts(real: Engine) -> None:
    real.send(Generate(40, replace(INPUTS, prompt=f"{SECRET_PROMPT} " * 100)))
    assert isinstance(the_end(real.receive_until(ends(40)), 40), Generated)

    lines = real.log_lines()
    assert "model_ready" in {line["event"] for line in lines}
    noisy = [line for line in lines if line["level"] not in {"info", "debug"} and line["event"] != "job_failed"]
    assert noisy == []
    assert "lighthouse" not in real.stderr.read_text()


def test_a_model_that_cannot_be_loaded_is_explained_and_ends_the_engine(start_engine: StartEngine) -> None:
    engine = start_engine(REAL_ENGINE)
    engine.send(EngineSpec(model="/nowhere/flux"))

    failed = engine.receive()

    assert isinstance(failed, LoadFailed)
    assert failed.message.startswith("model '/nowhere/flux': there is no such folder")
    assert "CheckpointError" in failed.stack
    assert engine.exit_code() == 4


def test_an_unexpected_error_while_loading_is_reported_with_its_class(start_engine: StartEngine) -> None:
    engine = start_engine()
    engine.send(EngineSpec(model="bug"))

    failed = engine.receive()

    assert isinstance(failed, LoadFailed)
    assert failed.message == "RuntimeError: unexpected"
    assert engine.exit_code() == 4


@pytest.mark.parametrize(
    ("prompt", "kind", "message"),
    [
        ("memory", FailureKind.OUT_OF_MEMORY, "too large"),
        ("not finite", FailureKind.NOT_FINITE, "NaN"),
        ("inputs", FailureKind.INVALID, "width: 1 is wrong"),
        ("bug", FailureKind.ERROR, "RuntimeError: xxx"),
    ],
)
def test_a_failed_job_has_its_reason_and_the_engine_continues(
    stand_in_engine: Engine, prompt: str, kind: FailureKind, message: str
) -> None:
    stand_in_engine.send(Generate(1, replace(INPUTS, prompt=prompt)))
    stand_in_engine.send(Generate(2, INPUTS))

    messages = stand_in_engine.receive_until(ends(2))

    failed = the_end(messages, 1)
    assert isinstance(failed, Failed)
    assert failed.kind is kind
    assert failed.message.startswith(message)
    assert len(failed.message) <= 2_000
    assert len(failed.stack.encode()) <= 8 * 1024
    assert bool(failed.stack) == (kind is FailureKind.ERROR)
    assert isinstance(the_end(messages, 2), Generated)


def test_an_image_that_cannot_be_encoded_fails_its_job_alone(stand_in_engine: Engine) -> None:
    stand_in_engine.send(Generate(1, replace(INPUTS, output_format="gif")))
    failed = the_end(stand_in_engine.receive_until(ends(1)), 1)
    assert isinstance(failed, Failed)
    assert failed.kind is FailureKind.INVALID
    assert failed.message.startswith("output_format: 'gif' is unknown")

    stand_in_engine.send(Generate(2, INPUTS))
    assert isinstance(the_end(stand_in_engine.receive_until(ends(2)), 2), Generated)


def test_a_job_from_a_picture_says_so_in_its_file(stand_in_engine: Engine) -> None:
    # As large as many reads of a socket, and no picture: the stand-in does not look at it.
    from_picture = replace(INPUTS, image=bytes(3_000_000), strength=0.25, embed_parameters=EmbedParameters.ALL)
    stand_in_engine.send(Generate(1, from_picture))
    stand_in_engine.send(Generate(2, INPUTS))
    files: dict[int, EncodedImage] = {}
    while len(files) < 2:  # they are encoded side by side, so either may be the first
        message = stand_in_engine.receive()
        if isinstance(message, Generated):
            (files[message.job_id],) = message.images
    image, plain = files[1], files[2]
    assert image.source_type is DigitalSourceType.COMPOSITE_WITH_TRAINED_ALGORITHMIC_MEDIA
    assert image.source_type.value in Image.open(io.BytesIO(image.payload)).info[XMP_PNG_KEYWORD]
    parameters = read_parameters(image.payload)
    assert parameters["strength"] == 0.25
    assert "image" not in parameters
    assert plain.source_type is DigitalSourceType.TRAINED_ALGORITHMIC_MEDIA
    assert "strength" not in read_parameters(plain.payload)


def test_the_device_does_not_wait_for_an_encoding_that_hangs(start_engine: StartEngine) -> None:
    engine = start_engine(environment={"FLUXPOOL_FAULT": "engine-before-generated:hang"})
    engine.load(EngineSpec(model="any"))
    for job_id in (1, 2, 3):
        engine.send(Generate(job_id, INPUTS))

    messages = engine.receive_until(lambda message: message == DeviceFree(3))
    # One of the jobs, whichever was encoded first, never ends; the two others do.
    while sum(isinstance(message, Generated) for message in messages) < 2:
        messages.append(engine.receive())

    assert [message for message in messages if isinstance(message, DeviceFree)] == [
        DeviceFree(1),
        DeviceFree(2),
        DeviceFree(3),
    ]


def test_a_step_that_raises_fails_one_job_with_its_stack(start_engine: StartEngine) -> None:
    engine = start_engine(environment={"FLUXPOOL_FAULT": "engine-step:raise:2"})
    engine.load(EngineSpec(model="any"))
    engine.send(Generate(1, INPUTS))
    engine.send(Generate(2, INPUTS))

    messages = engine.receive_until(ends(2))

    failed = the_end(messages, 1)
    assert isinstance(failed, Failed)
    assert failed.kind is FailureKind.ERROR
    assert failed.message.endswith(": engine-step")
    assert "on_step" in failed.stack
    assert isinstance(the_end(messages, 2), Generated)


def test_a_job_that_kills_the_engine_was_marked_as_started_before(start_engine: StartEngine) -> None:
    engine = start_engine(environment={"FLUXPOOL_FAULT": "engine-job-started:kill:2"})
    engine.load(EngineSpec(model="any"))
    engine.send(Generate(1, INPUTS))
    assert isinstance(the_end(engine.receive_until(ends(1)), 1), Generated)
    assert engine.mark.last_started() == 1
    engine.send(Generate(2, INPUTS))
    engine.send(Generate(3, INPUTS))

    assert engine.exit_code() == -signal.SIGKILL
    assert engine.mark.last_started() == 2


def test_an_agent_that_does_not_read_does_not_block_the_device(stand_in_engine: Engine) -> None:
    larger_than_a_socket_buffer = replace(INPUTS, width=1024, height=1024)
    for job_id in (1, 2, 3):
        stand_in_engine.send(Generate(job_id, larger_than_a_socket_buffer))

    def finished_jobs() -> int:
        return sum(line["event"] == "job_done" for line in stand_in_engine.log_lines())

    deadline = time.monotonic() + DEADLINE_SECONDS
    while finished_jobs() < 3:
        assert time.monotonic() < deadline, "the engine waited for its reader"
        select.select([], [], [], 0.02)
    messages = stand_in_engine.receive_until(ends(3))
    payload_bytes = [len(message.images[0].payload) for message in messages if isinstance(message, Generated)]
    assert min(payload_bytes) > 2 * stand_in_engine.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
