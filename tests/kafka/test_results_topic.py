"""A reader of the results topic drops what was delivered again, and nothing else."""

import json

from fluxpool_cli.kafka.results_topic import ResultsTopic
from fluxpool_contract.kafka import KafkaConnection
from kit.brokers.kafka import create_topics, produce, unique_name


def result(request_id: str, **fields: object) -> tuple[None, bytes]:
    return None, json.dumps({"request_id": request_id, "status": "canceled", "image_url": None, **fields}).encode()


async def test_a_repeated_result_counts_once_and_a_different_one_counts(bootstrap_servers: str) -> None:
    topic = unique_name("results")
    await create_topics(bootstrap_servers, {topic: 2})
    again = result("again")
    await produce(bootstrap_servers, topic, [again, again, result("once")], headers=[("ce_id", b"1")])
    other_body = result("again", worker="another")
    await produce(bootstrap_servers, topic, [other_body], headers=[("ce_id", b"1")])
    await produce(bootstrap_servers, topic, [again], headers=[("ce_id", b"2")])
    async with ResultsTopic(KafkaConnection(bootstrap_servers=(bootstrap_servers,)), topic) as results:
        await results.read_to_end()
    assert sorted(str(found.request_id) for found in results.records) == ["again", "again", "again", "once"]
    assert sorted(results.values) == sorted([again[1], other_body[1], again[1], result("once")[1]])
    assert results.repeats == 1
    assert results.counts() == {"canceled": 2}
