"""The fields of the OpenAI endpoint: docs/reference/openai.md says what becomes of each, and that does."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.image_generate_params import ImageGenerateParamsNonStreaming, ImageGenerateParamsStreaming
from pydantic import ValidationError

from fluxpool_contract.messages.task import Quality
from fluxpool_gateway.http.generation_request import GenerationRequest
from fluxpool_gateway.http.openai.image_request import ImageRequest, NativeRequest, to_native
from fluxpool_gateway.http.problem import ProblemCode, ProblemError

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "openai.md"
ROW = re.compile(r"^\| `(\w+)` \| (taken|mapped|no effect|refused) \| (.+) \|$", re.MULTILINE)
SAMPLES: dict[str, Any] = {
    "prompt": "a fox",
    "n": 3,
    "output_format": "webp",
    "size": "1536x1024",
    "quality": "high",
    "safety_identifier": "ann",
    "user": "ann",
    "response_format": "url",
    "stream": True,
    "partial_images": 2,
    "model": "gpt-image-2",
    "moderation": "low",
    "style": "vivid",
    "complexity": "high",
    "background": "transparent",
    "output_compression": 80,
    "frame_count": 9,
    "frame_duration_ms": 100,
    "svg": {"model": "x"},
}
"""A value of each field that makes a difference."""


def native(**fields: Any) -> NativeRequest:
    """With every native quality allowed."""
    return to_native(ImageRequest.model_validate({"prompt": "a fox"} | fields), qualities=tuple(Quality))


def sent(request: NativeRequest) -> dict[str, Any]:
    """What the task's record gets."""
    return request.request.model_dump(exclude_unset=True, mode="json")


def refusal(**fields: Any) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        native(**fields)
    return caught.value


def test_the_page_has_every_field_of_the_openai_package() -> None:
    fields = ImageGenerateParamsNonStreaming.__annotations__ | ImageGenerateParamsStreaming.__annotations__
    rows = [name for name, _, _ in ROW.findall(PAGE.read_text())]
    assert sorted(rows) == sorted(fields) == sorted(SAMPLES)


@pytest.mark.parametrize(("field", "verdict"), [row[:2] for row in ROW.findall(PAGE.read_text())])
def test_a_field_is_what_the_page_says(field: str, verdict: str) -> None:
    value = SAMPLES[field]
    if verdict == "refused":
        problem = refusal(**{field: value})
        assert (problem.code, problem.status) == (ProblemCode.UNSUPPORTED_PARAMETER, 400)
        assert [named.field for named in problem.fields] == [field]
        return
    more = {"stream": True} if field == "partial_images" else {}
    request = native(**more, **{field: value})
    match verdict:
        case "taken" if field in ImageRequest.model_fields and field in {"stream", "response_format"}:
            # About the response; tests of the route read those.
            assert sent(request) == {"prompt": "a fox"}
            assert not request.warnings
        case "taken":
            assert sent(request) == {"prompt": "a fox", field: value}
        case "mapped":
            assert (
                sent(request).keys() - {"prompt"}
                == {
                    "size": {"width", "height"},
                    "quality": {"quality"},
                    "safety_identifier": {"metadata"},
                    "user": {"metadata"},
                    "partial_images": {"preview"},
                }[field]
            )
            assert not request.warnings
        case _:
            assert sent(request) == {"prompt": "a fox"}
            # Every client sends a model.
            assert [warning.split()[0] for warning in request.warnings] == ([] if field == "model" else [field])


@pytest.mark.parametrize("field", sorted(SAMPLES.keys() - {"prompt"}))
def test_null_is_absent(field: str) -> None:
    request = native(**{field: None})
    assert (sent(request), request.warnings) == ({"prompt": "a fox"}, ())


@pytest.mark.parametrize(
    ("quality", "qualities", "chosen"),
    [
        ("auto", ("exact", "fast"), None),
        ("medium", ("exact", "fast"), None),
        ("standard", ("exact", "fast"), None),
        ("low", ("exact", "fast"), "fast"),
        ("high", ("exact", "fast"), "exact"),
        ("xhigh", ("exact", "fast"), "exact"),
        ("max", ("exact", "fast"), "exact"),
        ("hd", ("exact", "fast"), "exact"),
        ("fast", (), "fast"),
        ("exact", (), "exact"),
    ],
)
def test_qualities_are_native_ones(quality: str, qualities: tuple[str, ...], chosen: str | None) -> None:
    wanted = ImageRequest.model_validate({"prompt": "a fox", "quality": quality})
    request = to_native(wanted, qualities=tuple(map(Quality, qualities)))
    assert sent(request).get("quality") == chosen
    assert not request.warnings


