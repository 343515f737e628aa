"""The ledger between releases: unknown fields are ignored, known ones are read."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxpool_contract.kafka.ledger import (
    LedgerEntry,
    committed_model_family,
    committed_topic_id,
    decode_ledger,
    encode_ledger,
    is_ledger,
)

CORPUS = Path(__file__).parents[1] / "corpus" / "ledger"
SHIPPED = {
    17: LedgerEntry(task="task-17", worker="pod-a", started_at=1_700_000_000, crashes=1, generated=True),
    19: LedgerEntry(task="task-19", worker="pod-a", started_at=1_700_000_001, released=True),
}


@pytest.mark.parametrize("name", ["drawn", "family", "generated"])
def test_every_shipped_ledger_is_understood(name: str) -> None:
    assert decode_ledger((CORPUS / f"{name}.json").read_text()) == SHIPPED


def test_the_present_ledger_is_written() -> None:
    written = encode_ledger(SHIPPED, topic_id="fgv80Pr2TvOsX3CJzj4e4w")
    assert written == (CORPUS / "generated.json").read_text().strip()


def test_a_ledger_has_the_family_of_the_model_where_it_is_known() -> None:
    written = encode_ledger(SHIPPED, topic_id="fgv80Pr2TvOsX3CJzj4e4w", model_family="FLUX.1-dev")
    assert written == (CORPUS / "family.json").read_text().strip()
    assert committed_model_family(written) == "FLUX.1-dev"
    assert committed_model_family(encode_ledger({})) is None


@pytest.mark.parametrize("family", ["1", "null", '""', '["a"]', '"' + 64 * "a" + '"'])
def test_what_no_family_is_named_is_none(family: str) -> None:
    assert committed_model_family(f'{{"v":1,"family":{family},"tasks":{{}}}}') is None


def test_unknown_fields_of_a_newer_release_are_ignored() -> None:
    entries = {
        3: LedgerEntry(task="task-3", worker="pod-a", started_at=1_700_000_000, crashes=2),
        5: LedgerEntry(task="task-5", worker="pod-b", started_at=1_700_000_001, released=True, generated=True),
    }
    newer = json.loads(encode_ledger(entries))
    newer["release"] = {"name": "99.1.0"}
    for entry in newer["tasks"].values():
        entry["phase"] = ["denoise", 12]
    assert decode_ledger(json.dumps(newer)) == entries


def test_an_empty_ledger_marks_a_commit_of_fluxpool() -> None:
    assert is_ledger(encode_ledger({}))
    assert decode_ledger(encode_ledger({})) == {}
    too_long = LedgerEntry(task="t" * 5000, worker="pod", started_at=0)
    assert is_ledger(encode_ledger({1: too_long}))


def test_a_ledger_has_the_id_of_its_topic_when_it_is_known() -> None:
    entries = {3: LedgerEntry(task="task-3", worker="pod-a", started_at=1_700_000_000)}
    assert committed_topic_id(encode_ledger(entries, topic_id="fgv80Pr2TvOsX3CJzj4e4w")) == "fgv80Pr2TvOsX3CJzj4e4w"
    assert decode_ledger(encode_ledger(entries, topic_id="fgv80Pr2TvOsX3CJzj4e4w")) == entries
    assert committed_topic_id(encode_ledger(entries)) is None


@pytest.mark.parametrize("metadata", [None, "", "a consumer's own text", "[]", '{"topic": "a"', '{"topic": 1}'])
def test_metadata_without_a_topic_id_has_none(metadata: str | None) -> None:
    assert committed_topic_id(metadata) is None


@pytest.mark.parametrize("metadata", [None, "", "a consumer's own text", "{}", '{"tasks": 1}', "[]", "null"])
def test_metadata_of_another_client_is_no_ledger(metadata: str | None) -> None:
    assert not is_ledger(metadata)


@pytest.mark.parametrize(
    ("written", "started_at", "crashes"),
    [
        ({"started_at": 10**30, "crashes": 10**30}, 253_402_214_400, 1_000_000),
        ({"started_at": -5, "crashes": -5}, 0, 0),
    ],
)
def test_numbers_of_a_ledger_are_clamped(written: dict[str, int], started_at: int, crashes: int) -> None:
    text = json.dumps({"v": 1, "tasks": {"3": {"task": "t", "pod": "p", **written}}})
    assert decode_ledger(text) == {3: LedgerEntry(task="t", worker="p", started_at=started_at, crashes=crashes)}


@given(
    st.text()
    | st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("task", "pod", "started_at", "crashes"), st.integers() | st.floats() | st.text(max_size=3) | st.none()
            ),
        ),
        max_size=2,
    ).map(lambda tasks: json.dumps({"tasks": tasks}))
)
@example("[" * 4000)
def test_any_committed_text_is_a_ledger_or_none(metadata: str) -> None:
    decode_ledger(metadata)
    committed_topic_id(metadata)
