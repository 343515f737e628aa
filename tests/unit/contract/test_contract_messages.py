"""Records of every release are readable, and the published schemas match the models."""

import ast
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

import fluxpool_contract
from fluxpool_contract.kafka.topics import TopicNames, topic_specs
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.dead_letter import DeadLetter
from fluxpool_contract.messages.decoding import decode_task
from fluxpool_contract.messages.feedback import (
    AspectPreferences,
    ComparedImage,
    Comparison,
    Preference,
    Rating,
    comparison_id_of,
    rating_id_of,
)
from fluxpool_contract.messages.headers import Envelope
from fluxpool_contract.messages.pool_state import PoolState
from fluxpool_contract.messages.progress import ProgressEvent
from fluxpool_contract.messages.resolution import Resolution, is_resolution
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_contract.messages.task import GenerationTask, OutputFormat, Quality, steps_to_run
from fluxpool_contract.problems import InvalidTaskError
from fluxpool_contract.schemas import differing_files, main, render_schemas

CORPUS = Path(__file__).parents[1] / "corpus"
SCHEMAS = Path(__file__).parents[3] / "docs" / "schemas"
NOW = datetime(2026, 4, 5, 10, tzinfo=UTC)

MODELS: dict[str, type[BaseModel]] = {
    "task": GenerationTask,
    "result": GenerationResult,
    "progress-event": ProgressEvent,
    "cancel-command": CancelCommand,
    "dead-letter": DeadLetter,
    "resolution": Resolution,
    "handling-note": Resolution,
    "rating": Rating,
    "comparison": Comparison,
    "pool-state": PoolState,
}


def _model_of(path: Path) -> type[BaseModel]:
    return next(model for name, model in MODELS.items() if path.stem == name or path.stem.startswith(f"{name}-"))


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_record_is_readable(path: Path) -> None:
    _model_of(path).model_validate_json(path.read_bytes())


def test_the_corpus_has_a_record_of_every_message() -> None:
    assert {_model_of(path) for path in CORPUS.glob("*.json")} == set(MODELS.values())


@pytest.mark.parametrize("header", ["fluxpool-dlq-resolution", "fluxpool-dlq-note"])
def test_a_resolution_is_known_by_its_header_and_by_that_of_release_0_1(header: str) -> None:
    assert is_resolution([("ce_id", b"1"), (header, b"replayed")])
    assert not is_resolution([("ce_id", b"1"), ("fluxpool-dlq-message", b"replayed")])


def test_the_plain_task_works_without_any_header() -> None:
    decoded = decode_task((CORPUS / "task.json").read_bytes(), [])
    assert decoded.envelope == Envelope()
    assert decoded.task == GenerationTask(
        request_id="req_20250405_flux_001",
        prompt="a futuristic city at sunset, cyberpunk style, highly detailed",
        negative_prompt="blurry, low resolution",
        width=1024,
        height=1024,
        steps=50,
        seed=12345,
    )


def test_an_id_and_a_prompt_are_enough() -> None:
    task = decode_task((CORPUS / "task-smallest.json").read_bytes(), []).task
    assert (task.width, task.height, task.steps, task.seed, task.n) == (1024, 1024, 28, None, 1)
    assert (task.guidance, task.true_cfg_scale, task.output_format) == (3.5, 1.0, OutputFormat.PNG)


def test_a_quality_is_read_and_left_to_the_pool_when_there_is_none() -> None:
    assert decode_task((CORPUS / "task-fast.json").read_bytes(), []).task.quality is Quality.FAST
    assert decode_task((CORPUS / "task-smallest.json").read_bytes(), []).task.quality is None


def test_a_task_names_loras_with_their_scales() -> None:
    loras = decode_task((CORPUS / "task-loras.json").read_bytes(), []).task.loras
    assert [(lora.name, lora.scale) for lora in loras] == [("watercolour-v2.1", -0.5), ("snow", 1.0)]


