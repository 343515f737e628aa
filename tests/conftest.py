"""Fixtures for the tests of all folders.

Missing Java or Kafka jars fail the tests that need them, with the remedy; they are never skipped.
"""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from fluxpool_cli.local.kafka.jars import provide_kafka_libs
from kit.brokers.kafka import KafkaFactory, running_kafka, share_classes
from kit.brokers.kafka_cluster import KafkaCluster
from kit.engines.engine import stand_in_engine, start_engine
from kit.engines.tiny import tiny_checkpoint
from kit.plugins.collecting import Collecting
from kit.plugins.end_of_tests import GRACE_SECONDS, EndOfTests
from kit.plugins.file_times import CPU_OPTION, TIMELINE_OPTION, FileTimes
from kit.plugins.on_change import MARKER, OPTION, ROOT, UnchangedTests, stamps_folder
from kit.stores.postgres import PostgresServer, running_postgres
from kit.waiting import PATIENCE

__all__ = ["stand_in_engine", "start_engine", "tiny_checkpoint"]


_LOGGING = structlog.get_config()

# Machines are shared: the duration of an example says nothing about the code.
settings.register_profile(
    "shared-machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared-machine")

# Kernels run on the CPU by Triton's own interpreter; Triton decides so when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A shell's background job ignores Ctrl-C, and hands that on to every program which it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that run every test, and that show the times of files."""
    parser.addoption(OPTION, action="store_true", help=f"run tests marked {MARKER} also when their inputs are the same")
    parser.addoption(CPU_OPTION, type=int, metavar="N", help="show the N files that take most CPU time, with processes")
    parser.addoption(TIMELINE_OPTION, action="store_true", help="show what each process of the run did when")


def pytest_configure(config: pytest.Config) -> None:
    """Register what skips unchanged `on_change` tests, and what collects, ends tests that hang, and measures."""
    named = frozenset(
        (config.invocation_params.dir / argument.partition("::")[0]).resolve() for argument in config.args
    )
    plugin = UnchangedTests(root=ROOT, stamps=stamps_folder(), run_all=config.getoption(OPTION), named=named)
    config.pluginmanager.register(plugin)
    config.pluginmanager.register(Collecting())
    config.pluginmanager.register(EndOfTests(grace_seconds=PATIENCE * GRACE_SECONDS))
    ranked, timeline = config.getoption(CPU_OPTION) or 0, config.getoption(TIMELINE_OPTION)
    if ranked or timeline:
        config.pluginmanager.register(FileTimes(ranked=ranked, timeline=timeline))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests the time that suits the machine, as `kit.waiting` does their deadlines."""
    # A marker would win over a limit that this run asked for.
    asked = config.getoption("timeout") is not None or "PYTEST_TIMEOUT" in os.environ
    usual = None if asked else float(config.getini("timeout"))
    for item in items:
        marker = item.get_closest_marker("timeout")
        if seconds := marker.args[0] if marker else usual:
            item.add_marker(pytest.mark.timeout(PATIENCE * seconds), append=False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep each file in one process when several run the tests."""
    # Only runs with several processes need the package.
    from kit.plugins.schedule import FileScheduling  # noqa: PLC0415

    return FileScheduling(config, log)


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    """Restore logging before and after a test: it, or a fixture of its module, may call a program's main function."""
    structlog.configure(**_LOGGING)
    yield
    structlog.configure(**_LOGGING)


@pytest.fixture(scope="session")
def kafka_libs() -> Path:
    """The folder of Kafka jars, fetched when missing, ready for brokers that start quickly."""
    libs = provide_kafka_libs()
    share_classes(libs)
    return libs


@pytest.fixture(scope="session")
def kafka(kafka_libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One broker for the whole run: do not stop it, and use `kit.brokers.kafka.unique_name` for topics and groups."""
    # On a busy machine a broker was seen to be silent for seconds. This one is never killed, so nothing waits for that.
    patient = {"broker.session.timeout.ms": "60000"}
    with running_kafka(tmp_path_factory.mktemp("kafka"), libs=kafka_libs, extra_properties=patient) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def bootstrap_servers(kafka: KafkaCluster) -> str:
    """The address of the shared broker."""
    return kafka.bootstrap_servers


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the whole run: do not stop it; `database` makes a database of one test."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def kafka_factory(kafka_libs: Path, tmp_path: Path) -> Iterator[KafkaFactory]:
    """Separate brokers for one test, to kill, pause or configure; with a wider scope `running_kafka`."""
    clusters: list[KafkaCluster] = []

    async def start(**settings: Any) -> KafkaCluster:
        cluster = KafkaCluster(tmp_path / f"kafka-{len(clusters) + 1}", libs=kafka_libs, **settings)
        clusters.append(cluster)
        await cluster.start()
        await cluster.wait_ready()
        return cluster

    yield start
    # Killed, not stopped: their data is not needed any more, and three brokers take 5 s to shut down.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        for cluster in clusters:
            for broker in cluster.brokers:
                runner.run(broker.kill())
