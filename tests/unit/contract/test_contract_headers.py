"""Envelopes and dead letters as record headers."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fluxpool_contract.header_names import TYPE_COMPLETED
from fluxpool_contract.messages.dead_letter import MAX_ERROR_TEXT_BYTES, MAX_STACK_BYTES, DeadLetter, Disposition
from fluxpool_contract.messages.headers import (
    MAX_HEADER_COUNT,
    Envelope,
    check_tenant,
    cloud_event_headers,
    format_time,
    parse_envelope,
    parse_time,
    render_envelope,
)
from fluxpool_contract.problems import MAX_PROBLEMS, ErrorClass, ErrorCode, InvalidTaskError

NOW = datetime(2026, 4, 5, 10, 0, 0, 250_000, tzinfo=UTC)

_moments = st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(9998, 1, 1)).map(  # noqa: DTZ001 - made aware
    lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
)
_text = st.none() | st.text(st.characters(codec="utf-8"), max_size=30)
_count = st.integers(0, MAX_HEADER_COUNT)
_envelopes = st.builds(
    Envelope,
    attempt=st.integers(1, MAX_HEADER_COUNT),
    crashes=_count,
    epoch=_count,
    tenant=st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True),
    priority=_text,
    first_seen=st.none() | _moments,
    deadline=st.none() | _moments,
    not_before=st.none() | _moments,
    replay_of=_text,
    origin_topic=_text,
    origin_partition=st.none() | _count,
    origin_offset=st.none() | st.integers(0, 10**17),
    error_class=_text,
    error_code=_text,
    ce_id=_text,
    ce_source=_text,
    ce_time=st.none() | _moments,
    traceparent=_text,
    tracestate=_text,
)


@given(_envelopes)
def test_an_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    assert parse_envelope(render_envelope(envelope)) == envelope


def test_an_envelope_at_its_defaults_needs_no_headers() -> None:
    assert render_envelope(Envelope()) == []
    assert parse_envelope([]) == Envelope()


def test_unknown_and_null_headers_are_ignored_and_the_last_of_equal_ones_counts() -> None:
    headers = [
        ("x-foreign", b"\xff"),
        ("fluxpool-attempt", b"2"),
        ("fluxpool-attempt", b"3"),
        ("fluxpool-tenant", None),
    ]
    assert parse_envelope(headers) == Envelope(attempt=3)


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("fluxpool-attempt", b"0", "whole number from 1"),
        ("fluxpool-attempt", b"two", "whole number"),
        ("fluxpool-attempt", b"1.5", "whole number"),
        ("fluxpool-attempt", "٣".encode(), "whole number"),
        ("fluxpool-crashes", b"-1", "whole number from 0"),
        ("fluxpool-origin-offset", b"9" * 19, "whole number"),
        ("fluxpool-deadline", b"tomorrow", "RFC 3339"),
        ("fluxpool-deadline", b"2026-04-05T10:00:00", "RFC 3339"),
        ("fluxpool-first-seen", b"\xff", "RFC 3339"),
        ("fluxpool-tenant", b"../up", "begin with a letter or digit"),
        ("fluxpool-tenant", b"", "1 to 63 characters"),
        ("fluxpool-priority", b"\xff", "must be UTF-8 text; correct the header or leave it out"),
        ("fluxpool-priority", b"v" * 513, "at most 512 bytes"),
        ("fluxpool-attempt", b"1000001", "from 1 to 1000000"),
        ("fluxpool-tenant", b"caf\xe9", "1 to 63 characters"),
    ],
)
def test_a_malformed_header_is_named_with_the_correct_form(name: str, raw: bytes, words: str) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        parse_envelope([(name, raw)], request_id="req-1")
    assert (caught.value.code, caught.value.request_id) == (ErrorCode.INVALID_HEADER, "req-1")
    assert [problem.field for problem in caught.value.problems] == [name]
    assert words in str(caught.value)


def test_all_malformed_headers_are_named_at_once() -> None:
    with pytest.raises(InvalidTaskError) as caught:
        parse_envelope([("fluxpool-attempt", b"x"), ("fluxpool-deadline", b"y")])
    assert [problem.field for problem in caught.value.problems] == ["fluxpool-attempt", "fluxpool-deadline"]


_INFORMATION = ("ce_id", "ce_source", "ce_time", "ce_type", "traceparent", "tracestate", "content-type", "x-app")


@pytest.mark.parametrize("name", _INFORMATION)
@pytest.mark.parametrize("raw", [b"/caf\xe9", b"\xff\xfe", b"yesterday" * 1000, b"0001-01-01T00:00:00+01:00"])
def test_a_foreign_header_never_refuses_its_task(name: str, raw: bytes) -> None:
    envelope = parse_envelope([(name, raw), ("fluxpool-attempt", b"2")])
    assert (envelope.attempt, envelope.ce_time) == (2, None)


@given(st.lists(st.tuples(st.sampled_from(_INFORMATION) | st.text(), st.none() | st.binary())))
def test_only_fluxpool_headers_can_refuse(headers: list[tuple[str, bytes | None]]) -> None:
    parse_envelope([(name, raw) for name, raw in headers if not name.startswith("fluxpool-")])


def test_a_foreign_header_is_passed_on_truncated() -> None:
    assert parse_envelope([("tracestate", b"a" * 1024)]).tracestate == "a" * 1024
    assert parse_envelope([("tracestate", b"a" * 1025)]).tracestate is None


def test_thousands_of_malformed_headers_are_counted_and_not_listed() -> None:
    with pytest.raises(InvalidTaskError) as caught:
        parse_envelope([("fluxpool-attempt", b"x")] * 5_000)
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert str(caught.value).endswith("and 4,980 more")


def test_times_are_written_in_utc_and_need_a_zone() -> None:
    assert format_time(NOW) == "2026-04-05T10:00:00.250Z"
    assert parse_time("2026-04-05T12:00:00.250+02:00") == NOW
    with pytest.raises(ValueError, match="zone"):
        format_time(NOW.replace(tzinfo=None))
    with pytest.raises(ValueError, match="Z or an offset"):
        parse_time("2026-04-05T10:00:00")


@pytest.mark.parametrize("tenant", ["", "-a", "A", "a_b", "_claims", "a/b", "a" * 64])
def test_a_tenant_that_cannot_begin_an_object_key_is_refused(tenant: str) -> None:
    with pytest.raises(ValueError, match="1 to 63 characters"):
        check_tenant(tenant)


def test_cloud_event_attributes_are_complete() -> None:
    headers = dict(
        cloud_event_headers(event_id="e", event_type=TYPE_COMPLETED, source="/worker/a", subject="req-1", time=NOW)
    )
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"e",
        "ce_type": b"dev.fluxpool.generation.completed.v1",
        "ce_source": b"/worker/a",
        "ce_time": b"2026-04-05T10:00:00.250Z",
        "ce_subject": b"req-1",
        "content-type": b"application/json",
    }


def _dead_letter(*, message: str = "m", stack: str | None = None) -> DeadLetter:
    return DeadLetter(
        origin_topic="flux-generation-tasks",
        origin_partition=3,
        origin_offset=41,
        origin_timestamp_ms=-1,
        disposition=Disposition.INVALID,
        error_class=ErrorClass.INVALID,
        error_code=ErrorCode.INVALID_FIELD,
        message=message,
        stack=stack,
        attempts=1,
        failed_at=NOW,
    )


def test_a_dead_letter_is_read_as_it_was_written() -> None:
    dead_letter = _dead_letter(stack="Traceback")
    assert DeadLetter.from_headers(dead_letter.to_headers([])) == dead_letter


def test_the_originals_headers_stay_in_order_before_the_dead_letters() -> None:
    original = [("b", b"\xff\x00"), ("a", b"1"), ("a", b"2"), ("fluxpool-attempt", b"3")]
    headers = _dead_letter().to_headers(original)
    assert headers[:4] == original
    assert all(name.startswith("fluxpool-dlq-") for name, _ in headers[4:])


def test_headers_of_an_earlier_dead_letter_are_replaced() -> None:
    first = _dead_letter(message="first", stack="old").to_headers([("kept", b"1")])
    second = _dead_letter(message="second").to_headers(first)
    assert [name for name, _ in second].count("fluxpool-dlq-message") == 1
    assert dict(second)["fluxpool-dlq-message"] == b"second"
    assert "fluxpool-dlq-stack" not in dict(second)
    assert second[0] == ("kept", b"1")


@given(st.text(min_size=1, max_size=4000), st.text(min_size=1, max_size=12_000))
def test_message_and_stack_are_bounded_in_bytes_and_stay_text(message: str, stack: str) -> None:
    headers = dict(_dead_letter(message=message, stack=stack).to_headers([]))
    assert len(headers["fluxpool-dlq-message"]) <= MAX_ERROR_TEXT_BYTES
    assert len(headers["fluxpool-dlq-stack"]) <= MAX_STACK_BYTES
    headers["fluxpool-dlq-message"].decode()
    headers["fluxpool-dlq-stack"].decode()


def test_a_long_message_keeps_its_beginning_and_a_long_stack_its_end() -> None:
    headers = dict(_dead_letter(message="first" + "夜" * 5000, stack="夜" * 5000 + "last").to_headers([]))
    assert headers["fluxpool-dlq-message"].startswith(b"first")
    assert len(headers["fluxpool-dlq-message"]) > MAX_ERROR_TEXT_BYTES - 3
    assert headers["fluxpool-dlq-stack"].endswith(b"last")
    assert len(headers["fluxpool-dlq-stack"]) > MAX_STACK_BYTES - 3


def test_the_time_of_a_foreign_dead_letter_without_a_zone_is_utc() -> None:
    headers = dict(_dead_letter().to_headers([])) | {"fluxpool-dlq-failed-at": b"2026-04-05T10:00:00"}
    dead_letter = DeadLetter.from_headers(list(headers.items()))
    assert dead_letter.failed_at == datetime(2026, 4, 5, 10, tzinfo=UTC)


def test_a_dead_letter_accepts_any_timestamp_of_its_original() -> None:
    dead_letter = _dead_letter().model_copy(update={"origin_timestamp_ms": 2**63 - 1})
    assert DeadLetter.from_headers(dead_letter.to_headers([])) == dead_letter


def test_a_record_of_another_origin_on_the_topic_is_refused() -> None:
    with pytest.raises(ValidationError, match="origin_topic"):
        DeadLetter.from_headers([("x", b"y")])


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("fluxpool-deadline", b"9999-12-31T23:59:59-01:00"),
        ("fluxpool-first-seen", b"0001-01-01T00:00:00+01:00"),
        ("fluxpool-attempt", b"9" * 5000),
    ],
)
def test_a_value_out_of_range_is_refused(header: str, value: bytes) -> None:
    with pytest.raises(InvalidTaskError) as caught:
        parse_envelope([(header, value)])
    assert [problem.field for problem in caught.value.problems] == [header]
    assert "must be" in str(caught.value)
