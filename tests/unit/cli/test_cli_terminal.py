"""Control characters in foreign text never reach the terminal."""

import io
import json
import unicodedata
from functools import partial
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fluxpool_cli.output import Block, OutputFormat, OutputOptions, Result, Table, write_result
from fluxpool_cli.terminal import say, say_paragraph, table_lines, visible, write_line
from fluxpool_cli.watch.display import PoolSnapshot, plain_table

OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
ANYTHING = st.text(
    st.one_of(
        st.characters(),
        st.sampled_from("\x1b\x07\x08\r\n\t\x7f\x85\x9b\xad\u2028\u2029\u200b\u202e\u2066\ufeff\udce9[]:\\"),
    )
)


def control_characters(text: str, *, own: str = "\n") -> set[str]:
    """Control characters, except those that the program writes itself."""
    return {character for character in text if unicodedata.category(character) in OBEYED} - set(own)


class Stream(io.StringIO):
    encoding = "utf-8"


@pytest.fixture(scope="module")
def streams() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def written(patch: pytest.MonkeyPatch, write: Any) -> str:
    output = Stream()
    patch.setattr("sys.stdout", output)
    patch.setattr("sys.stderr", output)
    write()
    return output.getvalue()


def everywhere(text: str) -> Result:
    """A result that has the text wherever one can be."""
    table = Table(("A", "B"), [(text, text)])
    return Result(document={text: [text]}, parts=[text, Block(text), table], names=[text], notes=[text])


@given(text=ANYTHING)
def test_no_output_function_writes_a_control_character_of_a_text(text: str, streams: pytest.MonkeyPatch) -> None:
    for write in (
        lambda: say(text),
        lambda: say_paragraph(text),
        lambda: write_line(text),
        *(partial(write_result, everywhere(text), OutputOptions(output=form)) for form in OutputFormat),
    ):
        assert control_characters(written(streams, write)) == set()


@given(text=ANYTHING)
def test_a_text_never_becomes_a_line_that_looks_like_the_programs(text: str, streams: pytest.MonkeyPatch) -> None:
    assert written(streams, lambda: say(text)).count("\n") == 1
    assert written(streams, lambda: write_line(text)).count("\n") == 1
    assert len(table_lines(("A", "B"), [(text, text)], width=None)[0]) == 2
    for line in written(streams, lambda: say_paragraph(text)).split("\n")[1:]:
        assert line == "" or line.startswith("  ")


@given(text=ANYTHING)
def test_escaping_control_characters_does_not_change_a_document(text: str, streams: pytest.MonkeyPatch) -> None:
    for form, read in ((OutputFormat.JSON, json.loads), (OutputFormat.YAML, yaml.safe_load)):
        as_form = OutputOptions(output=form)
        assert read(written(streams, lambda: write_result(everywhere(text), as_form))) == {text: [text]}  # noqa: B023


@given(text=ANYTHING)
def test_a_live_view_escapes_markup_of_a_text(text: str) -> None:
    shown = io.StringIO()
    console = Console(file=shown, width=60, color_system=None)
    console.print(plain_table((text,), [(text,)]))
    console.print(PoolSnapshot(lag_records={}, workers={}, results={}, plan=text))
    assert control_characters(shown.getvalue()) == set()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a fox [bold] :smile: \\[x]", "a fox [bold] :smile: \\[x]"),
        ("zdjęcia 写真 🦊", "zdjęcia 写真 🦊"),
        ("\x1b]0;all is well\x07", "\\x1b]0;all is well\\x07"),
        ("one\nsuccess forged", "one\\nsuccess forged"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\udce9", "a\\u202eb\\udce9"),
    ],
)
def test_text_is_shown_unchanged_and_the_rest_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_numbers_that_json_does_not_have_become_null(streams: pytest.MonkeyPatch) -> None:
    result = Result(document={"a": [float("nan"), float("inf"), 1.5]})
    as_json = OutputOptions(as_json=True)
    assert written(streams, lambda: write_result(result, as_json)) == '{"a": [null, null, 1.5]}\n'


def test_a_json_document_has_lines_on_a_terminal_alone(streams: pytest.MonkeyPatch) -> None:
    streams.setattr(Stream, "isatty", lambda _self: True)
    as_json = OutputOptions(as_json=True)
    assert written(streams, lambda: write_result(Result(document={"a": 1}), as_json)) == '{\n  "a": 1\n}\n'


COLUMNS = ("PLACE", "CLASS", "MESSAGE")
ROW = (
    "2/17",
    "invalid",
    "width: 1000 is not a multiple of 16 http://127.0.0.1:8000/v1/generations/some-long-id/images/0",
)


def test_a_pipe_gets_every_column_and_one_line_for_each_row() -> None:
    assert table_lines(COLUMNS, [ROW], width=None, optional=("CLASS",)) == (
        ["PLACE  CLASS    MESSAGE", f"2/17   invalid  {ROW[2]}"],
        (),
    )


def test_a_narrow_terminal_drops_columns_and_never_divides_a_word() -> None:
    lines, hidden = table_lines(COLUMNS, [ROW], width=34, optional=("CLASS",))
    assert hidden == ("CLASS",)
    assert lines == [
        "PLACE  MESSAGE",
        "2/17   width: 1000 is not a",
        "       multiple of 16",
        "       http://127.0.0.1:8000/v1/generations/some-long-id/images/0",
    ]


def test_a_last_column_without_room_gets_lines_of_its_own() -> None:
    assert table_lines(("A", "B"), [("x" * 30, "one two three")], width=40)[0] == [
        "A" + " " * 31 + "B",
        "x" * 30,
        "  one two three",
    ]


@given(cells=st.lists(st.tuples(ANYTHING, ANYTHING), max_size=3), width=st.none() | st.integers(1, 60))
def test_every_word_of_a_table_is_whole_at_every_width(cells: list[tuple[str, str]], width: int | None) -> None:
    lines, _ = table_lines(("A", "B"), cells, width=width)
    words = {word for row in cells for cell in row for word in visible(cell).split(" ") if word}
    shown = "\n".join(lines)
    assert all(word in shown for word in words)
