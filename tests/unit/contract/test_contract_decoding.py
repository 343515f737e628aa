"""Decoding of bytes to tasks: any input is a task or a named error."""

import gzip
import json
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fluxpool_contract.bounds import MAX_ERROR_MESSAGE_BYTES
from fluxpool_contract.messages.decoding import DecodedTask, decode_task, peek_request_id
from fluxpool_contract.messages.headers import RawHeaders
from fluxpool_contract.messages.task import MAX_TASK_BYTES
from fluxpool_contract.problems import MAX_PROBLEMS, ErrorCode, InvalidTaskError


def _body(**fields: object) -> bytes:
    return json.dumps({"request_id": "req-1", "prompt": "a fox", **fields}).encode()


def _refused(value: bytes | None, headers: RawHeaders = ()) -> InvalidTaskError:
    with pytest.raises(InvalidTaskError) as caught:
        decode_task(value, headers)
    return caught.value


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"width": 1000}, "width", "nearest legal sizes are 992 or 1008"),
        ({"height": 63}, "height", "at least 64"),
        ({"height": 2064}, "height", "at most 2048"),
        ({"width": 2047}, "width", "nearest legal sizes are 2032 or 2048"),
        ({"width": "1024"}, "width", "whole number"),
        ({"width": 1024.5}, "width", "whole number"),
        ({"width": True}, "width", "whole number"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"steps": 101}, "steps", "at most 100"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"seed": 2**32}, "seed", "at most 4294967295"),
        ({"seed": 10**400}, "seed", "at most 4294967295"),
        ({"seed": 2**32 - 1, "n": 2}, "seed", "leaves no room for 2 images"),
        ({"n": 9}, "n", "at most 8"),
        ({"guidance": float("nan")}, "guidance", "finite"),
        ({"guidance": float("inf")}, "guidance", "finite"),
        ({"true_cfg_scale": 0.5}, "true_cfg_scale", "at least 1"),
        ({"prompt": ""}, "prompt", "must not be blank"),
        ({"prompt": " \n"}, "prompt", "must not be blank"),
        ({"prompt": "a\x00b"}, "prompt", "NUL"),
        ({"prompt": None}, "prompt", "must be text"),
        ({"prompt": "x" * 10_001}, "prompt", "at most 10,000 characters"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"metadata": {"a": 1}}, "metadata.a", "must be text"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "at most 16 entries"),
        ({"request_id": ""}, "request_id", "must not be empty"),
        ({"request_id": "../x"}, "request_id", "begin with a letter or digit"),
        ({"request_id": "a~1"}, "request_id", "A-Z a-z 0-9"),
        ({"request_id": "a" * 129}, "request_id", "at most 128 characters"),
        ({"request_id": 7}, "request_id", "must be text"),
    ],
)
def test_a_refused_field_is_named_with_the_remedy(fields: dict[str, object], field: str, words: str) -> None:
    error = _refused(_body(**fields))
    assert error.code is ErrorCode.INVALID_FIELD
    assert [problem.field for problem in error.problems] == [field]
    assert words in str(error)
    assert "pydantic" not in str(error)


def test_all_refused_fields_are_named_at_once() -> None:
    error = _refused(b'{"width": 1000, "steps": 0}')
    assert {problem.field for problem in error.problems} == {"request_id", "prompt", "width", "steps"}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "no value"),
        (b"", "no value"),
        (b"not json", "not valid JSON"),
        ('{"request_id": "a"}'.encode("utf-16"), "encoded as UTF-16; send JSON in UTF-8"),
        ('{"request_id": "a"}'.encode("utf-16-be"), "encoded as UTF-16"),
        ('{"request_id": "a"}'.encode("utf-32"), "encoded as UTF-32"),
        ('{"request_id": "a"}'.encode("utf-32-le"), "encoded as UTF-32"),
        ('{"request_id": "café"}'.encode("latin-1"), "the byte 0xe9 at position 19, which is not UTF-8"),
        (gzip.compress(b"{}", mtime=0), "compressed with gzip; send the JSON itself"),
        (zlib.compress(b"{}"), "compressed with zlib"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd"),
        (b"\x00\x00\x00\x00\x07{}", "schema registry"),
        (b'{"request_id": "a", "prompt": "b"', "not valid JSON"),
        (b'{"request_id": "a", "prompt": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 30_000 + b"]" * 30_000, "nested too deeply"),
        (b'{"request_id": "a", "prompt": "b", "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}", "nested too deeply"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b'"task"', "must be a JSON object"),
        (b'{"request_id": "a", "prompt": "b", "x": ' + b"9" * 5_000 + b"}", "number out of range"),
        (b'{"request_id": "a", "prompt": "b", "x": NaN}', "NaN is not a number in JSON"),
        (b'{"request_id": "a", "prompt": "b", "x": [-Infinity]}', "-Infinity is not a number in JSON"),
        (b'{"request_id": "a", "prompt": "b", "x": 1e999}', "the number 1e999 is out of range"),
    ],
)
def test_a_body_that_is_no_task_is_undecodable(value: bytes | None, words: str) -> None:
    error = _refused(value)
    assert error.code is ErrorCode.UNDECODABLE
    assert words in str(error)


def test_a_byte_order_mark_is_ignored() -> None:
    marked, plain = decode_task(b"\xef\xbb\xbf" + _body(), []), decode_task(_body(), [])
    assert marked.task == plain.task
    assert (marked.digest, marked.value_digest) == (plain.digest, plain.value_digest)
    assert _refused(b"\xef\xbb\xbf" + _body(steps=0)).request_id == "req-1"


def test_a_refusal_of_many_fields_is_short_and_counts_them() -> None:
    names = [f"{number} {'k' * 100}" for number in range(16)]
    error = _refused(_body(metadata=dict.fromkeys(names, 1)))
    assert len(error.problems) == MAX_PROBLEMS + 1
    assert str(error).endswith("and 12 more")
    assert len(str(error).encode()) <= MAX_ERROR_MESSAGE_BYTES


@given(st.lists(st.text(max_size=2_000), min_size=1, max_size=12, unique=True))
def test_a_refusal_is_short_for_any_field_names(keys: list[str]) -> None:
    value = json.dumps({"request_id": "a", "prompt": "b", "metadata": dict.fromkeys(keys, 1)}).encode()
    outcome = _outcome(value)
    assert isinstance(outcome, InvalidTaskError)
    assert len(str(outcome).encode()) <= MAX_ERROR_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("key", "pointer"),
    [
        ("team/a.b", "#/metadata/team~1a.b"),
        ("a~b", "#/metadata/a~0b"),
        ("~1", "#/metadata/~01"),
        ("my label", "#/metadata/my%20label"),
        ("100%", "#/metadata/100%25"),
        ("é#", "#/metadata/%C3%A9%23"),
        ("k:@!$&'()*+,;=?-._", "#/metadata/k:@!$&'()*+,;=?-._"),
        ('"^|', "#/metadata/%22%5E%7C"),
        ("", "#/metadata/"),
    ],
)
def test_a_place_is_a_json_pointer_in_fragment_form(key: str, pointer: str) -> None:
    assert [problem.pointer for problem in _refused(_body(metadata={key: 5})).problems][-1:] == [pointer]


