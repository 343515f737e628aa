"""Progress on standard error while a command reads or sends; nothing but notes when that is no terminal."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fluxpool_cli.terminal import progress_console, say, shown_text


@dataclass(frozen=True, slots=True)
class Bar:
    """One progress bar."""

    progress: Progress
    task: int

    def advance(self, steps: int) -> None:
        """Add to the number of steps done."""
        self.progress.advance(self.progress.tasks[self.task].id, steps)

    def set_total(self, steps: int) -> None:
        """Set the number of steps in all."""
        self.progress.update(self.progress.tasks[self.task].id, total=steps)

    def note(self, line: str) -> None:
        """A sentence that stays, above the bar."""
        if self.progress.console.is_terminal:
            self.progress.console.print(shown_text(line))
        else:
            say(line)


@contextmanager
def counting_bar(description: str, *, total: int | None) -> Iterator[Bar]:
    """A bar that is there while the block runs; without a total it only counts."""
    console = progress_console()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(description, total=total))


@contextmanager
def reading_bar(description: str) -> Iterator[Bar]:
    """A bar that counts records."""
    with counting_bar(description, total=None) as bar:
        yield bar
