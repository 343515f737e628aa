"""The gateway's programs: start, ready address, restart of worker processes, shutdown."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from uvicorn.config import STARTUP_FAILURE

from fluxpool_contract.kafka.connection import KafkaConnection, SaslMechanism, SecurityProtocol
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_gateway.settings import GatewaySettings
from kit.brokers.kafka import KafkaFactory, read_topic
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import gateway_settings, gateway_topics, running_gateway, start_gateway
from kit.programs.processes import is_alive
from kit.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.kafka


def run_with(environment: dict[str, str], *, module: str = "fluxpool_gateway") -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLUXPOOL_")}
    return subprocess.run(
        [sys.executable, "-m", module],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )


@pytest.mark.parametrize("module", ["fluxpool_gateway", "fluxpool_gateway.projector"])
def test_wrong_settings_are_all_named_and_end_it_with_2(module: str) -> None:
    wrong = {"FLUXPOOL_PROCESES": "2", "FLUXPOOL_LISTEN_PORT": "70000", "FLUXPOOL_STORAGE_URL": "nowhere"}
    ended = run_with(wrong, module=module)
    assert ended.returncode == 2
    for name in ("FLUXPOOL_PROCESES", "FLUXPOOL_LISTEN_PORT", "FLUXPOOL_STORAGE_URL", "FLUXPOOL_DATABASE_FILE"):
        assert name in ended.stderr
    assert "did you mean FLUXPOOL_PROCESSES?" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_file_that_is_no_database_ends_it_with_2_and_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "tasks.sqlite").write_text("these are notes, and long ones at that; no database begins like this")
    ended = run_with(
        {
            "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "FLUXPOOL_STORAGE_URL": (tmp_path / "images").as_uri(),
            "FLUXPOOL_DATABASE_FILE": str(tmp_path / "tasks.sqlite"),
        },
        module="fluxpool_gateway.projector",
    )
    assert ended.returncode == 2
    assert "database_file" in ended.stderr
    assert "delete the file" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_port_in_use_is_named_and_the_first_gateway_continues(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    with running_gateway(gateway_settings(kafka.bootstrap_servers, tmp_path / "first", topics)) as first:
        port = int(first.url.rstrip("/").rpartition(":")[2])
        second = start_gateway(gateway_settings(kafka.bootstrap_servers, tmp_path / "second", topics, listen_port=port))
        try:
            assert await asyncio.to_thread(second.server.wait, 60 * PATIENCE) == 1
        finally:
            second.kill()
        assert f"127.0.0.1:{port}" in second.log()
        assert not (tmp_path / "second" / "address").exists()
        async with httpx.AsyncClient(base_url=first.url, timeout=60) as client:
            assert (await client.get("healthz")).status_code == 200


async def test_sigterm_finishes_requests_in_progress_and_leaves_no_process(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics, processes=2)
    accepted: set[str] = set()
    with running_gateway(settings) as gateway:
        gateway.wait_ready()
        pids = gateway.pids().values()
        assert len(pids) == 3
        url = gateway.url

        async def submit_until_it_ends() -> None:
            async with httpx.AsyncClient(base_url=url, timeout=60) as client:
                while True:
                    try:
                        answer = await client.post("v1/generations", json={"prompt": "a"})
                    except httpx.TransportError:
                        return
                    if answer.status_code == 202:
                        accepted.add(answer.json()["request_id"])

        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(submit_until_it_ends())
            await wait_until(lambda: len(accepted) > 50, deadline_seconds=30, what="traffic")
            assert await asyncio.to_thread(gateway.stop) == (0, 0)
        assert not any(is_alive(pid) for pid in pids)
    assert settings.address_file is not None
    assert not settings.address_file.exists()
    keys = {record.key for record in await read_topic(kafka.bootstrap_servers, topics.tasks)}
    assert {request_id.encode() for request_id in accepted} <= keys


async def test_sigterm_ends_it_in_time_while_the_broker_is_down(kafka_factory: KafkaFactory, tmp_path: Path) -> None:
    cluster = await kafka_factory()
    topics = await gateway_topics(cluster.bootstrap_servers)
    settings = gateway_settings(cluster.bootstrap_servers, tmp_path / "g", topics, produce_deadline_seconds=2)
    with running_gateway(settings) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:

            async def accepts() -> bool:
                return (await client.post("v1/generations", json={"prompt": "a"})).status_code == 202

            await wait_until(accepts, deadline_seconds=30, what="an accepted request")
            cluster.brokers[0].pause()
            try:
                waiting = asyncio.create_task(client.post("v1/generations", json={"prompt": "b"}))
                stopping = asyncio.create_task(asyncio.to_thread(gateway.stop))
                answer = (await asyncio.gather(waiting, return_exceptions=True))[0]
                assert await stopping == (0, 0)
            finally:
                cluster.brokers[0].resume()
    # Either the server had already stopped listening, or it answered 503.
    assert isinstance(answer, httpx.TransportError) or (
        isinstance(answer, httpx.Response) and answer.status_code == 503
    )


async def test_workers_are_started_again_and_die_with_their_parent(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    with running_gateway(gateway_settings(kafka.bootstrap_servers, tmp_path, topics, processes=2)) as gateway:
        gateway.wait_ready()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            assert (await client.post("v1/generations", json={"prompt": "a"})).status_code == 202
        killed = gateway.servers()
        for worker in killed:
            os.kill(worker, signal.SIGKILL)

        async def answers() -> bool:
            try:
                async with httpx.AsyncClient(base_url=gateway.url, timeout=2) as client:
                    return (await client.get("healthz")).status_code == 200
            except httpx.TransportError:
                return False

        def both_replaced() -> bool:
            return len(gateway.servers()) == 2 and not set(killed) & set(gateway.servers())

        await wait_until(both_replaced, deadline_seconds=30, what="two other workers")
        await wait_until(answers, deadline_seconds=30, what="an answer of another worker")

        async def both_count() -> bool:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
                text = (await client.get("metrics")).text
            # What the killed ones have counted stays, whichever of the others answers.
            assert 'fluxpool_gateway_accepted_tasks_total{priority="standard"} 1.0' in text
            return "fluxpool_gateway_processes 2.0" in text

        await wait_until(both_count, deadline_seconds=30, what="the metrics of two processes")
        workers = gateway.servers()
        gateway.server.kill()
        await wait_until(
            lambda: not any(is_alive(pid) for pid in workers), deadline_seconds=20, what="the end of all workers"
        )


async def test_a_worker_that_cannot_start_ends_the_server(tmp_path: Path) -> None:
    without_tokens = KafkaConnection(
        bootstrap_servers=("127.0.0.1:1",),
        security_protocol=SecurityProtocol.SASL_PLAINTEXT,
        sasl_mechanism=SaslMechanism.OAUTHBEARER,
        oauth_token_endpoint="http://127.0.0.1:1/token",
        oauth_client_id="gateway",
        oauth_client_secret=SecretStr("none"),
    )
    settings = gateway_settings("127.0.0.1:1", tmp_path, TopicNames(), processes=2, kafka=without_tokens)
    gateway = start_gateway(settings)
    try:
        assert await asyncio.to_thread(gateway.server.wait, 120 * PATIENCE) == STARTUP_FAILURE
        assert "no OAUTHBEARER token" in gateway.log() or "no client for Kafka" in gateway.log()
    finally:
        gateway.kill()


async def test_a_second_gateway_on_one_database_stands_by_and_takes_over(kafka: KafkaCluster, tmp_path: Path) -> None:
    topics = await gateway_topics(kafka.bootstrap_servers)
    database_file = tmp_path / "shared.sqlite"

    def on_it(name: str) -> GatewaySettings:
        return gateway_settings(kafka.bootstrap_servers, tmp_path / name, topics, database_file=database_file)

    with running_gateway(on_it("first")) as first, running_gateway(on_it("second")) as second:
        await wait_until(
            lambda: "projector_standby" in second.log(), deadline_seconds=60, what="the second to stand by"
        )
        assert "projector_started" not in second.log()
        assert first.stop() == (0, 0)
        await wait_until(lambda: "projector_started" in second.log(), deadline_seconds=60, what="the take-over")
        async with httpx.AsyncClient(base_url=second.url, timeout=60) as client:

            async def found() -> bool:
                answer = await client.post("v1/generations", json={"prompt": "a"})
                if answer.status_code != 202:
                    return False
                location = answer.headers["location"]
                # The accepting process would answer from memory; only the store shows that the task was projected.
                with closing(sqlite3.connect(database_file)) as connection:
                    query = "SELECT count(*) FROM task WHERE request_id = ?"
                    return bool(connection.execute(query, [location.rpartition("/")[2]]).fetchone()[0])

            await wait_until(found, deadline_seconds=60, what="a task projected by the second gateway")
