"""Messages between agent and engine are data only; anything else is refused."""

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_worker.engine.protocol import (
    FRAME_HEADER,
    MAX_HEAD_BYTES,
    AppliedLora,
    Cancel,
    Device,
    DeviceFree,
    EncodedImage,
    EngineSpec,
    Failed,
    FailureKind,
    FromEngine,
    Generate,
    Generated,
    GenerationInputs,
    LoadFailed,
    Preview,
    ProtocolError,
    Ready,
    Shutdown,
    Started,
    Step,
    ToEngine,
    encode_frame,
    head_bytes,
    head_for_agent,
    head_for_engine,
)

IMAGE = EncodedImage(
    index=0, seed=1, width=64, height=64, format="png", content_type="image/png", payload=bytes(range(256))
)
INPUTS = GenerationInputs(prompt="ein Löwe 🦁", width=64, height=64, steps=2, seed=1, embedded={"request_id": "a"})
GENERATED = Generated(7, (IMAGE, replace(IMAGE, index=1, payload=b"")), {"denoise": 1.5}, ("slow",))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def split(frame: list[bytes]) -> tuple[bytes, list[bytes]]:
    length = head_bytes(frame[0][: FRAME_HEADER.size])
    head = frame[0][FRAME_HEADER.size :]
    assert len(head) == length
    return head, frame[1:]


@pytest.mark.parametrize(
    "message",
    [
        Ready("tiny", "cpu", 1.5),
        LoadFailed("no such folder", "Traceback"),
        Started(1),
        Preview(7, 3, 28, 0, b"RIFF"),
        Step(1, 2, 28),
        DeviceFree(1),
        GENERATED,
        Failed(1, FailureKind.OUT_OF_MEMORY, "too large"),
    ],
)
def test_messages_of_an_engine_are_read_as_they_were_written(message: FromEngine) -> None:
    head, payloads = split(encode_frame(message))
    decoded = head_for_agent(head)
    assert decoded.payload_bytes == tuple(map(len, payloads))
    assert decoded.complete(payloads) == message
    with pytest.raises(ProtocolError, match="no message for this end"):
        head_for_engine(head)


@pytest.mark.parametrize(
    "message",
    [
        EngineSpec(model="/models/flux", device=Device.CPU, lora_folder="/models/loras"),
        Generate(1, INPUTS),
        Generate(2, replace(INPUTS, loras=(AppliedLora("fox", -0.5), AppliedLora("snow", 1.0)))),
        Generate(3, replace(INPUTS, image=bytes(range(256)), strength=0.25)),
        Generate(4, replace(INPUTS, image=b"")),
        Cancel(1),
        Shutdown(),
    ],
)
def test_messages_of_an_agent_are_read_as_they_were_written(message: ToEngine) -> None:
    head, payloads = split(encode_frame(message))
    decoded = head_for_engine(head)
    assert decoded.payload_bytes == tuple(map(len, payloads))
    assert decoded.complete(payloads) == message
    with pytest.raises(ProtocolError, match="no message for this end"):
        head_for_agent(head)


@pytest.mark.parametrize("sizes", [[], [1, 1], [-1], [2**40], None])
def test_a_job_that_announces_another_picture_than_its_own_is_refused(sizes: object) -> None:
    head, _ = split(encode_frame(Generate(1, replace(INPUTS, image=b"picture"))))
    with pytest.raises(ProtocolError):
        head_for_engine(json.dumps(json.loads(head) | {"payload_bytes": sizes}).encode())


def test_the_bytes_of_a_picture_are_not_shown() -> None:
    assert "picture" not in repr(replace(INPUTS, image=b"picture"))


def test_text_that_is_no_unicode_does_not_invalidate_a_message() -> None:
    head, _ = split(encode_frame(LoadFailed("no folder m\udcffdel", "")))
    assert head_for_agent(head).message == LoadFailed("no folder m?del", "")


def test_a_pickle_is_never_executed() -> None:
    with pytest.raises(ProtocolError):
        head_for_agent(pickle.dumps(Started(1)))


def test_a_head_that_is_too_large_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        head_bytes(FRAME_HEADER.pack(MAX_HEAD_BYTES + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"payload_bytes": [256]},
        {"payload_bytes": [256, -1]},
        {"payload_bytes": [256, 2**40]},
        {"payload_bytes": "ab"},
        {"type": ["Generated"]},
        {"message": {"job_id": 7}},
        {"message": {"job_id": 7, "images": [], "timings_ms": {"denoise": float("nan")}}},
    ],
)
def test_an_inconsistent_head_is_refused(change: dict[str, Any]) -> None:
    head, _ = split(encode_frame(GENERATED))
    with pytest.raises(ProtocolError):
        head_for_agent(json.dumps(json.loads(head) | change).encode())


@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_refused(encoded: bytes) -> None:
    with pytest.raises(ProtocolError):
        head_for_agent(encoded)


@given(st.sampled_from(["Ready", "Step", "Generated", "Failed", "Started"]), JSON_VALUES, JSON_VALUES)
def test_known_types_with_arbitrary_content_are_read_or_refused(kind: str, body: object, sizes: object) -> None:
    encoded = json.dumps({"type": kind, "payload_bytes": sizes, "message": body}).encode()
    try:
        head_for_agent(encoded)
    except ProtocolError:
        return
