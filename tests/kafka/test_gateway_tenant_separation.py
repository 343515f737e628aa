"""Tenants of a real gateway with API keys: limits over its processes, and records that other Kafka clients write."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest

from fluxpool_contract.header_names import TENANT
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_gateway.identity import new_key
from fluxpool_gateway.settings import TenantLimits
from kit.brokers.kafka import produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import GatewayProcess, gateway_settings, gateway_topics, running_gateway, told
from kit.http.token_issuer import Issuer
from kit.waiting import wait_until

pytestmark = pytest.mark.kafka

LIMIT = 20
TRIED = 60


@pytest.fixture
async def topics(kafka: KafkaCluster) -> TopicNames:
    return await gateway_topics(kafka.bootstrap_servers)


@pytest.fixture
def first_key() -> str:
    return new_key()


@pytest.fixture
def gateway(kafka: KafkaCluster, topics: TopicNames, first_key: str, tmp_path: Path) -> Iterator[GatewayProcess]:
    key_file = tmp_path / "key"
    key_file.write_text(first_key + "\n")
    settings = gateway_settings(
        kafka.bootstrap_servers,
        tmp_path,
        topics,
        processes=2,
        bootstrap_key_file=key_file,
        tenant_limits={"acme": TenantLimits(outstanding=LIMIT)},
    )
    with running_gateway(settings) as started:
        started.wait_ready()
        yield started


def client(gateway: GatewayProcess, key: str) -> httpx.AsyncClient:
    # A connection of its own for each request: the kernel then spreads them over the processes.
    return httpx.AsyncClient(
        base_url=gateway.url,
        headers={"authorization": f"Bearer {key}"},
        limits=httpx.Limits(max_keepalive_connections=0),
        timeout=60,
        trust_env=False,
    )


async def create_key(gateway: GatewayProcess, first_key: str, tenant: str) -> str:
    body = {"name": tenant, "tenant": tenant, "scopes": ["submit", "read"]}
    async with client(gateway, first_key) as admin:
        return str((await admin.post("v1/keys", json=body)).raise_for_status().json()["key"])


async def test_a_limit_holds_over_server_processes_and_projection(gateway: GatewayProcess, first_key: str) -> None:
    async with client(gateway, await create_key(gateway, first_key, "acme")) as acme:
        answers = await asyncio.gather(
            *(acme.post("v1/generations", json={"prompt": f"fox {number}"}) for number in range(TRIED))
        )
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(202), statuses.count(429)) == (LIMIT, TRIED - LIMIT), gateway.log()

        async def all_are_projected() -> bool:
            page = (await acme.get("v1/generations", params={"limit": 100})).raise_for_status().json()
            return len(page["data"]) == LIMIT

        await wait_until(all_are_projected, deadline_seconds=30, what="the accepted tasks in the list of their tenant")
        # Admitted and projected, no task counts twice or not at all.
        again = await acme.post("v1/generations", json={"prompt": "one more"})
        assert (again.status_code, again.headers["ratelimit"]) == (429, '"outstanding";r=0')


async def test_a_task_that_another_client_wrote_is_not_of_the_tenant_it_names(
    gateway: GatewayProcess, first_key: str, kafka: KafkaCluster, topics: TopicNames
) -> None:
    value = b'{"request_id":"foreign","prompt":"a fox"}'
    await produce(kafka.bootstrap_servers, topics.tasks, [(b"foreign", value)], headers=[(TENANT, b"acme")])
    # The first key is of the tenant default.
    async with (
        client(gateway, first_key) as default,
        client(gateway, await create_key(gateway, first_key, "acme")) as acme,
    ):

        async def is_known() -> bool:
            return (await default.get("v1/generations/foreign")).is_success

        await wait_until(is_known, deadline_seconds=30, what="the foreign task as one of the tenant default")
        assert (await told(lambda: acme.get("v1/generations/foreign"))).status_code == 404
        own = (await acme.post("v1/generations", json={"prompt": "a fox"})).raise_for_status().json()["request_id"]

        async def has_own() -> bool:
            page = (await acme.get("v1/generations")).raise_for_status().json()
            return [entry["request_id"] for entry in page["data"]] == [own]

        await wait_until(has_own, deadline_seconds=30, what="the own task, proven by the gateway, in the list of acme")


async def test_a_gateway_without_keys_serves_the_tokens_of_its_issuer(
    kafka: KafkaCluster, topics: TopicNames, tmp_path: Path
) -> None:
    async with Issuer().serving() as issuer:
        settings = gateway_settings(kafka.bootstrap_servers, tmp_path, topics, processes=2, oidc=issuer.settings())
        with running_gateway(settings) as gateway:
            gateway.wait_ready()
            async with client(gateway, issuer.token()) as acme, client(gateway, issuer.token(tenant="b")) as other:
                accepted = (await acme.post("v1/generations", json={"prompt": "a fox"})).raise_for_status().json()
                path = f"v1/generations/{accepted['request_id']}"
                answers = [await told(partial(caller.get, path)) for caller in (acme, other)]
                assert [answer.status_code for answer in answers] == [200, 404]
                assert (await acme.get("v1/keys")).status_code == 403
            async with client(gateway, "fp_" + "0" * 12) as stranger:
                assert (await stranger.get(path)).status_code == 401
