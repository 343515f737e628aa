"""Dead letters over HTTP: projected in any order, each tenant's own, listed, summarised, shown, exported, discarded."""

import base64
import csv
import io
import itertools
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from aiokafka.structs import ConsumerRecord
from sqlalchemy import Engine, select

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.headers import RawHeaders
from fluxpool_contract.messages.resolution import Resolution, ResolutionAction
from fluxpool_contract.tenants import TenantTrust, prove_tenant
from fluxpool_gateway.dead_letters.records import read_dead_letter
from fluxpool_gateway.dead_letters.rows import DeadLetterQuery, list_dead_letters
from fluxpool_gateway.store.tables import dead_letters
from fluxpool_gateway.store.task_state import DeletionSeen
from fluxpool_gateway.store.task_store import LogPosition, TaskStoreWriter
from fluxpool_transport.dlq.export import safe_cell
from fluxpool_transport.dlq.reading import DeadLetterEntry, RecordRef
from kit.gateways.dead_letter_topic import FAILED_MS, dead_letter, letter_at, record_at
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings
from kit.stores.store_file import opened_store

TOPIC = TopicNames().dead_letters
SECRET = b"s" * 32
LETTERS = 5_000


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with opened_store(tmp_path / "tasks.sqlite") as opened:
        yield opened


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def project(engine: Engine, *records: ConsumerRecord, secret: bytes | None = SECRET) -> None:
    trust = TenantTrust(secret=secret)
    changes = [
        ((record.topic, record.partition, record.offset), change)
        for record in records
        if (change := read_dead_letter(record, trust=trust, task_topics=("tasks",))) is not None
    ]
    assert TaskStoreWriter(engine).apply(changes, {}, now_ms=1) == []


