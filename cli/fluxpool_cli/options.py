"""Command-line options that commands share: groups of them as dataclasses, and the checks of their values.

Values that no command can accept are refused before a command does anything.
"""

import dataclasses
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints

import typer

from fluxpool_cli.terminal import visible

_OPTION = re.compile(r"-\w|--[a-z][a-z-]*")
_AGO = re.compile(r"(\d{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def with_option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: each parameter that is a dataclass is replaced by its fields, as options.

    The fields are annotated and have defaults as typer's parameters do.
    """
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type[Any]] = {}
    for name, annotation in get_type_hints(command, include_extras=True).items():
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            groups[name] = annotation
            of_fields = inspect.signature(annotation, eval_str=True).parameters.values()
            parameters += [field.replace(kind=inspect.Parameter.KEYWORD_ONLY) for field in of_fields]
        elif name != "return":
            parameter = inspect.signature(command).parameters[name]
            parameters.append(parameter.replace(annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY))

    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in dataclasses.fields(group)})
        command(**values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse text in a foreign encoding and empty values of options; raises `typer.BadParameter`."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise typer.BadParameter(
                f"{visible(argument)} is not text in the encoding of this terminal ({sys.getfilesystemencoding()}); "
                "convert it to UTF-8",
                param_hint=before if _OPTION.fullmatch(before) else "an argument",
            ) from None
        # Often a variable of a script that is not set; taken as absent it would mean something else.
        empty = before if not argument else option if equals and not value else ""
        if _OPTION.fullmatch(empty):
            raise typer.BadParameter("must not be empty; leave the option out instead", param_hint=empty)


def finite(value: float | None) -> float | None:
    """The number of an option, or its absence; raises `typer.BadParameter` for what is no number."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} must be a finite number, such as 3.5")
    return value


def printable_path(path: Path | None) -> Path | None:
    """The path of an option; raises `typer.BadParameter` for one with line ends or other control characters."""
    if path is not None and not str(path).isprintable():
        raise typer.BadParameter(f"{visible(str(path))} must not have control characters in its name; choose another")
    return path


def parse_duration_option(text: str, *, option: str) -> int:
    """Seconds of `90s`, `15m`, `24h` or `7d`; raises `typer.BadParameter` for the option."""
    found = _AGO.fullmatch(text)
    if found is None:
        raise typer.BadParameter(f"{text!r} must be a duration such as 90s, 15m, 24h or 7d", param_hint=option)
    return int(found[1]) * _SECONDS[found[2]]


def parse_time_option(text: str, *, now: datetime, option: str) -> datetime:
    """The UTC moment of `90s`, `15m`, `24h`, `7d` (so long before `now`) or of an RFC 3339 time.

    Raises `typer.BadParameter` for the option, with both forms.
    """
    # The models of all messages come with it, and every command imports this module.
    from fluxpool_contract.messages import parse_time  # noqa: PLC0415

    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            return now.astimezone(UTC) - timedelta(seconds=int(ago[1]) * _SECONDS[ago[2]])
        return parse_time(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} must be how long ago, such as 15m, 24h or 7d, or a time such as 2026-04-05T10:00:00Z",
            param_hint=option,
        ) from None
