"""Server, projector and dispatcher are killed together under load: no end of an accepted task or group goes untold."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_gateway.settings import GatewaySettings
from kit.brokers.kafka import produce
from kit.brokers.kafka_cluster import KafkaCluster
from kit.gateways.gateway_process import (
    GatewayProcess,
    gateway_settings,
    gateway_topics,
    start_dispatcher,
    start_gateway,
)
from kit.http.webhook_receiver import LOOPBACK, Message, Receiver, running_receiver
from kit.programs.warm_start import Program
from kit.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

ROUNDS = 3
TASKS_OF_A_ROUND = 20
DEADLINE_SECONDS = 90.0
OWN, OF_REQUESTS = "/own", "/request"


@dataclass(slots=True)
class Programs:
    """The three programs of a gateway."""

    settings: GatewaySettings
    gateway: GatewayProcess = field(init=False)
    dispatcher: Program = field(init=False)

    def start(self) -> None:
        self.gateway = start_gateway(self.settings)
        self.dispatcher = start_dispatcher(self.settings, log_path=self.gateway.log_path)

    def kill(self) -> None:
        self.dispatcher.kill()
        self.gateway.kill()
        self.dispatcher.wait()

    async def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """The first answer but 503, whichever server gives it: as a client goes on that knows no better."""
        answer: httpx.Response | None = None

        async def is_answered() -> bool:
            nonlocal answer
            try:
                async with httpx.AsyncClient(base_url=self.gateway.url, timeout=20) as client:
                    answer = await client.request(method, path, **arguments)
            except (httpx.TransportError, FileNotFoundError):
                return False
            return answer.status_code != httpx.codes.SERVICE_UNAVAILABLE

        await wait_until(is_answered, deadline_seconds=DEADLINE_SECONDS, what=f"an answer to {method} {path}")
        assert answer is not None
        return answer


@pytest.fixture
async def topics(kafka: KafkaCluster) -> TopicNames:
    return await gateway_topics(kafka.bootstrap_servers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver() as running:
        yield running


def of_type(messages: Sequence[Message], prefix: str) -> list[Message]:
    return [message for message in messages if json.loads(message.body)["type"].startswith(prefix)]


def in_order(messages: Sequence[Message]) -> list[str]:
    """The ids of events by their first arrival."""
    return list(dict.fromkeys(message.event_id for message in messages))


async def test_every_end_is_told_in_order_and_every_group_once_although_all_three_are_killed(
    kafka: KafkaCluster, topics: TopicNames, receiver: Receiver, tmp_path: Path
) -> None:
    targets = {"allow_http": True, "allowed_networks": tuple(map(str, LOOPBACK))}
    programs = Programs(gateway_settings(kafka.bootstrap_servers, tmp_path, topics, webhooks=targets))
    draws = random.Random(11)  # noqa: S311 - when they are killed
    accepted: list[str] = []

    async def submit(round_number: int, number: int) -> str:
        webhook = {"url": f"{receiver.url}{OF_REQUESTS}"}
        body = {"prompt": "a fox", "group_id": f"round-{round_number}", "webhook": webhook}
        key = {"Idempotency-Key": f"{round_number}-{number}"}
        answer = await programs.ask("POST", "v1/generations", json=body, headers=key)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["request_id"])

    programs.start()
    try:
        made = await programs.ask("POST", "v1/webhooks", json={"name": "own", "url": receiver.url + OWN})
        assert made.status_code == 201, made.text
        ending: Sequence[str] = ()
        for round_number in range(ROUNDS + 1):
            count = TASKS_OF_A_ROUND if round_number < ROUNDS else 0
            submitting = asyncio.gather(*(submit(round_number, number) for number in range(count)))
            results = [
                GenerationResult(request_id=name, image_url=None, status=ResultStatus.SUCCESS) for name in ending
            ]
            told_before = len(receiver.messages)
            await produce(
                kafka.bootstrap_servers,
                topics.results,
                [(result.request_id.encode(), result.to_json()) for result in results if result.request_id],
            )
            if ending:
                wanted = told_before + draws.randrange(1, len(ending))
                await wait_until(
                    lambda wanted=wanted: len(receiver.messages) >= wanted,  # type: ignore[misc]
                    deadline_seconds=DEADLINE_SECONDS,
                    what="some messages",
                )
                programs.kill()
                programs.start()
            ending = await submitting
            accepted += ending

        def all_told() -> bool:
            ends = [of_type(receiver.to(path), "generation.") for path in (OWN, OF_REQUESTS)]
            groups = in_order(of_type(receiver.messages, "group."))
            return [len(in_order(messages)) for messages in ends] == [len(accepted)] * 2 and len(groups) == ROUNDS

        await wait_until(all_told, deadline_seconds=DEADLINE_SECONDS, what="every end and every group")
        listed = (await programs.ask("GET", "v1/webhooks")).json()["data"]
        queued: dict[str, list[str]] = {}
        for endpoint in listed:
            page = (await programs.ask("GET", f"v1/webhooks/{endpoint['id']}/deliveries?limit=200")).json()["data"]
            queued[endpoint["kind"]] = [delivery["webhook_id"] for delivery in reversed(page)]
    finally:
        programs.kill()

    assert len(set(accepted)) == ROUNDS * TASKS_OF_A_ROUND
    for path, kind in ((OWN, "registered"), (OF_REQUESTS, "requests")):
        told = receiver.to(path)
        assert in_order(told) == queued[kind], "in the order in which they were queued"
        ends = [json.loads(message.body)["data"]["request_id"] for message in of_type(told, "generation.")]
        assert set(ends) == set(accepted)
        # At most what was under way when it was killed comes twice.
        assert len(told) <= len(queued[kind]) + ROUNDS
    assert of_type(receiver.to(OF_REQUESTS), "group.") == []
    counts = [json.loads(message.body)["data"] for message in of_type(receiver.to(OWN), "group.")]
    assert {group["group_id"]: group["counts"]["succeeded"] for group in counts} == {
        f"round-{number}": TASKS_OF_A_ROUND for number in range(ROUNDS)
    }
