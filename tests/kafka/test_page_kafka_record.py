"""A request of the page as a record of Kafka: the copied command is executed, and a worker reads what it wrote."""

import asyncio
import os
import shutil

import pytest

from fluxpool_contract.messages.decoding import decode_task
from fluxpool_gateway.page.create.form import CreateForm, RecordTarget, snippets
from kit.brokers.kafka import create_topics, read_topic, unique_name

pytestmark = pytest.mark.kafka


@pytest.mark.skipif(shutil.which("kcat") is None, reason="needs kcat: install the package kcat")
async def test_the_copied_command_writes_the_task_that_the_form_has(bootstrap_servers: str) -> None:
    topic = unique_name("tasks")
    await create_topics(bootstrap_servers, {topic: 1})
    prompt = 'it\'s a "fox",\ntwo lines, back\\slash $HOME `id` %s \N{FOX FACE}'
    body = CreateForm({"prompt": prompt, "width": "512", "height": "256", "seed": "7", "priority": "vip"}).body()
    target = RecordTarget(topic=topic, request_id="kcat-1", tenant="acme")
    code = snippets(body, base="http://127.0.0.1:8000/", needs_key=True, target=target)[-1].code
    environment = {**os.environ, "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers}
    shell = await asyncio.create_subprocess_exec("sh", "-c", code, env=environment)
    assert await shell.wait() == 0
    (record,) = await read_topic(bootstrap_servers, topic)
    decoded = decode_task(record.value, record.headers)
    assert (decoded.task.request_id, decoded.task.prompt) == ("kcat-1", prompt)
    assert (decoded.task.width, decoded.task.height, decoded.task.seed) == (512, 256, 7)
    assert (decoded.envelope.tenant, decoded.envelope.priority) == ("acme", "vip")
    assert record.key == b"kcat-1"
