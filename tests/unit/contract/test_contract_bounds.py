"""Numbers, times and texts of messages stay within the bounds of databases, dates and topics."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from fluxpool_contract.bounds import (
    MAX_COUNT,
    MAX_ERROR_MESSAGE_BYTES,
    MAX_INT64,
    MAX_TIMESTAMP_MS,
    cut_text,
    cut_text_start,
    milliseconds_of,
    moment_at,
    with_zone,
)
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_contract.messages.result import GenerationResult, TaskError
from fluxpool_contract.problems import ErrorClass, ErrorCode

NOW = datetime(2026, 4, 5, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("timestamp_ms", "moment"),
    [
        (1_775_383_200_000, NOW),
        (-1, datetime(1970, 1, 1, tzinfo=UTC)),
        (-(2**63), datetime(1970, 1, 1, tzinfo=UTC)),
        (1_775_383_200, datetime(1970, 1, 21, 13, 9, 43, 200_000, tzinfo=UTC)),
        (1_775_383_200_000_000, datetime(9999, 12, 31, tzinfo=UTC)),
        (2**63 - 1, datetime(9999, 12, 31, tzinfo=UTC)),
        (10**20, datetime(9999, 12, 31, tzinfo=UTC)),
        (float("nan"), datetime(1970, 1, 1, tzinfo=UTC)),
        (float("inf"), datetime(9999, 12, 31, tzinfo=UTC)),
    ],
)
def test_any_timestamp_is_the_nearest_date(timestamp_ms: float, moment: datetime) -> None:
    assert moment_at(timestamp_ms) == moment


_ZONES = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(st.datetimes(timezones=st.none() | _ZONES))
@example(datetime.min.replace(tzinfo=timezone(timedelta(hours=2))))
@example(datetime.max.replace(tzinfo=timezone(-timedelta(hours=2))))
@example(datetime.max.replace(tzinfo=UTC))
def test_any_date_can_be_compared_and_becomes_milliseconds_of_a_date(moment: datetime) -> None:
    usable = with_zone(moment)
    assert (usable < NOW) is not (usable >= NOW)
    usable.astimezone(UTC)
    assert 0 <= milliseconds_of(moment) <= MAX_TIMESTAMP_MS
    assert milliseconds_of(moment_at(milliseconds_of(moment))) == milliseconds_of(moment)


def test_a_date_without_a_zone_is_utc() -> None:
    assert with_zone(NOW.replace(tzinfo=None)) == NOW


@given(st.text(st.characters()), st.integers(3, 40))
def test_a_truncated_text_fits_and_is_a_prefix(text: str, max_bytes: int) -> None:
    cut = cut_text(text, max_bytes)
    assert len(cut.encode()) <= max_bytes
    assert text.encode(errors="replace").decode().startswith(cut.removesuffix("…"))


def test_a_truncated_text_is_marked() -> None:
    assert cut_text("äöü", 6) == "äöü"
    assert cut_text("äöüß", 6) == "ä…"
    assert cut_text_start("äöü", 4) == "öü"


def _progress(**fields: object) -> bytes:
    return json.dumps({"request_id": "a", "type": "step", "at": "2026-04-05T10:00:00Z", **fields}).encode()


@pytest.mark.parametrize("field", ["attempt", "step", "total_steps"])
@pytest.mark.parametrize("number", [-1, MAX_COUNT + 1, 10**20, 10**30, 1e300, "x"])
def test_progress_with_a_number_out_of_bounds_is_none(field: str, number: object) -> None:
    with pytest.raises(ValidationError):
        ProgressEvent.model_validate_json(_progress(**{field: number}))


@pytest.mark.parametrize("request_id", ["", "a" * 129, "a/b", "a" * 300_000, None, 7])
def test_progress_with_an_invalid_id_is_none(request_id: object) -> None:
    with pytest.raises(ValidationError):
        ProgressEvent.model_validate_json(_progress(request_id=request_id))


def test_names_in_progress_are_truncated() -> None:
    event = ProgressEvent.model_validate_json(_progress(worker="w" * 300_000, type="t" * 300_000))
    assert max(map(len, (event.worker or "", event.type))) <= 512


@given(
    st.binary()
    | st.dictionaries(st.text(), st.integers() | st.floats() | st.text()).map(lambda body: json.dumps(body).encode())
)
def test_any_bytes_are_progress_and_a_result_or_a_validation_error(value: bytes) -> None:
    for model in (ProgressEvent, GenerationResult):
        with suppress(ValidationError):
            model.model_validate_json(value)


def _result(**image: object) -> bytes:
    described = {
        "index": 0, "url": "/i", "object": "default/2026/04/05/a/0.png", "width": 64, "height": 64, "seed": 1,
        "format": "png", "content_type": "image/png", "bytes": 10, "sha256": "00", **image,
    }  # fmt: skip
    return json.dumps({"request_id": "a", "image_url": "/i", "status": "success", "images": [described]}).encode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bytes", MAX_INT64 + 1),
        ("seed", -1),
        ("width", MAX_COUNT + 1),
        ("index", 10**20),
        ("object", "/etc/passwd"),
        ("object", "../up.png"),
        ("object", "a//b"),
        ("object", ""),
        ("object", "a\u0000b"),
        ("object", "a" * 1025),
        ("content_type", "text/html"),
        ("content_type", "image/png\r\nx: y"),
        ("url", "h" * 5_000),
    ],
)
def test_a_forged_description_of_an_image_makes_no_result(field: str, value: object) -> None:
    GenerationResult.model_validate_json(_result())
    with pytest.raises(ValidationError):
        GenerationResult.model_validate_json(_result(**{field: value}))


@given(st.text(st.characters(), min_size=1, max_size=3), st.integers(1, 30_000))
def test_the_message_of_an_error_is_truncated(part: str, times: int) -> None:
    error = TaskError(
        code=ErrorCode.INVALID_FIELD, error_class=ErrorClass.INVALID, message=part * times, field=part * times
    )
    assert len(error.message.encode()) <= MAX_ERROR_MESSAGE_BYTES
    assert len((error.field or "").encode()) <= 512