def stored(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        return [tuple(row) for row in connection.execute(select(dead_letters).order_by(*dead_letters.primary_key))]


def shown(engine: Engine) -> list[tuple[str, str, tuple[str, ...]]]:
    with engine.begin() as connection:
        found = list_dead_letters(connection, TOPIC, DeadLetterQuery(), newest_first=False, limit=100)
    return [(str(one.entry.ref), one.state, tuple(map(str, one.entry.copies))) for one in found]


def resolution(offset: int, of: int, action: str = "replayed", *, partition: int = 0, at: int = 0) -> ConsumerRecord:
    told = Resolution.model_validate(
        {"partition": partition, "offset": of, "action": action, "at": (FAILED_MS + at) / 1000, "by": "ops"}
    )
    return record_at(offset, told.to_json(), told.to_headers(source="/test"), partition=partition)


# Projecting


def test_a_dead_letter_is_open_until_its_resolution_and_the_last_one_counts(engine: Engine) -> None:
    project(engine, letter_at(0), letter_at(1), resolution(2, of=0))
    assert [state for _, state, _ in shown(engine)] == ["replayed", "open"]
    project(engine, resolution(3, of=0, action="discarded", at=1))
    assert [state for _, state, _ in shown(engine)] == ["discarded", "open"]


def test_records_about_one_failure_are_one_dead_letter_with_one_resolution(engine: Engine) -> None:
    project(engine, letter_at(3, origin_offset=7, request_id="a"), letter_at(0, partition=1))
    project(engine, letter_at(9, origin_offset=7, request_id="a", partition=2), resolution(10, of=9, partition=2))
    assert shown(engine) == [("1/0", "open", ()), ("0/3", "replayed", ("2/9",))]


def test_the_rows_are_equal_in_whatever_order_the_partitions_are_read(tmp_path: Path) -> None:
    same: dict[str, Any] = {"origin_offset": 7, "request_id": "a", "value": b"x"}
    partitions: Sequence[Sequence[ConsumerRecord]] = [
        [letter_at(0, **same), letter_at(1), resolution(2, of=0, at=5)],
        [letter_at(0, partition=1, **same), resolution(1, of=0, action="discarded", partition=1, at=9)],
        [letter_at(4, partition=2, **same)],
    ]
    found = []
    for number, order in enumerate(itertools.permutations(partitions)):
        with opened_store(tmp_path / f"{number}.sqlite") as engine:
            for records in order:
                project(engine, *records)
            found.append(stored(engine))
    assert len(found) == 6
    assert all(rows == found[0] for rows in found)
    assert [row[7] for row in found[0]].count("discarded") == 3


def test_a_deletion_is_final_in_whatever_order_the_partitions_are_read(tmp_path: Path) -> None:
    same: dict[str, Any] = {"origin_offset": 7, "request_id": "a", "message": "of a secret fox"}
    partitions: Sequence[Sequence[ConsumerRecord]] = [
        [letter_at(0, **same), resolution(1, of=0, action="deleted", at=1)],
        [letter_at(0, partition=1, **same), resolution(1, of=0, partition=1, at=9)],
        [letter_at(0, partition=2, origin_offset=8, request_id="b"), resolution(1, of=0, partition=2)],
    ]
    found = []
    for number, order in enumerate(itertools.permutations([*partitions, None])):
        with opened_store(tmp_path / f"{number}.sqlite") as engine:
            for records in order:
                if records is None:
                    # Of another dead letter: the task itself, as its record on the results topic has it.
                    deletion = DeletionSeen(request_id="b", tenant="default")
                    TaskStoreWriter(engine).apply([(("results", 0, 0), deletion)], {}, now_ms=1)
                else:
                    project(engine, *records)
            found.append(stored(engine))
            assert shown(engine) == []
    assert all(rows == found[0] for rows in found)
    kept = [row[dead_letters.columns.keys().index("state") :] for row in found[0]]
    assert {(row[0], *row[-4:]) for row in kept} == {("deleted", None, "", None, None)}, "nothing of it is kept"


def test_odd_records_are_projected_or_passed_over(engine: Engine) -> None:
    project(
        engine,
        record_at(0, None, ()),
        record_at(1, b"\xff\x00", [("fluxpool-dlq-failed-at", b"\xff"), ("x", b"")]),
        letter_at(2, b"\x00", message="a\0b" * 10_000, pool="po\0ol", error_code="a\0"),
        record_at(3, b"{}", [("fluxpool-dlq-resolution", b"replayed")]),
        letter_at(4),
    )
    assert {ref for ref, _, _ in shown(engine)} == {"0/0", "0/1", "0/2", "0/4"}
    assert all("\0" not in text for row in stored(engine) for text in row if isinstance(text, str))


def test_a_topic_that_was_made_again_takes_its_dead_letters_along(engine: Engine) -> None:
    project(engine, letter_at(0))
    store = TaskStoreWriter(engine)
    store.apply([], {(TOPIC, 0): LogPosition(1, "first")}, now_ms=1)
    store.forget_positions(TOPIC)
    assert stored(engine) == []


def test_dead_letters_that_kafka_has_deleted_are_deleted(engine: Engine) -> None:
    project(engine, letter_at(0), letter_at(1), letter_at(0, partition=1))
    TaskStoreWriter(engine).delete_expired_dead_letters({(TOPIC, 0): 1, (TOPIC, 1): 0, ("tasks", 0): 9})
    assert [ref for ref, _, _ in shown(engine)] == ["1/0", "0/1"]


# Tenants


CLAIMS: tuple[tuple[RawHeaders, str], ...] = (
    ((), "default"),
    ([("fluxpool-tenant", b"acme")], "default"),
    ([("fluxpool-tenant", b"acme"), ("fluxpool-tenant-proof", b"0" * 32)], ""),
    ([("fluxpool-tenant", b"\xff\xff")], ""),
    ([("fluxpool-tenant", b"acme"), ("fluxpool-attempt", b"none")], "default"),
)


def test_a_tenant_without_a_valid_proof_is_a_claim(engine: Engine) -> None:
    project(engine, *(letter_at(offset, original=headers) for offset, (headers, _) in enumerate(CLAIMS)))
    assert [row[4] for row in stored(engine)] == [tenant for _, tenant in CLAIMS]


def test_a_proof_counts_whatever_else_is_wrong_with_the_headers(engine: Engine) -> None:
    proof = prove_tenant(SECRET, tenant="acme", request_id="wide-0").encode()
    headers = [("fluxpool-tenant", b"acme"), ("fluxpool-tenant-proof", proof), ("fluxpool-deadline", b"soon")]
    project(engine, letter_at(0, original=headers))
    assert [row[4] for row in stored(engine)] == ["acme"]


async def add_of(gateway: Gateway, tenant: str, offset: int, **fields: Any) -> None:
    secret = gateway.dead_letters.trust.secret
    assert secret is not None
    proof = prove_tenant(secret, tenant=tenant, request_id=f"wide-{offset}").encode()
    headers = [("fluxpool-tenant", tenant.encode()), ("fluxpool-tenant-proof", proof)]
    gateway.dead_letters.add(letter_at(offset, original=headers, **fields))


async def test_a_reader_sees_its_tenants_dead_letters_and_an_admin_all(gateway: Gateway) -> None:
    for offset, tenant in enumerate(("default", "acme", "other")):
        await add_of(gateway, tenant, offset)
    gateway.dead_letters.add(letter_at(3, original=[("fluxpool-tenant", b"\xff")]))
    acme = await gateway.create("read", tenant="acme")

    async def ids(key: str, query: str = "") -> list[str]:
        answer = await gateway.one.ask("GET", f"/v1/dlq{query}", key)
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()["data"]]

    assert await ids(acme) == ["0/1"]
    assert await ids(acme, "?tenant=other") == []
    assert await ids(await gateway.create("read")) == ["0/0"]
    assert await ids(gateway.admin) == ["0/3", "0/2", "0/1", "0/0"]
    assert await ids(gateway.admin, "?tenant=other") == ["0/2"]
    assert (await gateway.one.ask("GET", "/v1/dlq/0/1", acme)).status_code == 200
    others = [await gateway.one.ask("GET", f"/v1/dlq/{place}", acme) for place in ("0/2", "0/3", "0/9", "x", "0%2F2")]
    assert {answer.status_code for answer in others} == {404}
    summary = (await gateway.one.ask("GET", "/v1/dlq/summary", acme)).json()["data"]
    assert [(cause["open"], cause["example"]) for cause in summary] == [(1, "0/1")]
    exported = (await gateway.one.ask("GET", "/v1/dlq/export", acme)).text
    assert [json.loads(line)["id"] for line in exported.splitlines()] == ["0/1"]
    assert (await gateway.one.ask("GET", "/v1/dlq/export?tenant=other", acme)).text == ""


