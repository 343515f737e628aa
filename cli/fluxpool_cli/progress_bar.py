"""Progress bars on standard error while a command reads, sends or waits; nothing but notes when that is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fluxpool_cli.terminal import live_console, say, shown_text, visible


@dataclass(frozen=True, slots=True)
class Bar:
    """One progress bar."""

    progress: Progress
    task_id: TaskID

    def advance(self, steps: int) -> None:
        """Add to the number of steps done."""
        self.progress.advance(self.task_id, steps)

    def show(self, description: str, done: int, total: int | None) -> None:
        """Replace everything that is shown."""
        self.progress.update(self.task_id, description=visible(description), completed=done, total=total)

    def set_total(self, steps: int) -> None:
        """Set the number of steps in all."""
        self.progress.update(self.task_id, total=steps)

    def say_where_hidden(self, line: str) -> None:
        """Write a line when standard error is not a terminal, where the bar is not shown."""
        if not self.progress.console.is_terminal:
            say(line)

    def note(self, line: str) -> None:
        """A sentence that stays, above the bar."""
        if self.progress.console.is_terminal:
            self.progress.console.print(shown_text(line))
        else:
            say(line)


@contextmanager
def counting_bar(description: str, *, total: int | None = None) -> Iterator[Bar]:
    """Show a bar while the block runs; without a total it only counts."""
    console = live_console()
    columns = (
        # rich draws its bars in ASCII where the locale has nothing else, but not its spinners.
        SpinnerColumn("line" if console.options.ascii_only else "dots"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(visible(description), total=total))
