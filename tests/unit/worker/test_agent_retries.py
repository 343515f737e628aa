"""When a record of a retry topic is due, to which topic it returns, and with which headers."""

from datetime import UTC, datetime, timedelta

import pytest
from aiokafka.structs import ConsumerRecord
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.kafka.retries import (
    MAX_JITTER,
    due_at,
    due_seconds,
    not_before_seconds,
    origin_topic,
    parse_delay,
    retry_delays_seconds,
    retry_group,
)
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_contract.messages.headers import Envelope, parse_envelope
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_worker.agent.task.outcome import Action, Spent, Verdict
from fluxpool_worker.agent.task.outgoing_records import due_record, retry_record

NOON = datetime(2026, 4, 5, 12, tzinfo=UTC)
FAILED = Verdict(
    action=Action.RETRY_LATER,
    error_class=ErrorClass.TRANSIENT,
    code=ErrorCode.NOT_FINITE,
    spent=Spent(attempt=2, crashes=1),
    tier=0,
)


def record_with(headers: list[tuple[str, bytes]], *, topic: str = "retry-15s") -> ConsumerRecord:
    return ConsumerRecord(
        topic=topic,
        partition=3,
        offset=41,
        timestamp=int(NOON.timestamp() * 1000),
        timestamp_type=0,
        key=b"key",
        value=b"value",
        checksum=None,
        serialized_key_size=3,
        serialized_value_size=5,
        headers=headers,
    )


def retried(headers: list[tuple[str, bytes]]) -> Envelope:
    original = record_with(headers, topic="tasks")
    sent = retry_record(
        original, parse_envelope(headers), topic="retry-15s", verdict=FAILED, not_before=NOON + timedelta(seconds=16)
    )
    assert (sent.topic, sent.key, sent.value) == ("retry-15s", b"key", b"value")
    return parse_envelope(sent.headers)


def test_a_retried_task_carries_its_counts_its_origin_and_its_time() -> None:
    envelope = retried([("fluxpool-tenant", b"acme"), ("fluxpool-attempt", b"1"), ("own", b"1")])
    assert (envelope.attempt, envelope.crashes, envelope.tenant) == (2, 1, "acme")
    assert envelope.not_before == NOON + timedelta(seconds=16)
    assert envelope.first_seen == NOON
    assert (envelope.origin_topic, envelope.origin_partition, envelope.origin_offset) == ("tasks", 3, 41)
    assert (envelope.error_class, envelope.error_code) == ("transient", "not-finite")


def test_the_origin_and_the_first_seen_time_do_not_change() -> None:
    envelope = retried(
        [
            ("fluxpool-origin-topic", b"tasks"),
            ("fluxpool-origin-partition", b"0"),
            ("fluxpool-origin-offset", b"7"),
            ("fluxpool-first-seen", b"2026-01-01T00:00:00Z"),
        ]
    )
    assert (envelope.origin_topic, envelope.origin_partition, envelope.origin_offset) == ("tasks", 0, 7)
    assert envelope.first_seen == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("named", [b"flux-generation-results", b"tasks-vip", b"retry-15s", b""])
def test_an_origin_header_of_the_producer_is_replaced(named: bytes) -> None:
    headers = [
        ("fluxpool-origin-topic", named),
        ("fluxpool-origin-partition", b"0"),
        ("fluxpool-origin-offset", b"7"),
    ]
    envelope = retried(headers)
    assert (envelope.origin_topic, envelope.origin_partition, envelope.origin_offset) == ("tasks", 3, 41)


def test_a_relayed_task_has_no_further_delay() -> None:
    back = due_record(
        record_with([("fluxpool-not-before", b"2026-04-05T12:00:15Z"), ("fluxpool-attempt", b"2")]), topic="tasks"
    )
    assert (back.topic, back.key, back.value) == ("tasks", b"key", b"value")
    assert back.headers == [("fluxpool-attempt", b"2")]


@pytest.mark.parametrize(
    ("not_before", "waits_seconds"),
    [
        (b"2026-04-05T12:00:16Z", 16),
        (b"2026-04-05T11:00:00Z", -3600),
        (None, 15),
        (b"soon", 15),
        (b"9999-01-01T00:00:00Z", 15 * (1 + MAX_JITTER)),
    ],
    ids=["as-it-says", "long-past", "says-nothing", "malformed", "never"],
)
def test_a_record_is_due_at_its_header_and_never_later_than_its_topics_delay(
    not_before: bytes | None, waits_seconds: float
) -> None:
    headers = [] if not_before is None else [("fluxpool-not-before", not_before), ("fluxpool-tenant", b"?!")]
    due = due_seconds(
        arrived_seconds=NOON.timestamp(), not_before_seconds=not_before_seconds(headers), delay_seconds=15
    )
    assert due == pytest.approx(NOON.timestamp() + waits_seconds)


@given(
    st.lists(st.tuples(st.sampled_from(["fluxpool-not-before", "fluxpool-origin-topic", "x"]), st.binary() | st.none()))
)
def test_any_record_is_due_within_its_delay_and_jitter(
    headers: list[tuple[str, bytes | None]],
) -> None:
    due = due_seconds(arrived_seconds=0.0, not_before_seconds=not_before_seconds(headers), delay_seconds=15)
    assert due <= 15 * (1 + MAX_JITTER)
    assert origin_topic(headers) != ""


def test_the_pool_of_a_record_is_read_from_its_headers() -> None:
    assert origin_topic([("fluxpool-origin-topic", b"tasks-vip"), ("fluxpool-deadline", b"?")]) == "tasks-vip"
    assert origin_topic([("fluxpool-origin-topic", b"a"), ("fluxpool-origin-topic", b"b")]) == "b"
    assert origin_topic([]) is None
    assert origin_topic([("fluxpool-origin-topic", b"\xff")]) is None


@given(st.floats(0.001, 1e5), st.floats(0, 1))
def test_jitter_adds_at_most_a_fifth(delay_seconds: float, jitter: float) -> None:
    waits = (due_at(NOON, delay_seconds, jitter=jitter) - NOON).total_seconds()
    assert delay_seconds - 1e-6 <= waits <= delay_seconds * (1 + MAX_JITTER) + 1e-6


@pytest.mark.parametrize(
    ("topics", "configured", "delays"),
    [
        (TopicNames().retry, (), (15, 120, 900)),
        (("a", "b", "c", "d"), (), (15, 120, 900, 900)),
        (("a-500ms", "b.1h"), (), (0.5, 3600)),
        (("a-15s", "b-2m"), ("300ms", "2s"), (0.3, 2)),
        ((), (), ()),
    ],
)
def test_the_delay_of_a_retry_topic_comes_from_its_setting_its_name_or_its_position(
    topics: tuple[str, ...], configured: tuple[str, ...], delays: tuple[float, ...]
) -> None:
    assert retry_delays_seconds(topics, configured) == delays


@pytest.mark.parametrize("text", ["", "15", "0s", "-1s", "1.5s", "15 s", "s", "1d", "15s\n"])
def test_a_delay_in_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 15s or 2m"):
        parse_delay(text)


def test_a_pool_keeps_the_offsets_of_all_its_retry_topics_in_a_group_named_after_its_first_lane() -> None:
    assert retry_group("flux-worker-group") == "flux-worker-group-retry"


def test_retry_topics_are_laid_out_like_the_tasks() -> None:
    names = TopicNames()
    specs = {spec.name: spec for spec in topic_specs(names)}
    assert set(names.retry) <= specs.keys()
    assert {tuple(specs[name].config.items()) for name in names.retry} == {tuple(specs[names.tasks].config.items())}
