"""Exports of feedback, read back by pandas and pyarrow under the columns of the public data sets."""

import base64
import io
import itertools
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from fluxpool_gateway.feedback.records import read_feedback
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings

EXPORT = "/v1/feedback/export"
TOPIC = "flux-feedback"
OFFSETS = itertools.count()
PICKAPIC = [
    *("jpg_0", "jpg_1", "label_0", "label_1", "caption", "are_different", "has_label", "best_image_uid"),
    *("image_0_uid", "image_1_uid", "model_0", "model_1", "ranking_id", "user_id", "created_at"),
]
FILES = {"one": b"picture one", "two": b"picture two"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    for name, content in FILES.items():
        file = tmp_path / "images" / object_of(name)
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def object_of(name: str, tenant: str = "default") -> str:
    return f"{tenant}/2026/11/30/{name}/0.png"


def image(name: str) -> dict[str, Any]:
    return {"request_id": name, "origin": {"prompt": "a fox", "model": f"flux-{name}", "object": object_of(name)}}


def compared(rating_id: str, a: str, b: str, preferred: str, rater: str = "ann") -> dict[str, Any]:
    return {"rating_id": rating_id, "a": image(a), "b": image(b), "preferred": preferred, "rater_hash": rater}


def rated(rating_id: str, name: str, score: int | None, rater: str = "ann", **more: Any) -> dict[str, Any]:
    said = {"rating_id": rating_id, "rater_hash": rater, "score": score, "thumb": 1, **more}
    return {**said, "request_id": name, "origin": image(name)["origin"]}


def say(gateway: Gateway, *records: dict[str, Any], tenant: str = "default") -> None:
    changes = [
        read_feedback(
            json.dumps({"created_at": "2026-11-30T10:00:00Z", **record}).encode(),
            key=record["rating_id"], tenant=tenant, at_ms=number,
        )
        for number, record in enumerate(records)
    ]  # fmt: skip
    placed = [((TOPIC, 0, next(OFFSETS)), change) for change in changes]
    assert gateway.tasks.apply(placed, {}, now_ms=7) == []


async def exported(gateway: Gateway, layout: str, **params: Any) -> pd.DataFrame:
    """The same by both formats."""
    answers = {}
    for form in ("jsonl", "parquet"):
        answer = await gateway.one.ask(
            "GET", EXPORT, gateway.admin, params={"layout": layout, "format": form, **params}
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-disposition"] == f'attachment; filename="feedback-{layout}.{form}"'
        answers[form] = answer.content
    rows = [json.loads(line) for line in answers["jsonl"].splitlines()]
    table = pq.read_table(io.BytesIO(answers["parquet"]))
    frame = table.to_pandas()
    assert len(rows) == len(frame)
    for row in rows:
        assert list(row) == table.column_names
    for name in table.column_names:
        if name in {"jpg_0", "jpg_1"}:
            read = [None if row[name] is None else base64.b64decode(row[name]) for row in rows]
        elif name == "created_at":
            read = [pd.Timestamp(row[name]) for row in rows]
        else:
            read = [row[name] for row in rows]
        assert read == table.column(name).to_pylist()
    return frame


async def test_a_comparison_is_a_row_of_pickapic_whose_label_says_who_won(gateway: Gateway) -> None:
    say(
        gateway,
        compared("c-1", "one", "two", "a"),
        compared("c-2", "one", "two", "b", rater="bob"),
        # Asked the other way round, with the same winner as the first.
        compared("c-3", "two", "one", "b", rater="eve"),
        compared("c-4", "one", "two", "tie", rater="kim"),
        compared("c-5", "one", "gone", "both_bad"),
    )
    frame = await exported(gateway, "pickapic")
    assert list(frame.columns) == PICKAPIC
    assert list(frame["image_0_uid"]) == ["one/0"] * 3
    assert list(frame["label_0"]) == [1, 0, 1]
    assert list(frame["label_1"]) == [0, 1, 0]
    assert list(frame["best_image_uid"]) == ["one/0", "two/0", "one/0"]
    first = frame.iloc[0]
    assert (first["jpg_0"], first["jpg_1"]) == (FILES["one"], FILES["two"])
    assert (first["caption"], first["model_0"], first["model_1"]) == ("a fox", "flux-one", "flux-two")
    assert (first["ranking_id"], first["user_id"]) == ("c-1", "ann")
    assert first["created_at"] == pd.Timestamp("2026-11-30T10:00:00Z")
    assert frame["has_label"].all()
    assert frame["are_different"].all()


def chosen_by_dpo_trainer(row: Any) -> bytes:
    """As research_projects/diffusion_dpo of diffusers has it: the images change places where `label_0` is 0."""
    pair = [row["jpg_0"], row["jpg_1"]]
    if not row["label_0"]:
        pair.reverse()
    return bytes(pair[0])


async def test_a_dpo_trainer_learns_from_the_image_that_won(gateway: Gateway) -> None:
    say(gateway, compared("c-1", "one", "two", "a"), compared("c-2", "two", "one", "a", rater="bob"))
    frame = await exported(gateway, "pickapic")
    assert [chosen_by_dpo_trainer(row) for _, row in frame.iterrows()] == [FILES["one"], FILES["two"]]


async def test_ties_have_half_a_label_each_where_they_are_asked_for(gateway: Gateway) -> None:
    say(gateway, compared("c-1", "one", "two", "tie"), compared("c-2", "one", "two", "both_bad", rater="bob"))
    assert len(await exported(gateway, "pickapic")) == 0
    frame = await exported(gateway, "pickapic", ties=True)
    assert list(frame["label_0"]) == list(frame["label_1"]) == [0.5, 0.5]
    assert list(frame["best_image_uid"]) == ["tie", "tie"]
    assert len(await exported(gateway, "hpd", ties=True)) == 0


async def test_a_file_that_is_gone_or_of_another_tenant_is_null(gateway: Gateway, tmp_path: Path) -> None:
    theirs = tmp_path / "images" / object_of("theirs", "acme")
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"the secret of acme")
    stolen = compared("c-1", "one", "two", "a")
    stolen["b"]["origin"]["object"] = object_of("theirs", "acme")
    say(gateway, stolen, compared("c-2", "one", "zz-gone", "a"))
    frame = await exported(gateway, "pickapic")
    assert list(frame["jpg_0"]) == [FILES["one"]] * 2
    assert list(frame["jpg_1"]) == [None, None]
    assert frame["are_different"].all()
    assert list((await exported(gateway, "pickapic", images=False))["jpg_0"]) == [None, None]


async def test_a_comparison_is_a_row_of_hpd(gateway: Gateway) -> None:
    say(gateway, compared("c-1", "one", "two", "a"), compared("c-2", "one", "two", "b", rater="bob"))
    frame = await exported(gateway, "hpd")
    assert list(frame.columns) == ["prompt", "file_path", "human_preference", "user_hash"]
    assert [list(paths) for paths in frame["file_path"]] == [[object_of("one"), object_of("two")]] * 2
    assert [list(won) for won in frame["human_preference"]] == [[1, 0], [0, 1]]


async def test_a_rating_is_a_row_of_imagereward_with_its_rank_for_the_rater(gateway: Gateway) -> None:
    say(
        gateway,
        rated("r-1", "one", 2, aspects={"alignment": 3, "fidelity": 1}),
        rated("r-2", "two", 5),
        rated("r-3", "one", 4, rater="bob"),
        rated("r-4", "two", None, rater="bob"),
    )
    frame = await exported(gateway, "imagereward")
    assert list(frame.columns) == [
        "prompt_id", "prompt", "image_path", "rank", "overall_rating", "image_text_alignment_rating", "fidelity_rating",
    ]  # fmt: skip
    ranked = frame[["image_path", "rank", "overall_rating"]].to_numpy().tolist()
    assert ranked == [[object_of("one"), 2, 2], [object_of("two"), 1, 5], [object_of("one"), 1, 4]]
    assert frame["prompt_id"].nunique() == 1
    assert frame["image_text_alignment_rating"].tolist()[0] == 3
    assert frame["fidelity_rating"].tolist()[0] == 1


async def test_an_export_goes_over_many_pages(gateway: Gateway) -> None:
    say(gateway, *(compared(f"c-{number:04}", "one", "two", "ab"[number % 2]) for number in range(2100)))
    frame = await exported(gateway, "hpd")
    assert [next(iter(won)) for won in frame["human_preference"]] == [1, 0] * 1050
    # Those that became ratings are comparisons no longer.
    say(gateway, *(rated(f"c-{number:04}", "one", 1) for number in range(20, 2100)))
    frame = await exported(gateway, "pickapic")
    assert list(frame["ranking_id"]) == [f"c-{number:04}" for number in range(20)]


async def test_an_export_has_the_columns_also_without_rows(gateway: Gateway) -> None:
    say(gateway, compared("c-1", "one", "two", "a"), rated("r-1", "one", 4), tenant="acme")
    for layout in ("pickapic", "hpd", "imagereward"):
        frame = await exported(gateway, layout)
        assert len(frame) == 0
        assert len(frame.columns) > 3


async def test_what_an_export_needs_is_said(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    every_other = await gateway.create("submit", "read", "cancel", "rate")
    assert (await gateway.one.ask("GET", EXPORT, every_other)).status_code == 403
    for params in ({"layout": "coco"}, {"format": "csv"}, {"since": "now"}):
        assert (await gateway.one.ask("GET", EXPORT, gateway.admin, params=params)).status_code == 422
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    answer = await gateway.one.ask("GET", EXPORT, gateway.admin, params={"format": "parquet"})
    assert answer.status_code == 422
    assert answer.json()["errors"] == [
        {"pointer": "#/format", "detail": "this gateway has no pyarrow; install fluxpool[parquet] there, or use jsonl"}
    ]
    assert (await gateway.one.ask("GET", EXPORT, gateway.admin)).status_code == 200