async def test_the_scope_read_resolves_no_dead_letter(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0))
    key = await gateway.create("submit", "read", "cancel", "rate")
    bodies: dict[str, Any] = {"/v1/dlq/replay": {"filter": {}}, "/v1/dlq/0/0/discard": {"reason": "a test"}}
    for path, body in bodies.items():
        answer = await gateway.one.ask("POST", path, key, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    assert (await gateway.one.ask("GET", "/v1/dlq/replays/x", key)).status_code == 403


# Reading


async def page(gateway: Gateway, query: str = "") -> Any:
    answer = await gateway.one.ask("GET", f"/v1/dlq{query}", gateway.admin)
    assert answer.status_code == 200, answer.text
    return answer.json()


FILTERED = {
    "error_class=transient": ["0/1"],
    "error_class=foreign": ["0/4"],
    "error_code=out-of-memory&error_code=invalid-field": ["0/0", "0/1", "0/3"],
    "disposition=exhausted": ["0/1"],
    "pool=fast": ["0/2"],
    "model=none": [],
    "worker=worker-1&pool=default": ["0/0", "0/1", "0/3"],
    "topic=vip": ["0/2"],
    "request_id=wide-3": ["0/3"],
    "state=open": ["0/0", "0/1", "0/2", "0/4"],
    "state=discarded&state=replayed": ["0/3"],
    "since=2026-04-05T10:00:02Z&until=2026-04-05T10:00:03Z": ["0/2"],
}


async def test_filters_select_dead_letters(gateway: Gateway) -> None:
    gateway.dead_letters.add(
        letter_at(0),
        letter_at(1, error_class="transient", error_code="out-of-memory", disposition="exhausted"),
        letter_at(2, pool="fast", origin_topic="vip", error_code="undecodable"),
        letter_at(3),
        record_at(4, b"\xff", [("x", b"y")]),
        resolution(5, of=3, action="discarded"),
    )
    for query, expected in FILTERED.items():
        assert [item["id"] for item in (await page(gateway, f"?order=asc&{query}"))["data"]] == expected, query


async def test_parameters_that_are_not_allowed_are_named(gateway: Gateway) -> None:
    for path in ("/v1/dlq", "/v1/dlq/summary", "/v1/dlq/export"):
        for query in ("since=yesterday", "state=new", "pool=%00", "step=1", "pool=" + "x" * 513):
            answer = await gateway.one.ask("GET", f"{path}?{query}", gateway.admin)
            assert (answer.status_code, len(answer.json()["errors"])) == (422, 1), (path, query)
    for query in ("limit=0", "limit=201", "cursor=x", "cursor=1.2", "cursor=1.2.%D9%A3"):
        answer = await gateway.one.ask("GET", f"/v1/dlq?{query}", gateway.admin)
        assert (answer.status_code, len(answer.json()["errors"])) == (422, 1), query


async def test_a_summary_counts_by_what_is_asked_for(gateway: Gateway) -> None:
    gateway.dead_letters.add(
        letter_at(0),
        letter_at(1, worker="worker-2"),
        letter_at(3600),
        letter_at(3601, pool="fast"),
        resolution(3602, of=0),
    )
    by_cause = (await gateway.one.ask("GET", "/v1/dlq/summary", gateway.admin)).json()
    assert by_cause["has_more"] is False
    assert [(cause["pool"], cause["open"], cause["resolved"], cause["example"]) for cause in by_cause["data"]] == [
        ("default", 2, 1, "0/3600"),
        ("fast", 1, 0, "0/3601"),
    ]
    assert by_cause["data"][0]["first_failed_at"] == "2026-04-05T10:00:00Z"
    assert by_cause["data"][0]["last_failed_at"] == "2026-04-05T11:00:00Z"
    path = "/v1/dlq/summary?by=hour&by=worker&state=open"
    by_hour = (await gateway.one.ask("GET", path, gateway.admin)).json()["data"]
    assert [(cause["hour"], cause["worker"], cause["open"], cause["error_class"]) for cause in by_hour] == [
        ("2026-04-05T11:00:00Z", "worker-1", 2, None),
        ("2026-04-05T10:00:00Z", "worker-2", 1, None),
    ]


async def test_one_dead_letter_has_headers_value_and_stack(gateway: Gateway) -> None:
    gateway.dead_letters.add(
        letter_at(0, original=[("traceparent", b"00-a"), ("raw", b"\xff")], stack="at line 1"),
        letter_at(1, b'\xff{"prompt": "caf\xe9"}', request_id=None),
    )
    first = (await gateway.one.ask("GET", "/v1/dlq/0/0", gateway.admin)).json()
    assert first["headers"] == [{"name": "traceparent", "value": "00-a"}, {"name": "raw", "value": "\\xff"}]
    assert json.loads(first["value"])["width"] == 100
    assert (first["dead_letter"]["stack"], first["value_hex"], first["key"]) == ("at line 1", None, None)
    second = (await gateway.one.ask("GET", "/v1/dlq/0%2F1", gateway.admin)).json()
    assert (second["value"], bytes.fromhex(second["value_hex"])[:2]) == (None, b"\xff{")


# Discarding


async def test_a_discarded_dead_letter_keeps_who_did_it_and_why(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1), resolution(2, of=1))
    for _ in range(2):
        answer = await gateway.one.ask(
            "POST", "/v1/dlq/0/0/discard", gateway.admin, json={"reason": " a client under test "}
        )
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["state"], told["resolution"]["reason"]) == ("discarded", "a client under test")
        assert told["resolution"]["by"]
    assert [found.action for found in gateway.dead_letters.resolutions()] == ["replayed", ResolutionAction.DISCARDED]
    replayed = await gateway.one.ask("POST", "/v1/dlq/0/1/discard", gateway.admin, json={"reason": "late"})
    assert (replayed.status_code, replayed.json()["error"]["code"]) == (409, "already_resolved")


