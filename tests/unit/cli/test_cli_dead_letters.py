"""How `fluxpool dlq` rejects a wrong command line before it connects to Kafka."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fluxpool_cli.dlq.commands import app
from kit.commands.command import fluxpool

NOWHERE = {"FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--class", "fatal"], "--class: 'fatal' must be one of invalid, rejected"),
        (["list", "--since", "yesterday"], "--since: 'yesterday' must be how long ago, such as 15m"),
        (["list", "--until", "2026-04-05"], "--until: '2026-04-05' must be"),
        (["list", "--since", "1h", "--until", "2h"], "--until: 2h is not after --since 1h"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "-o", "xml"], "--output"),
        (["list", "--bootstrap-servers", "kafka"], "host:port"),
        (["show", "2/x"], "must be partition/offset"),
        (["replay", "17"], "'17' must be partition/offset on the dead-letter topic, such as 2/17"),
        (["replay", "--rate", "0"], "--rate"),
        (["replay", "--patch", "{width: 3}"], "--patch: is not JSON"),
        (["replay", "--patch", "[1]"], "--patch: must be a JSON object"),
        (
            ["replay", "--drop-header", "fluxpool-dlq-message"],
            "--drop-header: fluxpool-dlq-message describes the failure",
        ),
        (["replay", "--max-replays", "0"], "--max-replays"),
        (["discard"], "--reason"),
        (["discard", "--reason", " "], "--reason: must not be blank"),
    ],
)
def test_a_wrong_option_is_named_with_the_correct_form(arguments: list[str], words: str) -> None:
    ended = CliRunner().invoke(app, arguments, env={**NOWHERE, "COLUMNS": "300", "NO_COLOR": "1"})
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert words in " ".join(ended.stderr.replace("│", " ").split())


async def test_a_broker_that_is_down_ends_with_3(tmp_path: Path) -> None:
    ended = await fluxpool("dlq", "summary", folder=tmp_path, environment=NOWHERE)
    assert (ended.code, ended.output) == (3, "")
    assert "Kafka at 127.0.0.1:1 does not answer" in ended.complaints


async def test_without_any_kafka_the_remedies_are_named(tmp_path: Path) -> None:
    ended = await fluxpool("dlq", "list", folder=tmp_path, environment={})
    assert ended.code == 3
    assert "--bootstrap-servers" in ended.complaints
    assert "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS" in ended.complaints
