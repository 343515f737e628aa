"""`kubectl fluxpool <TAB>`: the console script `kubectl_complete-fluxpool`, which kubectl runs with the words.

Each line of its output is a completion, with its help after a tab; the last one is a directive of cobra for the shell:
the protocol of KEP-2379, "Shell Completion Support". The completions are typer's own, in the form for fish.
"""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from enum import IntEnum

from fluxpool_cli.exit_codes import ExitCode
from fluxpool_cli.main import COMPLETE_VARIABLE, ONE_LINE, PLUGIN, command_line
from fluxpool_transport.process import end_process


class Directive(IntEnum):
    """What the shell does beside showing the completions."""

    FILES_IF_NONE = 0
    NO_FILES = 4


def main() -> None:
    """Print how a command line of the plugin may go on; the console script."""
    code = ExitCode.OK
    try:
        # kubectl reads UTF-8, whatever the locale.
        sys.stdout.buffer.write(completion_text(sys.argv[1:]).encode(errors="replace"))
        sys.stdout.buffer.flush()
    except OSError:
        code = ExitCode.READER_GONE
    end_process(code)


def completion_text(words: Sequence[str]) -> str:
    """The lines for the words after `kubectl fluxpool`; the last word, perhaps empty, is what is being typed."""
    *before, last = words or ("",)
    os.environ |= {
        COMPLETE_VARIABLE: "complete_fish",
        "COLUMNS": ONE_LINE,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": f"{shlex.join([PLUGIN, *before])} {shlex.quote(last) if last else ''}",
    }
    named = [word for word in before if not word.startswith("-")][:1]
    found = io.StringIO()
    # A line that nothing can follow has no completions.
    with redirect_stdout(found), suppress(SystemExit):
        command_line(named, program=PLUGIN).main([], prog_name=PLUGIN, complete_var=COMPLETE_VARIABLE)
    lines = [line for line in found.getvalue().splitlines() if line]
    directive = Directive.NO_FILES if lines else Directive.FILES_IF_NONE
    return "".join(f"{line}\n" for line in [*lines, f":{directive.value}"])