async def test_a_dead_letter_is_not_discarded_without_a_reason(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0))
    bodies: list[Any] = [{}, {"reason": ""}, {"reason": "  "}, {"reason": "x" * 1001}, {"reason": 7}]
    for body in bodies:
        answer = await gateway.one.ask("POST", "/v1/dlq/0/0/discard", gateway.admin, json=body)
        assert answer.status_code == 422, body
    assert gateway.dead_letters.resolutions() == []


# Many


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\\t=1"),
        ("\n=1", "'\\n=1"),
        ("  =1", "'  =1"),
        ("\uff1dcmd", "'\uff1dcmd"),
        ("\ufeff=1", "\\ufeff=1"),
        ("\ud800", "\\ud800"),
        ("a\x1b[31m\nb", "a\\x1b[31m\\nb"),
        ('größer, "q"', 'größer, "q"'),
        (None, ""),
        (7, "7"),
    ],
)
def test_a_cell_is_nothing_that_a_spreadsheet_executes(text: object, cell: str) -> None:
    assert safe_cell(text) == cell


ODD_VALUES: list[tuple[bytes | None, bytes]] = [
    (b"text", 'ein Fuchs, "rot"\r\n=1+1 \u2028\u0085\ufeff\x00 \U0001f98a'.encode()),
    (None, b""),
    (b"\xff\x00", b"\xff" * 90_000),
    (b"=cmd", "\uff1dcmd".encode()),
]