def test_a_task_names_a_picture_to_start_from() -> None:
    task = decode_task((CORPUS / "task-image.json").read_bytes(), []).task
    assert (task.image, task.strength, task.steps_to_run) == ("_inputs/default/cat.png", 0.75, 21)
    without = decode_task((CORPUS / "task.json").read_bytes(), []).task
    assert (without.image, without.steps_to_run) == (None, 50)


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [(28, 1.0, 28), (28, 0.6, 17), (4, 0.6, 3), (10, 0.3, 3), (1, 0.5, 1), (100, 0.001, 1), (28, 1e-300, 1)],
)
def test_strength_is_the_share_of_steps_that_is_run(steps: int, strength: float, expected: int) -> None:
    assert steps_to_run(steps, strength=strength) == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        *(
            ({"image": image}, "image")
            for image in (
                "",
                "/etc/passwd",
                "_inputs/default/../x",
                "_inputs/default//x",
                "_inputs/default/",
                "./x",
                "http://x/y",
                "_inputs/default/a\nb",
                7,
                "s3://bucket/../x",
                "file:///",
                "a" * 1025,
            )
        ),
        *(({"image": "_inputs/default/a", "strength": strength}, "strength") for strength in (0, -0.1, 1.01, "0.5")),
        ({"strength": 0.5}, "strength"),
    ],
)
def test_a_picture_that_is_none_is_refused_naming_the_field(fields: dict[str, object], field: str) -> None:
    body = json.dumps({"request_id": "a", "prompt": "b", **fields}).encode()
    with pytest.raises(InvalidTaskError) as refused:
        decode_task(body, [])
    assert refused.value.problems[0].field == field


@pytest.mark.parametrize(
    "loras",
    [
        [{"name": "../secret"}],
        [{"name": "a/b"}],
        [{"name": ".hidden"}],
        [{"name": ""}],
        [{"name": "a", "scale": 2.5}],
        [{"name": "a", "scale": -2.01}],
        [{"name": "a", "strength": 1}],
        [{"name": "a"}, {"name": "a", "scale": 0.5}],
        [{"name": name} for name in "abcde"],
        ["a"],
        "a",
    ],
)
def test_loras_that_are_none_are_refused_naming_the_field(loras: object) -> None:
    with pytest.raises(InvalidTaskError, match="loras"):
        decode_task(json.dumps({"request_id": "a", "prompt": "b", "loras": loras}).encode(), [])


def test_the_plain_result_is_complete() -> None:
    result = GenerationResult.model_validate_json((CORPUS / "result.json").read_bytes())
    assert (result.request_id, result.status) == ("req_20250405_flux_001", ResultStatus.SUCCESS)
    assert result.image_url == "https://images.example.com/req_20250405_flux_001.png"


@pytest.mark.parametrize("name", ["task-full", "result-full"])
def test_fields_of_a_later_release_are_kept(name: str) -> None:
    model = MODELS[name.removesuffix("-full")]
    message = model.model_validate_json((CORPUS / f"{name}.json").read_bytes())
    assert "a_later_field" in (message.model_extra or {})
    assert model.model_validate_json(message.model_dump_json()) == message


def test_a_failed_result_still_says_id_address_and_status() -> None:
    result = GenerationResult(request_id="a", image_url=None, status=ResultStatus.FAILED)
    assert b'"request_id":"a","image_url":null,"status":"failed"' in result.to_json()


def test_the_published_schemas_are_those_of_the_models() -> None:
    assert differing_files(SCHEMAS) == []


def test_a_schema_that_differs_or_is_left_over_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 0
    assert main(["--check", str(tmp_path)]) == 0
    (tmp_path / "rating.schema.json").write_text("{}")
    (tmp_path / "forgotten.schema.json").write_text("{}")
    assert main(["--check", str(tmp_path)]) == 1
    assert "forgotten.schema.json, rating.schema.json" in capsys.readouterr().err


def test_schemas_describe_their_fields() -> None:
    assert '"description": "Denoising steps. When absent' in render_schemas()["generation-task.schema.json"]


def test_a_rating_without_content_is_refused() -> None:
    with pytest.raises(ValidationError, match="give at least one of score, thumb, aspects, artifacts, tags or comment"):
        Rating(rating_id="r", request_id="a", created_at=NOW)


@pytest.mark.parametrize("only", [{"aspects": {"fidelity": 1}}, {"artifacts": 0}, {"tags": ["hands"]}, {"thumb": 0}])
def test_a_rating_needs_no_score(only: dict[str, object]) -> None:
    assert Rating.model_validate({"rating_id": "r", "request_id": "a", "created_at": NOW, **only}).reward is None


