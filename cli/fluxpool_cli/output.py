"""The result of a command on standard output: a table, a JSON or YAML document, or names; the one place that writes it.

Commands make a `Result` and know nothing of the form. Foreign text is made harmless here, in every form.
"""

import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from fluxpool_cli.terminal import say, table_lines, visible


class OutputFormat(StrEnum):
    """Form of a command's result on standard output."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


_FORMATS: Final = ", ".join(OutputFormat)


def _format(text: str) -> OutputFormat:
    """The value of `--output`; raises `typer.BadParameter`."""
    if text not in set(OutputFormat):
        raise typer.BadParameter(f"{text!r} must be one of {_FORMATS}")
    return OutputFormat(text)


def _format_or_folder(text: str) -> OutputFormat:
    """The same for commands whose `-o` named a folder once."""
    if text not in set(OutputFormat):
        raise typer.BadParameter(f"{text!r} must be one of {_FORMATS}; for a folder of images use --output-dir {text}")
    return OutputFormat(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """`--output` and `--json`."""

    output: Annotated[
        OutputFormat,
        typer.Option(
            "--output",
            "-o",
            parser=_format,
            metavar="|".join(OutputFormat),
            autocompletion=lambda: list(OutputFormat),
            help="Form of the result on standard output; name: one name a line, for scripts.",
        ),
    ] = OutputFormat.TABLE
    as_json: Annotated[bool, typer.Option("--json", help="Short for --output json.")] = False

    @property
    def form(self) -> OutputFormat:
        """The form of the result."""
        return OutputFormat.JSON if self.as_json else self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOutputOptions(OutputOptions):
    """The same for commands that save images."""

    output: Annotated[
        OutputFormat,
        typer.Option(
            "--output",
            "-o",
            parser=_format_or_folder,
            metavar="|".join(OutputFormat),
            autocompletion=lambda: list(OutputFormat),
            help="Form of the result on standard output; name: one name a line, for scripts.",
        ),
    ] = OutputFormat.TABLE


@dataclass(frozen=True, slots=True)
class Block:
    """Text with lines of its own, such as a stored value."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows for people; a terminal that is too narrow loses `optional` columns, the first one first."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    optional: Sequence[str] = ()
    empty: str = ""
    """Said instead of a table without rows."""


Part = str | Block | Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command found or did, for people and for machines."""

    document: Any
    """For JSON and YAML."""
    parts: Sequence[Part] = ()
    """For people; lines, texts and tables."""
    names: Sequence[str] = ()
    """For scripts: what other commands take as an argument."""
    notes: Sequence[str] = ()
    """For people, on standard error."""
    final: bool = False
    """Whether it will not change any more."""


def write_result(result: Result, output: OutputOptions) -> None:
    """Write a result in the form that was asked for."""
    if output.form is OutputFormat.TABLE:
        _write_for_people(result)
    else:
        sys.stdout.write(machine_text(result, output.form))
        sys.stdout.flush()


def machine_text(result: Result, form: OutputFormat) -> str:
    """A result in one of the forms for programs, the last line ended."""
    match form:
        case OutputFormat.JSON:
            return json_text(result.document)
        case OutputFormat.YAML:
            return yaml_text(result.document)
        case _:
            return "".join(visible(name) + "\n" for name in result.names)


def _write_for_people(result: Result) -> None:
    # In a pipe every column is there, and each row is one line of whatever width.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines, hidden = shown_lines(result, width=width)
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()
    for table in result.parts:
        if isinstance(table, Table) and not table.rows and table.empty:
            say(table.empty)
    if hidden:
        say(f"not shown at this width: {', '.join(hidden)}; widen the terminal, or use a pipe or --json")
    for note in result.notes:
        say(note)


def shown_lines(result: Result, *, width: int | None) -> tuple[list[str], tuple[str, ...]]:
    """The lines for people, and the columns that were left out to fit into `width` cells (None: no limit)."""
    lines: list[str] = []
    hidden: list[str] = []
    for part in result.parts:
        match part:
            case str():
                lines.append(visible(part))
            case Block():
                lines += [f"  {visible(line)}".rstrip(" ") for line in part.text.split("\n")]
            case Table():
                if part.rows or not part.empty:
                    of_table, without = table_lines(part.columns, part.rows, width=width, optional=part.optional)
                    lines += of_table
                    hidden += without
    return lines, tuple(dict.fromkeys(hidden))


def json_text(document: Any) -> str:
    r"""A JSON document and a line end: indented on a terminal, else one line.

    Control characters in its texts are written as `\u009b`.
    """
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(_finite(document), indent=indent, ensure_ascii=not _takes_unicode(), allow_nan=False)
    return "".join(map(_json_visible, text)) + "\n"


def yaml_text(document: Any) -> str:
    """A YAML document, begun by `---`; control characters in its texts are written as escapes."""
    # A part of a tenth of a second, which other forms do not need.
    import yaml  # noqa: PLC0415

    class Dumper(yaml.SafeDumper):
        """Quotes texts with characters that only quoted ones can have as escapes."""

    def represent(dumper: Dumper, text: str) -> yaml.ScalarNode:
        style = None if visible(text) == text else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    text = yaml.dump(
        _finite(document),
        Dumper=Dumper,
        allow_unicode=_takes_unicode(),
        explicit_start=True,
        sort_keys=False,
        width=math.inf,
    )
    return "".join(map(_yaml_visible, text))


def _takes_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def _json_visible(character: str) -> str:
    if character == "\n" or visible(character) == character:
        return character
    units = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def _yaml_visible(character: str) -> str:
    if character == "\n" or visible(character) == character:
        return character
    return f"\\U{ord(character):08x}"


def _finite(value: Any) -> Any:
    """The value as plain types, with null in place of numbers that JSON does not have."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case str():
            return str(value)
        case Mapping():
            return {str(name): _finite(item) for name, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value
