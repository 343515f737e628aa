"""Decoding of tasks, including records that the client library cannot decode."""

import gc
import weakref

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.messages.decoding import DecodedTask
from fluxpool_contract.messages.task import Quality
from fluxpool_contract.problems import ErrorCode, InvalidTaskError
from fluxpool_contract.tenants import TenantTrust
from fluxpool_transport.kafka.undecodable_records import UndecodableRecord, lost_records
from fluxpool_worker.agent.task import task_records
from fluxpool_worker.agent.task.task_records import decode_record, read_task

LANE = TopicPartition("tasks", 3)
BODY = b'{"request_id": "odd", "prompt": "a red kite"}'


def with_contents(value: bytes | None) -> UndecodableRecord:
    record = lost_records(LANE, first=7, last=7, problem="the name of a header is not UTF-8", fetched=value)
    record.has_contents = True
    return record


@pytest.mark.parametrize(
    ("record", "request_id", "message"),
    [
        (
            with_contents(BODY),
            "odd",
            "the record cannot be decoded: the name of a header is not UTF-8; send names and text as UTF-8",
        ),
        (
            with_contents(None),
            None,
            "the record cannot be decoded: the name of a header is not UTF-8; send names and text as UTF-8",
        ),
        (
            lost_records(LANE, first=7, last=7, problem="its CRC is wrong", fetched=BODY),
            None,
            (
                "the batch at offset 7 of tasks-3 cannot be decoded: its CRC is wrong; "
                "the value holds the batch as Kafka keeps it"
            ),
        ),
        (
            lost_records(LANE, first=4, last=7, problem="its CRC is wrong"),
            None,
            "the batch at offsets 4 to 7 of tasks-3 cannot be decoded: its CRC is wrong; its bytes could not be read",
        ),
    ],
    ids=["header name", "tombstone", "batch", "no bytes"],
)
def test_an_undecodable_record_is_refused_with_the_reason(
    record: UndecodableRecord, request_id: str | None, message: str
) -> None:
    with pytest.raises(InvalidTaskError) as refused:
        decode_record(record)

    assert (refused.value.code, refused.value.request_id) == (ErrorCode.UNDECODABLE, request_id)
    assert str(refused.value) == message


def test_an_unexpected_error_of_decoding_refuses_that_record_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_value: bytes | None, _headers: object) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(task_records, "decode_task", fail)
    record = ConsumerRecord("tasks", 3, 7, 0, 0, None, BODY, None, -1, len(BODY), ())
    with pytest.raises(InvalidTaskError, match="cannot be read: RecursionError") as refused:
        decode_record(record)

    assert refused.value.code is ErrorCode.UNDECODABLE


def task_record(value: bytes) -> ConsumerRecord:
    return ConsumerRecord("tasks", 3, 7, 0, 0, None, value, None, -1, len(value), ())


@pytest.mark.parametrize("body", [BODY, BODY[:-1] + b', "quality": "exact"}'], ids=["none", "exact"])
def test_a_quality_that_the_pool_allows_is_taken(body: bytes) -> None:
    assert isinstance(read_task(task_record(body), trust=TenantTrust(), allowed=(Quality.EXACT,)).content, DecodedTask)


def test_a_quality_that_the_pool_does_not_allow_is_refused_by_name() -> None:
    task = read_task(task_record(BODY[:-1] + b', "quality": "fast"}'), trust=TenantTrust(), allowed=(Quality.EXACT,))

    assert isinstance(task.content, InvalidTaskError)
    assert (task.request_id, task.content.code) == ("odd", ErrorCode.INVALID_FIELD)
    assert str(task.content) == "quality: fast is not allowed in this pool; use exact"


@pytest.mark.parametrize(
    "value",
    [
        b'{"request_id": "a/b", "prompt": "a red kite"}',
        b'{"request_id": "odd", "prompt": " "}',
        b'{"request_id": "odd", "prompt": "a red kite", "negative_prompt": "\\u0000"}',
        b'{"request_id": "odd"}',
    ],
)
def test_a_refused_record_is_freed(value: bytes) -> None:
    def keep_refusal() -> weakref.ref[ConsumerRecord]:
        record = task_record(value)
        task = read_task(record, trust=TenantTrust())  # its frame keeps the refusal, and validators' frames lead to it
        assert isinstance(task.content, InvalidTaskError)
        return weakref.ref(record)

    freed = keep_refusal()
    gc.collect()

    assert freed() is None