def test_an_invalid_name_is_its_own_pointer() -> None:
    (problem,) = _refused(_body(metadata={"k" * 65: "v"})).problems
    assert problem.pointer == "#/metadata/" + "k" * 65
    assert problem.message == "is not a possible name: must be at most 64 characters long"


def test_a_check_across_fields_points_at_the_field_that_it_names() -> None:
    assert [problem.pointer for problem in _refused(_body(seed=2**32 - 1, n=2)).problems] == ["#/seed"]


def test_a_refusal_of_the_whole_body_points_at_it() -> None:
    assert [problem.pointer for problem in _refused(b"[]").problems] == ["#"]


def test_a_task_beyond_the_limit_is_too_large_and_keeps_its_id() -> None:
    error = _refused(_body(x="y" * 900 * 1024))
    assert (error.code, error.request_id) == (ErrorCode.TOO_LARGE, "req-1")
    assert str(MAX_TASK_BYTES) in str(error)


def test_the_longest_legal_task_fits() -> None:
    assert decode_task(_body(prompt="x" * 10_000, negative_prompt="y" * 10_000), []).task.request_id == "req-1"


def test_a_refused_task_keeps_its_id_when_it_is_readable() -> None:
    assert _refused(_body(steps=0)).request_id == "req-1"
    assert _refused(_body(request_id="../x", steps=0)).request_id is None
    assert _refused(_body(), [("fluxpool-attempt", b"x")]).request_id == "req-1"


def test_of_duplicate_keys_the_last_counts_for_task_and_digest_alike() -> None:
    twice = decode_task(b'{"request_id": "a", "request_id": "b", "prompt": "p"}', [])
    once = decode_task(b'{"request_id": "b", "prompt": "p"}', [])
    assert (twice.task.request_id, twice.digest) == ("b", once.digest)


def test_unknown_fields_are_kept_and_part_of_the_digest() -> None:
    decoded = decode_task(_body(style="noir"), [])
    assert decoded.task.model_extra == {"style": "noir"}
    assert decoded.digest != decode_task(_body(), []).digest


def _outcome(value: bytes, headers: RawHeaders = ()) -> DecodedTask | InvalidTaskError:
    """Any other exception fails the test."""
    try:
        return decode_task(value, headers)
    except InvalidTaskError as error:
        return error


@given(st.binary(max_size=400))
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_are_a_task_or_refused(value: bytes) -> None:
    outcome = _outcome(value)
    assert isinstance(outcome, DecodedTask) or outcome.problems


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_names = ("request_id", "prompt", "negative_prompt", "width", "steps", "seed", "n", "metadata", "other")
_fields = st.fixed_dictionaries({}, optional=dict.fromkeys(_names, _json))


@given(st.just({"request_id": "a", "prompt": "b"}) | st.just({}), _fields)
def test_any_json_is_a_task_or_refused(base: dict[str, object], fields: dict[str, object]) -> None:
    value = json.dumps({**base, **fields}).encode()
    outcome = _outcome(value)
    if isinstance(outcome, InvalidTaskError):
        assert outcome.problems
    else:
        assert peek_request_id(value) == outcome.task.request_id


_headers = st.lists(
    st.tuples(
        st.sampled_from(["fluxpool-attempt", "fluxpool-tenant", "fluxpool-deadline", "ce_time", "ce_id", "other"]),
        st.none() | st.binary(max_size=40) | st.datetimes().map(lambda moment: f"{moment.isoformat()}Z".encode()),
    ),
    max_size=4,
)


@given(_headers)
def test_any_headers_are_an_envelope_or_refused(headers: list[tuple[str, bytes | None]]) -> None:
    outcome = _outcome(_body(), headers)
    if isinstance(outcome, InvalidTaskError):
        assert outcome.code is ErrorCode.INVALID_HEADER
        assert {problem.field for problem in outcome.problems} <= {name for name, _ in headers}
