"""The Kafka jars are found, fetched, or their absence is reported with the remedy."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fluxpool_cli.local.kafka.jars import KafkaJarsError, cached_libs, provide_kafka_libs

pytestmark = pytest.mark.on_change("cli/fluxpool_cli/local/kafka")

REPOSITORY = Path(__file__).resolve().parents[2]


def test_outside_a_checkout_the_error_names_both_remedies(tmp_path: Path) -> None:
    with pytest.raises(KafkaJarsError, match=r"set FLUXPOOL_KAFKA_LIBS .* --bootstrap-servers"):
        provide_kafka_libs(environment={}, checkout=tmp_path)


def test_a_named_folder_without_kafka_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KafkaJarsError, match=r"FLUXPOOL_KAFKA_LIBS='.*' holds no kafka_2\.13-\*\.jar"):
        provide_kafka_libs(environment={"FLUXPOOL_KAFKA_LIBS": str(tmp_path)})


def test_a_named_folder_with_kafka_wins_over_the_cache(tmp_path: Path) -> None:
    (tmp_path / "kafka_2.13-4.1.1.jar").touch()
    assert provide_kafka_libs(environment={"FLUXPOOL_KAFKA_LIBS": str(tmp_path)}) == tmp_path.resolve()


def test_an_impossible_fetch_names_the_missing_tools(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "cut", "sed", "head"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    environment = {"PATH": str(tools), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(KafkaJarsError, match="could not be fetched"):
        provide_kafka_libs(environment=environment, checkout=REPOSITORY)
    complaints = capfd.readouterr().err
    assert "java is missing" in complaints
    assert "mvn is missing" in complaints
    assert "apt-get install" in complaints


def test_two_fetches_at_once_fetch_once_and_leave_one_complete_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, str(REPOSITORY / "hack" / "kafka" / "fetch")]
    fetches = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [fetch.communicate(timeout=150) for fetch in fetches]
    assert [fetch.returncode for fetch in fetches] == [0, 0], outputs
    assert sum(errors.count("fetching the Apache Kafka jars") for _, errors in outputs) == 1
    libs = cached_libs(REPOSITORY / "hack" / "kafka" / "pom.xml", environment=environment)
    assert list(libs.glob("kafka_2.13-*.jar"))
    assert [path for path in libs.parent.parent.iterdir() if path.is_dir()] == [libs.parent]