@pytest.mark.parametrize("qualities", [(), (Quality.EXACT,)])
def test_a_quality_that_no_pool_is_known_for_is_the_default_with_a_warning(qualities: tuple[Quality, ...]) -> None:
    wanted = ImageRequest.model_validate({"prompt": "a fox", "quality": "low"})
    request = to_native(wanted, qualities=qualities)
    assert "quality" not in sent(request)
    assert request.warnings == ("quality low is the pool's default: the gateway knows of no pool with fast",)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("1000x1000", "size: width 1000 is not a multiple of 16; the nearest legal sizes are 992 or 1008"),
        ("3840x2160", "size: width must be at most 2048"),
        ("large", "size: must be auto, or WIDTHxHEIGHT such as 1536x1024"),
        ("1024X1024", "size: must be auto, or WIDTHxHEIGHT such as 1536x1024"),
        ("0x64", "size: must be auto, or WIDTHxHEIGHT such as 1536x1024"),
        ("٦٤x64", "size: must be auto, or WIDTHxHEIGHT such as 1536x1024"),
    ],
)
def test_a_size_that_is_not_possible_is_refused_as_size(size: str, said: str) -> None:
    problem = refusal(size=size)
    assert (problem.code, problem.status) == (ProblemCode.INVALID_SIZE, 400)
    assert {named.field for named in problem.fields} == {"size"}
    assert said in problem.detail


def test_size_and_sides_that_differ_are_refused() -> None:
    assert sent(native(size="512x256", width=512))["height"] == 256
    assert refusal(size="512x256", width=256).fields[0].field == "size"


@pytest.mark.parametrize("size", ["1024x1024", "1536x864", "1792x1024", "256x256", "512x512", "1024x1536"])
def test_the_sizes_of_the_openai_api_are_possible(size: str) -> None:
    width, height = map(int, size.split("x"))
    assert sent(native(size=size)) == {"prompt": "a fox", "width": width, "height": height}


def test_native_fields_may_stand_beside() -> None:
    request = native(seed=7, num_inference_steps=4, guidance_scale=2.0, priority="vip", metadata={"a": "b"}, user="ann")
    assert sent(request) == {
        "prompt": "a fox", "seed": 7, "steps": 4, "guidance": 2.0, "priority": "vip",
        "metadata": {"a": "b", "end_user": "ann"},
    }  # fmt: skip


def test_a_safety_identifier_goes_before_a_user_unless_it_is_empty() -> None:
    assert sent(native(safety_identifier="new", user="old"))["metadata"] == {"end_user": "new"}
    assert sent(native(safety_identifier="", user="old"))["metadata"] == {"end_user": "old"}
    assert "metadata" not in sent(native(user=""))


def test_unknown_fields_are_named_in_warnings_of_bounded_size() -> None:
    request = native(**{"x" * 1000: 1}, **{f"field-{number}": 1 for number in range(1000)})
    assert request.warnings[1] == "field-0 has no effect: it is not a known field"
    assert len(request.warnings) == 20
    assert max(map(len, request.warnings)) < 120


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": " "}, "prompt"),
        ({"prompt": "x" * 10_001}, "prompt"),
        ({"steps": 0}, "steps"),
        ({"metadata": [1]}, "metadata"),
        ({"user": "a\0b"}, "user"),
        ({"safety_identifier": "a\0b"}, "safety_identifier"),
        ({"seed": 2**32 - 1, "n": 2}, "seed"),
        ({"steps": float("nan")}, "steps"),
    ],
)
def test_an_invalid_value_is_a_bad_request_that_names_the_field_as_it_was_sent(
    fields: dict[str, Any], named: str | None
) -> None:
    problem = refusal(**fields)
    assert (problem.code, problem.status) == (ProblemCode.INVALID_REQUEST, 400)
    assert next((field.field for field in problem.fields if field.field), None) == named


@pytest.mark.parametrize(
    "fields", [{"n": 0}, {"n": 9}, {"n": "2"}, {"output_format": "svg"}, {"quality": "best"}, {"partial_images": 4},
               {"response_format": {"type": "url"}}, {"stream": "yes"}, {"user": "x" * 513}, {"size": 1024}],
)  # fmt: skip
def test_other_types_and_values_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        native(**fields)
    assert [error["loc"] for error in caught.value.errors()] == [tuple(fields)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({*ImageRequest.model_fields, *GenerationRequest.model_fields, "guidance_scale", "svg"}))


@given(st.dictionaries(NAMES | st.text(max_size=8), JSON, max_size=6))
def test_any_body_is_a_request_or_a_bad_request(body: dict[str, Any]) -> None:
    problem_found: ProblemError | None = None
    try:
        native(**body)
    except ProblemError as problem:
        problem_found = problem
    except ValidationError:
        # The route's own answer to it is 400.
        pass
    assert problem_found is None or (problem_found.status == 400 and problem_found.fields)