async def test_an_export_with_records_has_their_bytes(gateway: Gateway) -> None:
    for offset, (key, value) in enumerate(ODD_VALUES):
        headers = dead_letter(offset).to_headers([("a", b"1"), ("a", b"\xfe")])
        gateway.dead_letters.add(record_at(offset, value, headers, key=key))
    path = "/v1/dlq/export?records=true"
    body = (await gateway.one.ask("GET", path, gateway.admin)).text
    lines = [json.loads(line) for line in body.splitlines()]
    assert len(lines) == len(ODD_VALUES), "no character of a value ends a line"
    listed = (await page(gateway, "?order=asc"))["data"]
    for line, (key, value), shown_before in zip(lines, ODD_VALUES, listed, strict=True):
        original = line.pop("record")
        assert line == shown_before
        assert (bytes_of(original, "key"), bytes_of(original, "value")) == (key, value)
        assert [(one["name"], bytes_of(one, "value")) for one in original["headers"]] == [("a", b"1"), ("a", b"\xfe")]
    answer = (await gateway.one.ask("GET", f"{path}&format=csv", gateway.admin)).content.decode()
    rows = list(csv.DictReader(io.StringIO(answer, newline="")))
    assert [row["id"] for row in rows] == [line["id"] for line in lines]
    assert [row["key"] for row in rows] == ["text", "", "", "'=cmd"]
    assert rows[3]["value"] == "'\uff1dcmd"
    assert "\\r\\n=1+1" in rows[0]["value"]
    assert base64.b64decode(rows[2]["value_base64"]) == ODD_VALUES[2][1]
    assert [one["name"] for one in json.loads(rows[0]["headers"])] == ["a", "a"]


def bytes_of(original: dict[str, Any], name: str) -> bytes | None:
    text, encoded = original[name], original[f"{name}_base64"]
    assert text is None or encoded is None
    return base64.b64decode(encoded) if encoded is not None else None if text is None else str(text).encode()


async def test_a_record_that_kafka_has_deleted_is_exported_without_its_bytes(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1))
    gateway.dead_letters.expire("0/0")
    body = (await gateway.one.ask("GET", "/v1/dlq/export?records=true", gateway.admin)).text
    assert {line["id"]: line["record"] is None for line in map(json.loads, body.splitlines())} == {
        "0/0": True,
        "0/1": False,
    }


async def test_records_are_exported_to_readers_of_their_tenant_alone(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0))
    submitter = await gateway.create("submit", "rate")
    assert (await gateway.one.ask("GET", "/v1/dlq/export?records=true", submitter)).status_code == 403
    other = await gateway.create("read", tenant="other")
    assert (await gateway.one.ask("GET", "/v1/dlq/export?records=true", other)).text == ""


async def away(entries: Sequence[DeadLetterEntry]) -> AsyncIterator[tuple[DeadLetterEntry, None]]:
    for _ in entries:
        raise KafkaConnectionError("away")
    for entry in entries:
        yield entry, None


async def test_an_export_with_records_is_refused_while_kafka_does_not_answer(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.dead_letters.add(letter_at(0))

    monkeypatch.setattr(gateway.dead_letters, "with_records", away)
    answer = await gateway.one.ask("GET", "/v1/dlq/export?records=true", gateway.admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_unavailable")


async def test_five_thousand_are_listed_page_by_page_filtered_and_exported(gateway: Gateway) -> None:
    gateway.dead_letters.add(
        *(letter_at(offset, pool=("fast", "default")[offset % 2], message="=cmd") for offset in range(LETTERS))
    )
    seen: list[str] = []
    cursor = ""
    while True:
        found = await page(gateway, f"?limit=200&pool=fast{cursor}")
        assert found["matching"] == LETTERS // 2
        seen += [item["id"] for item in found["data"]]
        if not found["has_more"]:
            break
        cursor = f"&cursor={found['next_cursor']}"
    assert seen == [f"0/{offset}" for offset in range(LETTERS - 2, -1, -2)]
    exported = await gateway.one.ask("GET", "/v1/dlq/export?format=csv", gateway.admin)
    assert exported.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(exported.text)))
    assert [row["id"] for row in rows] == [str(RecordRef(0, offset)) for offset in range(LETTERS)]
    assert {row["message"] for row in rows} == {"'=cmd"}
    lines = (await gateway.one.ask("GET", "/v1/dlq/export", gateway.admin)).text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [row["id"] for row in rows]
