"""Options of the commands on dead letters: which of them are meant, and where they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer

from fluxpool_cli.dlq.on_kafka import KafkaDeadLetters
from fluxpool_cli.dlq.over_http import GatewayDeadLetters
from fluxpool_cli.dlq.source import DeadLetters
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.kafka.target import TargetOptions, find_target
from fluxpool_cli.options import parse_time_option
from fluxpool_contract.problems import ErrorClass
from fluxpool_transport.dlq import FOREIGN, DeadLetterFilter, RecordRef

PlacesArgument = Annotated[
    list[str] | None, typer.Argument(help="Dead letters by partition/offset on their topic, such as 2/17.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Also those that were replayed or discarded.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it; without this nothing is written.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterOptions:
    """Which dead letters are meant; several options must all match."""

    error_class: Annotated[
        list[str] | None, typer.Option("--class", help="Only this error class; may be repeated.")
    ] = None
    code: Annotated[list[str] | None, typer.Option(help="Only this error code; may be repeated.")] = None
    pool: Annotated[list[str] | None, typer.Option(help="Only tasks of this pool; may be repeated.")] = None
    request_id: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None
    since: Annotated[
        str | None,
        typer.Option(help="Only failures from then on: 24h or 7d ago, or a time such as 2026-04-05T10:00:00Z."),
    ] = None
    until: Annotated[str | None, typer.Option(help="Only failures before; written as --since.")] = None

    def filter(self, places: Sequence[str] | None = None, *, include_resolved: bool = False) -> DeadLetterFilter:
        """The same as values; raises `typer.BadParameter`."""
        now = datetime.now(UTC)
        begin = None if self.since is None else parse_time_option(self.since, now=now, option="--since")
        end = None if self.until is None else parse_time_option(self.until, now=now, option="--until")
        if begin is not None and end is not None and begin >= end:
            raise typer.BadParameter(f"{self.until} is not after --since {self.since}; swap them", param_hint="--until")
        known = (*ErrorClass, FOREIGN)
        for name in self.error_class or ():
            if name not in known:
                raise typer.BadParameter(f"{name!r} must be one of {', '.join(known)}", param_hint="--class")
        return DeadLetterFilter(
            refs=parse_refs(places or ()),
            request_ids=tuple(self.request_id or ()),
            error_classes=tuple(self.error_class or ()),
            error_codes=tuple(self.code or ()),
            pools=tuple(self.pool or ()),
            since=begin,
            until=end,
            include_resolved=include_resolved,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions(TargetOptions):
    """Which Kafka and which topic, or which gateway."""

    topic: Annotated[
        str | None, typer.Option(help="The dead-letter topic; by default FLUXPOOL_TOPICS_DEAD_LETTERS, else flux-dlq.")
    ] = None

    url: Annotated[
        str | None,
        typer.Option(help="Read and write through this gateway instead of Kafka, with the key FLUXPOOL_API_KEY."),
    ] = None

    profile: Annotated[
        str | None, typer.Option(help="The same with the gateway and the key of this profile (`fluxpool profile`).")
    ] = None

    def dead_letters(self, wanted: DeadLetterFilter) -> DeadLetters:
        """Those that are meant, to be read; raises `CommandError`."""
        if self.url is not None or self.profile is not None:
            for option, value in (("--topic", self.topic), ("--bootstrap-servers", self.bootstrap_servers)):
                if value is not None:
                    raise typer.BadParameter(
                        "is not used with --url and --profile; remove one of them", param_hint=option
                    )
            return GatewayDeadLetters(gateway=GatewayOptions(url=self.url, profile=self.profile), wanted=wanted)
        target = find_target(self.bootstrap_servers, self.data_dir)
        given = {"--topic": self.topic, "--bootstrap-servers": self.bootstrap_servers}
        return KafkaDeadLetters(
            target=target,
            topic=self.topic or target.topics.dead_letters,
            wanted=wanted,
            options=tuple(word for name, text in given.items() if text is not None for word in (name, text)),
        )


def parse_refs(texts: Sequence[str]) -> tuple[RecordRef, ...]:
    """`partition/offset` of each; raises `typer.BadParameter`."""
    try:
        return tuple(map(RecordRef.parse, texts))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
