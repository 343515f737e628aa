"""Where commands find dead letters and resolve them: on Kafka (`on_kafka`), or through a gateway (`over_http`)."""

from collections.abc import Callable
from typing import Any, Protocol

from fluxpool_transport.dlq import DeadLetterEntry, ReplayChoices


class DeadLetters(Protocol):
    """The dead letters that a command means. Raises `CommandError`."""

    @property
    def topic(self) -> str:
        """Their topic, or the gateway in its place."""

    @property
    def options(self) -> tuple[str, ...]:
        """The options that name the place again."""

    def entries(self) -> tuple[DeadLetterEntry, ...]:
        """Those that are meant, oldest failure first."""

    def document(self, dead_letter: str) -> dict[str, Any] | None:
        """The last one that is meant, with its record, as `view.record_document` has it; None without one."""

    def export(self, *, form: str, records: bool, write: Callable[[bytes], object]) -> None:
        """Write those that are meant as `jsonl` or `csv`; `records`: with key, headers and value of the originals."""

    def replay(
        self, choices: ReplayChoices, *, rate: float | None
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What was refused and what was sent, or would be when there is no rate; as `view.outcome_document`."""

    def discard(self, reason: str, *, yes: bool) -> tuple[DeadLetterEntry, ...]:
        """Those that were discarded, or would be."""
