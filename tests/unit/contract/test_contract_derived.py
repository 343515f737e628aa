"""Values derived from a task never change; other releases rely on the expected values here."""

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_contract.messages.derived import (
    claim_key,
    derive_seed,
    first_seen,
    idempotent_request_id,
    image_key,
    manifest_key,
    new_request_id,
    object_prefix,
    record_event_id,
    result_event_id,
    task_digest,
    task_digest_as_written,
)
from fluxpool_contract.messages.headers import Envelope
from fluxpool_contract.messages.task import MAX_IMAGES, MAX_SEED, REQUEST_ID

TASK = (Path(__file__).parents[1] / "corpus" / "task.json").read_bytes()


def test_the_digest_of_a_body_is_frozen() -> None:
    assert task_digest(TASK) == "ce89e452247993a7395ac39b71753cb57e141e6ce57bd98898d6ebebf569bb47"
    assert (
        task_digest('{"request_id":"a","prompt":"ä"}'.encode())
        == "78c0aeb791e825977286e4b163c3023fbdb1dbeaa27df0ddb683252297a8b56e"
    )


@given(st.randoms(use_true_random=False), st.sampled_from([None, 2, "\t"]), st.booleans())
def test_the_digest_ignores_order_white_space_and_escapes(
    random: object, indent: int | str | None, escaped: bool
) -> None:
    body = {**json.loads(TASK), "umlaut": "ä", "nested": {"b": 1, "a": [1, 2]}}
    items = list(body.items())
    random.shuffle(items)  # type: ignore[attr-defined]  # Hypothesis' Random
    reordered = json.dumps(dict(items), indent=indent, ensure_ascii=escaped).encode()
    assert task_digest(reordered) == task_digest(json.dumps(body).encode())


def test_the_digest_distinguishes_values_and_the_order_of_lists() -> None:
    bodies = [b'{"a": 1}', b'{"a": "1"}', b'{"a": 1.5}', b'{"a": [1, 2]}', b'{"a": [2, 1]}', b'{"a": null}', b"{}"]
    assert len({task_digest(body) for body in bodies}) == len(bodies)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a": 4}', b'{"a": 4.0}'),
        (b'{"a": 0}', b'{"a": -0.0}'),
        (b'{"a": 100}', b'{"a": 1e2}'),
        (b'{"a": 100}', b'{"a": 1E+2}'),
        (b'{"a": 0.5}', b'{"a": 5e-1}'),
        (b'{"a": [{"b": 3}]}', b'{"a":[{"b":0.3e1}]}'),
        (b'{"a": 9007199254740993}', b'{"a": 9007199254740993.0}'),
        (b'{"a": 1000000000000000000000000000000}', b'{"a": 1e30}'),
        ('{"a": "ä🦶/"}'.encode(), b'{"\\u0061": "\\u00e4\\ud83e\\uddb6\\/"}'),
        (b'{"a": 1}', b'\xef\xbb\xbf{"a": 1}'),
    ],
)
def test_all_forms_of_one_value_have_one_digest(one: bytes, other: bytes) -> None:
    assert task_digest(one) == task_digest(other)


@given(st.integers(-(2**60), 2**60))
def test_whole_numbers_are_distinguished_exactly(number: int) -> None:
    assert task_digest(b'{"a":%d}' % number) == task_digest(b'{"a":%d.0}' % number)
    assert task_digest(b'{"a":%d}' % number) != task_digest(b'{"a":%d.0}' % (number + 1))


@pytest.mark.parametrize("body", [b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": -1e999999999999}'])
def test_nan_and_infinity_have_no_digest(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a number in JSON|out of range"):
        task_digest(body)


def test_claims_of_every_release_hold_the_digest_of_the_body_as_it_is_written() -> None:
    assert task_digest_as_written(TASK) == task_digest(TASK)
    assert (
        task_digest_as_written(b'{"guidance":4.0,"prompt":"a","request_id":"r"}')
        == "684b054465dbdbefe4ceceece5100684cdee2bb87999ec87cb597f62b97b54b1"
    )


def test_the_seed_of_a_task_without_one_is_frozen() -> None:
    assert derive_seed("req_20250405_flux_001") == 817858804
    assert derive_seed("a") == 3317582039


@given(st.from_regex(REQUEST_ID, fullmatch=True))
def test_a_derived_seed_leaves_room_for_every_image(request_id: str) -> None:
    assert 0 <= derive_seed(request_id) <= MAX_SEED - MAX_IMAGES + 1


def test_ids_are_frozen() -> None:
    assert idempotent_request_id("default", "k1") == "2c264eac-9013-51a7-9026-5e9b6f5cd0bf"
    assert result_event_id("default", "req_20250405_flux_001") == "d35a73ad-9bb8-5af2-9e7c-82891b734de5"
    assert result_event_id("default", "req_20250405_flux_001", 1) == "025fef73-89bf-538b-8730-069e9ffc4ba3"
    assert result_event_id("other", "req_20250405_flux_001") == "bbb4f564-9a24-53d2-8da0-3b6aad920feb"
    assert record_event_id("flux-generation-tasks", 3, 41) == "a8900643-161d-5a19-871e-52f6f716996b"


def test_fresh_ids_are_ordered_and_usable() -> None:
    ids = [new_request_id() for _ in range(100)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 100
    assert all(REQUEST_ID.fullmatch(name) and uuid.UUID(name).version == 7 for name in ids)


def test_object_keys_are_frozen() -> None:
    prefix = object_prefix("default", datetime(2026, 4, 5, 10, tzinfo=UTC), "req-1")
    assert prefix == "default/2026/04/05/req-1"
    assert image_key(prefix, 0, "png") == "default/2026/04/05/req-1/0.png"
    assert manifest_key(prefix) == "default/2026/04/05/req-1/manifest.json"
    assert object_prefix("t", datetime(2026, 12, 31, tzinfo=UTC), "r", 2) == "t/2026/12/31/r~2"
    assert claim_key("default", "req-1") == "_claims/default/req-1.json"
    assert claim_key("default", "req-1", 2) == "_claims/default/req-1~2.json"


def test_the_day_in_a_key_is_the_utc_day() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert object_prefix("t", datetime(2026, 4, 6, 3, tzinfo=tokyo), "r") == "t/2026/04/05/r"


def test_first_seen_is_the_header_and_else_the_records_time() -> None:
    moment = datetime(2026, 4, 5, 10, tzinfo=UTC)
    assert first_seen(Envelope(first_seen=moment), 1) == moment
    assert first_seen(Envelope(), 1_775_383_200_000) == moment
    assert first_seen(Envelope(), -1) == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_timestamp_that_is_no_date_still_has_a_day() -> None:
    assert object_prefix("t", first_seen(Envelope(), 2**62), "r") == "t/9999/12/31/r"
