"""The record that a replay sends, without Kafka: merge patches, epochs, headers, refusals."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord

from fluxpool_contract.messages.dead_letter import DEAD_LETTER_PREFIX, DeadLetter, Disposition
from fluxpool_contract.messages.headers import parse_envelope
from fluxpool_contract.messages.resolution import Resolution, ResolutionAction
from fluxpool_contract.problems import ErrorClass, ErrorCode
from fluxpool_contract.tenants import TenantKeys, TenantTrust, prove_tenant
from fluxpool_transport.dlq.prepare import (
    PreparedReplay,
    RefusedReplay,
    ReplayChoices,
    check_choices,
    merge_patch,
    patch_value,
    prepare_replay,
)
from fluxpool_transport.dlq.reading import RecordRef, entry_of

NOW = datetime(2026, 4, 5, 12, tzinfo=UTC)
BODY = b'{"request_id": "r-1",  "prompt": "a fox"}'


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        # RFC 7396, appendix A.
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_follows_the_standard(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@pytest.mark.parametrize("value", [None, b"", b"not json", b"\xff", b"[" * 100_000])
def test_a_patch_replaces_a_value_that_is_no_object(value: bytes | None) -> None:
    assert json.loads(patch_value(value, {"prompt": "a fox"})) == {"prompt": "a fox"}


def record(value: bytes | None = BODY, *, key: bytes | None = None, **changes: Any) -> ConsumerRecord:
    original = changes.pop("original", [])
    fields: dict[str, Any] = {
        "origin_topic": "tasks",
        "origin_partition": 1,
        "origin_offset": 2,
        "origin_timestamp_ms": 1_775_000_000_000,
        "disposition": Disposition.EXHAUSTED,
        "error_class": ErrorClass.TRANSIENT,
        "error_code": ErrorCode.GENERATION_FAILED,
        "message": "no",
        "attempts": 3,
        "failed_at": NOW,
        "request_id": "r-1",
    }
    headers = DeadLetter(**{**fields, **changes}).to_headers(original)
    size = len(value or b"")
    return ConsumerRecord("dlq", 0, 7, 1_775_000_000_500, 0, key, value, None, 0, size, tuple(headers))


def prepare(item: ConsumerRecord, **choices: Any) -> PreparedReplay | RefusedReplay:
    choices = {"retry_topics": frozenset({"tasks-retry-15s"}), **choices}
    return prepare_replay(entry_of(item), item, ReplayChoices(**choices), topic="dlq", now=NOW)


def prepared(item: ConsumerRecord, **choices: Any) -> PreparedReplay:
    found = prepare(item, **choices)
    assert isinstance(found, PreparedReplay), found
    return found


def refusal(item: ConsumerRecord, **choices: Any) -> str:
    found = prepare(item, **choices)
    assert isinstance(found, RefusedReplay)
    return "; ".join(map(str, found.problems))


def test_the_task_of_a_dead_letter_that_was_deleted_is_refused_whatever_is_changed() -> None:
    item = record()
    told = Resolution(partition=0, offset=7, action=ResolutionAction.DELETED, at=NOW)
    entry = replace(entry_of(item), resolution=told)
    choices = ReplayChoices(patch={"request_id": "r-2"}, ignore_max_replays=True)
    found = prepare_replay(entry, item, choices, topic="dlq", now=NOW)
    assert isinstance(found, RefusedReplay)
    assert str(found.problems[0]) == "request_id: r-1 was deleted; submit it as a new task"


def test_a_replay_is_the_same_record_whenever_it_is_prepared() -> None:
    item = record(key=b"k", original=[("traceparent", b"00-1")])
    later = prepare_replay(entry_of(item), item, ReplayChoices(), topic="dlq", now=NOW.replace(year=2027))
    assert later == prepared(item)


def test_a_task_returns_to_the_topic_that_it_was_consumed_from() -> None:
    assert prepared(record(original=[("fluxpool-origin-topic", b"flux-generation-results")])).topic == "tasks"


def test_a_replay_resets_the_budgets_and_keeps_the_envelope() -> None:
    original = [
        ("fluxpool-attempt", b"3"),
        ("fluxpool-crashes", b"2"),
        ("fluxpool-not-before", b"2026-04-05T11:00:00Z"),
        ("fluxpool-error-code", b"out-of-memory"),
        ("fluxpool-origin-topic", b"tasks-vip"),
        ("fluxpool-tenant", b"acme"),
        ("fluxpool-priority", b"vip"),
        ("fluxpool-first-seen", b"2026-04-04T23:59:00Z"),
    ]
    found = prepared(record(original=original, origin_topic="tasks-retry-15s"))
    envelope = parse_envelope(found.headers)
    assert (envelope.attempt, envelope.crashes, envelope.not_before, envelope.error_code) == (1, 0, None, None)
    assert (envelope.tenant, envelope.priority, envelope.epoch, envelope.replay_of) == ("acme", "vip", 1, "dlq/0/7")
    assert envelope.first_seen == datetime(2026, 4, 4, 23, 59, tzinfo=UTC)
    assert found.topic == "tasks-vip"
    assert (found.value, found.key) == (BODY, b"r-1")
    assert not any(name.startswith(DEAD_LETTER_PREFIX) for name, _ in found.headers)


def test_each_replay_raises_the_epoch_even_when_its_header_is_dropped() -> None:
    item = record(original=[("fluxpool-epoch", b"1")])
    assert prepared(item).epoch == 2
    assert prepared(item, drop_headers=frozenset({"fluxpool-epoch"})).epoch == 2


def test_a_record_without_a_timestamp_gets_the_time_of_its_failure() -> None:
    envelope = parse_envelope(prepared(record(origin_timestamp_ms=-1)).headers)
    assert envelope.first_seen == NOW


@pytest.mark.parametrize(
    ("item", "choices", "words"),
    [
        (record(b"{}"), {}, "prompt: is required; request_id: is required"),
        (record(), {"patch": {"steps": 0}}, "steps: must be at least 1"),
        (record(original=[("fluxpool-deadline", b"2026-04-05T12:00:00Z")]), {}, "fluxpool-deadline: passed at"),
        (record(original=[("fluxpool-epoch", b"3")]), {}, "was replayed 3 times already"),
        (record(original=[("fluxpool-epoch", b"1")]), {"max_replays": 1}, "was replayed once already"),
        (record(error_code=ErrorCode.ID_CONFLICT), {}, "r-1 belongs to another task; patch in a new request_id"),
        (record(), {"to_topic": "dlq"}, "dlq holds dead letters"),
        (record(origin_topic="dlq"), {}, "dlq holds dead letters"),
        (record(None, object="_dead-letters/x"), {}, "is in the object store under _dead-letters/x"),
    ],
)
def test_an_invalid_replay_is_refused(item: ConsumerRecord, choices: dict[str, Any], words: str) -> None:
    assert words in refusal(item, **choices)


def test_a_pointer_can_be_replayed_with_a_complete_patch() -> None:
    item = record(None, object="_dead-letters/x")
    found = prepared(item, patch={"request_id": "r-1", "prompt": "shorter"})
    assert json.loads(found.value) == {"request_id": "r-1", "prompt": "shorter"}


def test_a_foreign_record_is_refused() -> None:
    item = ConsumerRecord("dlq", 0, 1, 0, 0, None, BODY, None, 0, len(BODY), ())
    assert "is no dead letter of a worker's" in refusal(item)


def test_a_new_id_is_accepted_for_one_dead_letter_only() -> None:
    choices = ReplayChoices(patch={"request_id": "fresh"})
    assert check_choices(choices, count=1) is None
    assert "cannot serve 2 tasks" in str(check_choices(choices, count=2))
    assert check_choices(replace(choices, patch={"steps": 4}), count=2) is None


@pytest.mark.parametrize("text", ["", "2", "2/", "/17", "2/-1", "a/b", "2/17/3", "2/1_0"])
def test_a_malformed_place_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match="partition/offset on the dead-letter topic, such as 2/17"):
        RecordRef.parse(text)
    assert str(RecordRef.parse("2/17")) == "2/17"


KEY = b"k" * 32
PROVEN = [
    ("fluxpool-tenant", b"acme"),
    ("fluxpool-tenant-proof", prove_tenant(KEY, tenant="acme", request_id="r-1").encode()),
]


def prepared_by(trust: TenantTrust, **choices: Any) -> PreparedReplay | RefusedReplay:
    item = record(original=PROVEN)
    return prepare_replay(entry_of(item), item, ReplayChoices(**choices), topic="dlq", now=NOW, trust=trust)


@pytest.mark.parametrize("patch", [None, {"request_id": "r-2"}])
def test_who_has_the_keys_proves_the_tenant_for_the_id_of_now(patch: dict[str, Any] | None) -> None:
    rotated = TenantTrust(shared=TenantKeys((b"n" * 32, KEY)))
    prepared = prepared_by(rotated, patch=patch)
    assert isinstance(prepared, PreparedReplay)
    envelope = parse_envelope(prepared.headers)
    # By the key that signs now alone: the former one may be removed.
    now = TenantTrust(shared=TenantKeys((b"n" * 32,)))
    assert now.owner(envelope, topics=["tasks"], request_id=prepared.request_id) == "acme"


@pytest.mark.parametrize("trust", [TenantTrust(), TenantTrust(secret=b"x" * 32)])
def test_a_proof_that_cannot_be_made_again_is_kept_for_its_id_alone(trust: TenantTrust) -> None:
    kept = prepared_by(trust)
    assert isinstance(kept, PreparedReplay)
    assert PROVEN[1] in kept.headers
    refused = prepared_by(trust, patch={"request_id": "r-2"})
    assert isinstance(refused, RefusedReplay)
    assert [problem.field for problem in refused.problems] == ["fluxpool-tenant-proof"]
    assert "proves the tenant acme for the former request_id alone" in refused.problems[0].message
    dropped = prepared_by(
        trust, patch={"request_id": "r-2"}, drop_headers=frozenset({"fluxpool-tenant-proof", "fluxpool-tenant"})
    )
    assert isinstance(dropped, PreparedReplay)
