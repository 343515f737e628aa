"""Two replicas of a gateway on one PostgreSQL server and one broker, as processes behind no particular balancer."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.result import GenerationResult, ImageDescription, ResultStatus
from fluxpool_gateway.identity.api_key import new_key
from fluxpool_gateway.settings import GatewaySettings
from kit.brokers.kafka import create_topics, produce, read_topic, unique_name
from kit.brokers.kafka_cluster import KafkaCluster
from kit.faults.tcp_proxy import TcpProxy
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, start_gateway, told
from kit.stores.postgres import PostgresServer
from kit.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

ANSWER_SECONDS = 60.0
SoughtSettings = Callable[..., GatewaySettings]


@pytest.fixture
async def topics(kafka: KafkaCluster) -> TopicNames:
    topics = await gateway_topics(kafka.bootstrap_servers)
    named = topics.model_copy(update={"feedback": unique_name("feedback")})
    await create_topics(kafka.bootstrap_servers, {named.feedback: 2})
    return named


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.database()


@pytest.fixture
def settings_of(kafka: KafkaCluster, topics: TopicNames, url: str, tmp_path: Path) -> SoughtSettings:
    """Settings of the replica with a name; each has a folder of its own and the same images."""

    def of(name: str, **more: object) -> GatewaySettings:
        shared = {"database_file": None, "database_url": url, "storage": {"url": (tmp_path / "images").as_uri()}}
        return gateway_settings(kafka.bootstrap_servers, tmp_path / name, topics, **{**shared, **more})

    return of


@dataclass(slots=True)
class Replica:
    """A replica and a client of it, which opens a connection for each request."""

    gateway: GatewayProcess
    client: httpx.AsyncClient


@asynccontextmanager
async def running(*settings: GatewaySettings, key: str | None = None) -> AsyncIterator[list[Replica]]:
    """Start replicas at once and run them for a block."""
    gateways = [start_gateway(each) for each in settings]
    try:
        for gateway in gateways:
            await asyncio.to_thread(gateway.wait_listening)
        async with AsyncExitStack() as stack:
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            replicas = []
            for gateway in gateways:
                client = httpx.AsyncClient(base_url=gateway.url, timeout=ANSWER_SECONDS, headers=headers)
                replicas.append(Replica(gateway, await stack.enter_async_context(client)))
            for replica in replicas:
                await wait_until(partial(_is_ready, replica), deadline_seconds=60, what="readiness")
            yield replicas
    finally:
        for gateway in gateways:
            gateway.kill()


async def _is_ready(replica: Replica) -> bool:
    return (await replica.client.get("readyz")).status_code == httpx.codes.OK


def _query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def rows(url: str) -> list[tuple[Any, ...]]:
    """Every row of the store; the last column is the number of the change, which depends on the batches."""
    return [row[:-1] for row in _query(url, "SELECT * FROM task ORDER BY request_id, tenant")]


def usage(url: str) -> list[tuple[Any, ...]]:
    return _query(url, "SELECT * FROM usage_hour ORDER BY tenant, hour, outcome")


def judgements(url: str) -> list[tuple[Any, ...]]:
    return [
        *_query(url, "SELECT * FROM rating ORDER BY tenant, rating_id"),
        *_query(url, "SELECT * FROM comparison ORDER BY tenant, rating_id"),
    ]


async def judge(replica: Replica, *, rater: str, scores: Sequence[int], winner: str) -> None:
    """Rate one image again and again, and compare it with another one; each answer says that it is durable."""
    client = replica.client
    for score in scores:
        said = {"score": score, "rater": rater}
        rated = await told(partial(client.put, "v1/generations/t0000/rating", json=said))
        assert rated.status_code == 200, rated.text
    pair = {"a": {"request_id": "t0000"}, "b": {"request_id": "t0001"}, "preferred": winner, "rater": rater}
    compared = await told(partial(client.post, "v1/comparisons", json=pair))
    # 200: the rater's own comparison again, also where the first answer was that it is not known yet.
    assert compared.status_code in {200, 201}, compared.text


def read_to(url: str, topics: TopicNames) -> tuple[int, int, int]:
    """How many records of the task topics, of the results and of feedback were projected."""
    found = dict(_query(url, "SELECT topic, sum(next_offset)::int FROM projected_offset GROUP BY topic"))
    tasks = found.get(topics.tasks, 0) + found.get(topics.tasks_vip, 0)
    return tasks, found.get(topics.results, 0), found.get(topics.feedback, 0)


def succeeded(request_id: str) -> bytes:
    # Usage is kept for a quarter.
    now = datetime.now(UTC)
    image = ImageDescription(
        index=0,
        url="http://images/0.png",
        object=f"default/2026/04/05/{request_id}/0.png",
        width=64,
        height=64,
        seed=7,
        format="png",
        content_type="image/png",
        bytes=1,
        sha256="0" * 64,
    )
    return GenerationResult(
        request_id=request_id, image_url=None, status=ResultStatus.SUCCESS, completed_at=now, images=(image,)
    ).to_json()


async def test_any_replica_answers_for_a_task_right_after_the_202_of_another(
    kafka: KafkaCluster, topics: TopicNames, settings_of: SoughtSettings, tmp_path: Path
) -> None:
    key = new_key()
    (tmp_path / "key").write_text(key)
    keyed = {"bootstrap_key_file": tmp_path / "key", "tenant_limits": {"few": {"submit": "3/day"}}}
    async with running(settings_of("one", **keyed), settings_of("two", **keyed), key=key) as (one, two):
        # Read-your-writes, both ways.
        for number in range(20):
            accepting, other = (one, two) if number % 2 else (two, one)
            submitted = await accepting.client.post("v1/generations", json={"prompt": f"cat {number}"})
            assert submitted.status_code == 202, submitted.text
            found = await told(partial(other.client.get, submitted.headers["location"]))
            assert (found.status_code, found.json()["status"]) == (200, "queued")
        assert (await told(partial(two.client.get, "v1/generations/never-accepted"))).status_code == 404

        # One record for one idempotency key, whichever replicas get the request.
        def once(replica: Replica, key: str, prompt: str) -> Any:
            return replica.client.post("v1/generations", json={"prompt": prompt}, headers={"idempotency-key": key})

        answers = await asyncio.gather(*(once(replica, "k", "fox") for replica in (one, two) * 5))
        assert {answer.status_code for answer in answers} == {202}
        (request_id,) = {answer.json()["request_id"] for answer in answers}
        assert (await once(two, "k", "another")).status_code == 422
        written = await read_topic(kafka.bootstrap_servers, topics.tasks)
        assert sum(json.loads(record.value or b"")["request_id"] == request_id for record in written) == 1

        # An API key that one made, and the limit of its tenant.
        body = {"name": "n", "tenant": "few", "scopes": ["submit", "read"]}
        made = (await one.client.post("v1/keys", json=body)).json()["key"]
        headers = {"authorization": f"Bearer {made}"}
        codes = [
            (await replica.client.post("v1/generations", json={"prompt": "a"}, headers=headers)).status_code
            for replica in (two, one, two, one, two)
        ]
        assert codes == [202, 202, 202, 429, 429]
        # The limit of a key, which leaves the other keys of its tenant alone.
        body |= {"tenant": "many", "submit_limit": "2/day"}
        slow = (await one.client.post("v1/keys", json=body)).json()["key"]
        headers = {"authorization": f"Bearer {slow}"}
        codes = [
            (await replica.client.post("v1/generations", json={"prompt": "a"}, headers=headers)).status_code
            for replica in (two, one, two, one)
        ]
        assert codes == [202, 202, 429, 429]
        # One of them projects, the other stands by.
        logs = [replica.gateway.log() for replica in (one, two)]
        assert sum("projector_started" in log for log in logs) == 1
        assert sum("projector_standby" in log for log in logs) == 1


async def test_when_the_projecting_one_is_killed_another_takes_over_and_a_rebuild_equals_its_rows(
    kafka: KafkaCluster, topics: TopicNames, settings_of: SoughtSettings, url: str
) -> None:
    async with running(settings_of("one"), settings_of("two")) as replicas:
        leader, other = sorted(replicas, key=lambda replica: "projector_started" not in replica.gateway.log())
        names = [f"t{number:04}" for number in range(600)]
        for part in range(6):
            batch = names[part * 100 : part * 100 + 100]
            records = [(name.encode(), json.dumps({"request_id": name, "prompt": "a"}).encode()) for name in batch]
            await produce(kafka.bootstrap_servers, topics.tasks, records)
            await produce(kafka.bootstrap_servers, topics.results, [(name.encode(), succeeded(name)) for name in batch])
            if part == 2:
                await wait_until(
                    lambda: read_to(url, topics)[:2] == (300, 300), deadline_seconds=60, what="the tasks to judge"
                )
                await judge(leader, rater="ann", scores=[1, 5], winner="a")
                leader.gateway.projector.kill()
                await judge(other, rater="bob", scores=[4], winner="tie")
                # A second judgement while no process projects.
                await judge(leader, rater="ann", scores=[2], winner="b")
        await wait_until(
            lambda: "projector_started" in other.gateway.log(), deadline_seconds=60, what="the other's take-over"
        )
        # Each record once: an offset past the end, or short of it, would show.
        await wait_until(
            lambda: read_to(url, topics) == (600, 600, 7), deadline_seconds=60, what="all records projected"
        )
        live, used, judged = rows(url), usage(url), judgements(url)
        assert [(row[0], row[3]) for row in live] == [(name, "succeeded") for name in names]
        assert sum(row[3] for row in used) == len(names)
        assert len(judged) == 4, "one rating and one comparison of each rater"
        said = (await told(partial(other.client.get, "v1/feedback/summary"))).json()
        assert (said["scores"], said["comparisons"], said["pool"][0]["mean_score"]["value"]) == (2, 2, 3.0)
        found = await told(partial(other.client.get, f"v1/generations/{names[0]}"))
        assert found.json()["status"] == "succeeded"

        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLUXPOOL_")}
        rebuilding = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "fluxpool_gateway.rebuild"],
            env=environment | other.gateway.settings.to_environment(),
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
        )
        assert rebuilding.returncode == 0, rebuilding.stderr
        # Until it is built again a task is not known, and is not said to be unknown either.
        found = await told(partial(other.client.get, f"v1/generations/{names[-1]}"))
        assert found.status_code == 200
        await wait_until(lambda: read_to(url, topics) == (600, 600, 7), deadline_seconds=60, what="all records again")
        assert (rows(url), usage(url), judgements(url)) == (live, used, judged)


@dataclass(frozen=True, slots=True)
class Far:
    """A replica whose database is behind a proxy, and the address of a task that is projected."""

    proxy: TcpProxy
    replica: Replica
    before: str


@pytest.fixture
async def far(settings_of: SoughtSettings, postgres: PostgresServer, url: str, tmp_path: Path) -> AsyncIterator[Far]:
    key = new_key()
    (tmp_path / "key").write_text(key)
    async with TcpProxy(postgres.port) as proxy:
        address = url.replace(f":{postgres.port}/", f":{proxy.port}/")
        settings = settings_of("one", database_url=address, bootstrap_key_file=tmp_path / "key")
        async with running(settings, key=key) as (replica,):
            before = await replica.client.post("v1/generations", json={"prompt": "before"})
            location = before.headers["location"]
            assert (await told(partial(replica.client.get, location))).status_code == 200
            yield Far(proxy, replica, location)


async def until_a_key_is_accepted(client: httpx.AsyncClient) -> None:
    async def is_accepted() -> bool:
        again = await client.post("v1/generations", json={"prompt": "a"}, headers={"idempotency-key": "k"})
        return again.status_code == 202

    await wait_until(is_accepted, deadline_seconds=60, what="a key that can be reserved again")


async def test_without_its_database_a_gateway_accepts_tells_and_recovers(far: Far, url: str) -> None:
    proxy, client, before = far.proxy, far.replica.client, far.before
    await proxy.refuse()
    away = await client.get(before)
    assert (away.status_code, away.json()["error"]["code"]) == (503, "store_unavailable")
    assert int(away.headers["retry-after"]) > 0
    # Kafka is all that is needed to accept; a key has to be reserved.
    accepted = await client.post("v1/generations", json={"prompt": "meanwhile"})
    assert accepted.status_code == 202
    keyed = await client.post("v1/generations", json={"prompt": "a"}, headers={"idempotency-key": "k"})
    assert (keyed.status_code, keyed.json()["error"]["code"]) == (503, "store_unavailable")
    await proxy.pass_all()
    pids = far.replica.gateway.pids()
    for location in (before, accepted.headers["location"]):
        found = await told(partial(client.get, location))
        assert found.status_code == 200
    await until_a_key_is_accepted(client)
    await wait_until(lambda: len(rows(url)) == 3, deadline_seconds=60, what="the projection to go on")
    assert far.replica.gateway.pids() == pids


async def test_a_database_that_accepts_and_answers_nothing_is_told_and_left(far: Far) -> None:
    proxy, client, before = far.proxy, far.replica.client, far.before
    await proxy.black_hole()
    # More than there are connections: the later ones wait for one.
    asked = [client.get(before) for _ in range(20)]
    keyed = client.post("v1/generations", json={"prompt": "a"}, headers={"idempotency-key": "k"})
    async with asyncio.timeout(40 * PATIENCE):
        answers = await asyncio.gather(keyed, client.get("readyz"), *asked)
    assert [answer.status_code for answer in answers] == [503] * 22
    assert "store" in answers[1].text
    await proxy.pass_all()
    pids = far.replica.gateway.pids()
    await until_a_key_is_accepted(client)
    assert (await told(partial(client.get, before))).status_code == 200
    assert far.replica.gateway.pids() == pids


@pytest.mark.parametrize("module", ["fluxpool_gateway", "fluxpool_gateway.projector"])
def test_an_address_that_is_refused_ends_it_with_2_and_the_remedy(
    module: str, settings_of: SoughtSettings, postgres: PostgresServer
) -> None:
    settings = settings_of("one", database_url=postgres.url("nowhere", password="guessed"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLUXPOOL_")}
    ended = subprocess.run(
        [sys.executable, "-m", module],
        env=inherited | settings.to_environment(),
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert ended.returncode == 2
    assert "database_url" in ended.stderr
    assert "correct its user and password" in ended.stderr
    assert "guessed" not in ended.stderr
    assert "Traceback" not in ended.stderr