@pytest.mark.parametrize(
    ("given", "reward"), [({"score": 1}, 0), ({"score": 4, "thumb": -1}, 0.75), ({"thumb": 1}, 1), ({"thumb": -1}, 0)]
)
def test_a_rating_is_worth_its_score_or_else_its_thumb(given: dict[str, int], reward: float) -> None:
    assert Rating.model_validate({"rating_id": "r", "request_id": "a", "created_at": NOW, **given}).reward == reward


def test_a_comparison_says_the_same_whichever_image_is_named_first() -> None:
    left, right = ComparedImage(request_id="two"), ComparedImage(request_id="one", image_index=1)
    asked = Comparison(
        rating_id="r", created_at=NOW, a=left, b=right, preferred=Preference.A, shown_first="a",
        aspects=AspectPreferences(fidelity=Preference.B, alignment=Preference.TIE),
    )  # fmt: skip
    ordered = asked.in_order
    assert (ordered.a, ordered.b, ordered.preferred, ordered.shown_first) == (right, left, Preference.B, "b")
    assert ordered.aspects == AspectPreferences(fidelity=Preference.A, alignment=Preference.TIE)
    assert ordered.in_order is ordered
    for outcome in (Preference.TIE, Preference.BOTH_BAD):
        assert asked.model_copy(update={"preferred": outcome}).in_order.preferred is outcome


def test_the_id_of_a_judgement_is_that_of_tenant_rater_and_images() -> None:
    one, two = ("one", 0), ("two", 0)
    ids = [
        comparison_id_of("default", "ann", one, two),
        comparison_id_of("default", "bob", one, two),
        comparison_id_of("acme", "ann", one, two),
        comparison_id_of("default", "ann", one, ("two", 1)),
        rating_id_of("default", "ann", one),
        rating_id_of("default", "ann", ("one", 1)),
        rating_id_of("default", "bob", one),
        rating_id_of("acme", "ann", one),
    ]
    assert len(set(ids)) == len(ids)
    assert comparison_id_of("default", "ann", two, one) == ids[0]


def test_a_comparison_needs_two_images() -> None:
    image = ComparedImage(request_id="a", image_index=0)
    with pytest.raises(ValidationError, match="another image than a"):
        Comparison(rating_id="r", created_at=NOW, a=image, b=image, preferred=Preference.A)


def test_topics_have_the_documented_layout() -> None:
    specs = {spec.name: spec for spec in topic_specs(TopicNames())}
    assert set(specs) == {
        "flux-generation-tasks",
        "flux-generation-tasks-vip",
        "flux-generation-results",
        "flux-generation-progress",
        "flux-generation-retry-15s",
        "flux-generation-retry-2m",
        "flux-generation-retry-15m",
        "flux-generation-control",
        "flux-dlq",
        "flux-feedback",
        "flux-pools",
    }
    tasks = specs["flux-generation-tasks"]
    assert (tasks.partitions, tasks.replication_factor) == (6, 3)
    assert tasks.config == {
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "604800000",
        "max.message.bytes": "1048576",
    }
    assert {spec.config["message.timestamp.type"] for spec in specs.values()} == {"LogAppendTime"}
    assert specs["flux-generation-tasks-vip"].config == tasks.config
    assert specs["flux-generation-retry-2m"].config == tasks.config
    assert specs["flux-generation-results"].config["retention.ms"] == "604800000"
    assert specs["flux-generation-progress"].config["retention.ms"] == "21600000"
    assert specs["flux-dlq"].config["retention.ms"] == "2592000000"
    assert int(specs["flux-dlq"].config["max.message.bytes"]) > int(tasks.config["max.message.bytes"])
    assert specs["flux-generation-control"].config["cleanup.policy"] == "compact"
    assert specs["flux-feedback"].config["cleanup.policy"] == "compact"
    assert specs["flux-pools"].config["cleanup.policy"] == "compact,delete"


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name.split(".")[0] for name in names)
            case ast.ImportFrom(module=str(module)):
                yield module.split(".")[0]


def test_the_contract_does_no_input_or_output() -> None:
    folder = Path(fluxpool_contract.__file__).parent
    pure = {"pydantic", "uuid_utils", "fluxpool_contract"}
    doing_io = {"asyncio", "http", "os", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "threading"}
    for path in folder.glob("*.py"):
        for name in _imports(ast.parse(path.read_text())):
            assert name in pure or (name in sys.stdlib_module_names and name not in doing_io), (path.name, name)
