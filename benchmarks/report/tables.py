"""How benchmarks print: the ratios, a table, with `--json` one JSON object as the last line."""

import json
from collections.abc import Mapping, Sequence

Cell = str | int | float | bool | None


def print_report(*, ratios: Mapping[str, Cell], rows: Sequence[Mapping[str, Cell]], as_json: bool) -> None:
    """Print the ratios one a line, then the rows as a table under the names of the first row's fields.

    With `as_json` the last line is `{**ratios, "rows": rows}`.
    """
    width = max((len(name) for name in ratios), default=0)
    for name, value in ratios.items():
        print(f"{name:<{width}}  {_text(value)}")
    if rows:
        print()
        print_table(rows)
    if as_json:
        print(json.dumps({**ratios, "rows": list(rows)}))


def print_table(rows: Sequence[Mapping[str, Cell]]) -> None:
    """Print rows under the names of the first one's fields; numbers to the right, text to the left."""
    names = list(rows[0])
    cells = [[_text(row.get(name)) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[index]) for line in cells)) for index, name in enumerate(names)]
    numeric = [all(not isinstance(row.get(name), str) for row in rows) for name in names]
    for line in (names, ["-" * width for width in widths], *cells):
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def _text(value: Cell) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.2f}"
        case int():
            return f"{value:,}"
        case str():
            return value
