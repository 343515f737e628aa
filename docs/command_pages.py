"""The reference of the `fluxpool` command: every verb with its arguments and options, from the command line itself."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, Final

from fluxpool_cli.main import PLUGIN, command_line
from reference_tables import one_line, table

_OF_PLUGIN: Final = ("pools", "workers")
_COMMON: Final = frozenset({"url", "profile", "output", "as_json"})
"""Options that the page explains once; a command that has another one of the name shows it."""


def command_sections() -> str:
    """One section for each verb, in the order of the help."""
    commands = command_line()
    common = frozenset(
        (parameter.name, parameter.help)
        for name in ("list", "get")
        for parameter in commands.commands[name].params
        if parameter.name in _COMMON
    )
    sections = [_section(words, command, common) for words, command in _leaves("fluxpool", commands)]
    plugin = command_line(_OF_PLUGIN, program=PLUGIN).commands
    return "\n".join([*sections, *(_section(f"{PLUGIN} {name}", plugin[name], common) for name in _OF_PLUGIN)])


def _leaves(words: str, group: Any) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(f"{words} {name}", command)
        else:
            yield f"{words} {name}", command


def _section(words: str, command: Any, common: AbstractSet[tuple[str, str]]) -> str:
    paragraphs = [" ".join(paragraph.split()) for paragraph in (command.help or "").split("\n\n")]
    rows = [
        _row(parameter)
        for parameter in command.params
        if parameter.name != "help" and (parameter.name, getattr(parameter, "help", None)) not in common
    ]
    options = [table(("Argument or option", "Default", "Meaning"), rows)] if rows else []
    return "\n\n".join([f"## {words}", *map(_escaped, paragraphs), *options]).rstrip("\n") + "\n"


def _row(parameter: Any) -> tuple[str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    is_option = parameter.opts[0].startswith("-")
    shown = (
        ", ".join(f"`{name}`" for name in names) if is_option else f"`{parameter.metavar or parameter.name.upper()}`"
    )
    default = parameter.default
    if parameter.required:
        text = "required"
    elif default is None or default is False or default == () or callable(default):
        text = ""
    else:
        text = f"`{default}`"
    return shown.replace("|", "\\|"), text, _escaped(one_line(getattr(parameter, "help", None) or ""))


def _escaped(text: str) -> str:
    """Text of a terminal, in which Markdown would take angle brackets for tags, and lone asterisks for emphasis."""
    return text.replace("<(", "\\<(").replace("*", "\\*")
