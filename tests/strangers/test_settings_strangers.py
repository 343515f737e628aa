"""Foreign environments and command lines: accepted or refused as specified, never with a traceback."""

import os
import subprocess
from pathlib import Path

import pytest

from fluxpool_contract.settings.environment import EnvironmentSettings, SettingsError
from fluxpool_contract.settings.worker import WorkerSettings
from fluxpool_gateway.settings import GatewaySettings
from kit.commands.command import PROGRAM
from kit.strangers import StrangeArguments, StrangeEnvironment, strangers
from kit.waiting import PATIENCE

ENOUGH = {
    "worker": {"FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092", "FLUXPOOL_STORAGE_URL": "s3://images/"},
    "gateway": {
        "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "kafka:9092",
        "FLUXPOOL_STORAGE_URL": "s3://images/",
        "FLUXPOOL_DATABASE_FILE": "/data/tasks.sqlite",
    },
}
SETTINGS: dict[str, type[EnvironmentSettings]] = {"worker": WorkerSettings, "gateway": GatewaySettings}


@pytest.mark.parametrize("program", ["worker", "gateway"])
def test_the_base_variables_are_sufficient(program: str) -> None:
    assert SETTINGS[program].from_environment(ENOUGH[program]).to_environment() == ENOUGH[program]


@pytest.mark.parametrize("stranger", strangers("environments", StrangeEnvironment))
def test_an_environment_is_accepted_or_refused_by_name(stranger: StrangeEnvironment) -> None:
    variables = {**ENOUGH[stranger.program], **stranger.variables}
    if not stranger.refused_with:
        SETTINGS[stranger.program].from_environment(variables)
        return
    with pytest.raises(SettingsError) as caught:
        SETTINGS[stranger.program].from_environment(variables)
    assert [text for text in stranger.refused_with if text not in str(caught.value)] == []


@pytest.mark.parametrize("stranger", strangers("arguments", StrangeArguments))
def test_a_command_line_ends_in_a_sentence_and_an_exit_code(stranger: StrangeArguments, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUXPOOL_")}
    ended = subprocess.run(
        [PROGRAM.encode(), *stranger.as_bytes()],
        cwd=tmp_path,
        env={**kept, "NO_COLOR": "1", "COLUMNS": "300", **stranger.environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=80 * PATIENCE,
        check=False,
    )
    shown = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == stranger.code, shown
    assert "Traceback" not in shown
    assert [text for text in stranger.says if text not in shown] == [], shown
