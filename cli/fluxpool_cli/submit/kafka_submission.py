"""`fluxpool submit --bootstrap-servers`: produces a task to its topic, without a gateway.

The checks, the record and the partitioner are the gateway's own, so workers see no difference. Owns the exit codes of
its errors.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.target import KafkaTarget
from fluxpool_contract.header_names import TYPE_REQUESTED
from fluxpool_contract.messages import (
    DEFAULT_TENANT,
    Envelope,
    cloud_event_headers,
    idempotent_request_id,
    new_request_id,
    render_envelope,
)
from fluxpool_gateway.http import (
    GenerationRequest,
    Priority,
    ProblemError,
    check_idempotency_key,
    parse_request,
    render_task,
)
from fluxpool_gateway.tasks import DeliveryError, TaskProducer
from fluxpool_transport.kafka import KafkaMetadata, TopicMetadata, explain, librdkafka_options
from fluxpool_transport.partitioner import LoadAwarePartitioner

EVENT_SOURCE: Final = "/fluxpool/submit"
SEND_SECONDS: Final = 10.0
CLIENT_ID: Final = "fluxpool-cli"


async def submit_to_kafka(
    target: KafkaTarget, body: Mapping[str, Any], *, idempotency_key: str | None
) -> dict[str, Any]:
    """Check a request, write its task and wait for the acknowledgement.

    Returns the task's id, status, topic, partition and offset. Raises `CommandError` for a bad request (USAGE, naming
    each field), for an unknown topic and a task that is not acknowledged (UNREACHABLE) and as `librdkafka_options`.
    """
    try:
        request = parse_request(json.dumps(body).encode())
        if idempotency_key is None:
            request_id = new_request_id()
        else:
            request_id = idempotent_request_id(DEFAULT_TENANT, check_idempotency_key(idempotency_key.encode()))
        value = render_task(request, request_id)
    except ProblemError as error:
        raise CommandError(ExitCode.USAGE, str(error)) from None
    try:
        return await _send(target, request, request_id=request_id, value=value)
    except DeliveryError as error:
        raise CommandError(
            ExitCode.UNREACHABLE,
            f"the task was not acknowledged ({error}) and may or may not be in the topic; with --idempotency-key "
            "a repeat cannot make a second one",
        ) from None


async def _send(target: KafkaTarget, request: GenerationRequest, *, request_id: str, value: bytes) -> dict[str, Any]:
    topic = target.topics.tasks if request.priority is Priority.STANDARD else target.topics.tasks_vip
    groups = {group: served for group, served in target.groups().items() if served == topic}
    partitioner = LoadAwarePartitioner(target.kafka, groups)
    producer = TaskProducer(librdkafka_options(target.kafka, client_id=CLIENT_ID), deadline_seconds=SEND_SECONDS)
    producer.start()
    try:
        partitions = await _partitions(target, topic)
        async with partitioner.reader(deadline_seconds=SEND_SECONDS) as reader:
            # Without the lag of the workers the partition is random, which is no reason to refuse the task.
            await partitioner.refresh(reader)
        partition = partitioner.choose(topic, partitions=partitions, work=request.relative_work)
        moment = datetime.now(UTC)
        offset = await producer.send(
            topic=topic,
            partition=partition,
            key=request_id.encode(),
            value=value,
            headers=[
                *cloud_event_headers(
                    event_id=request_id,
                    event_type=TYPE_REQUESTED,
                    source=EVENT_SOURCE,
                    subject=request_id,
                    time=moment,
                ),
                *render_envelope(Envelope(priority=request.priority.value, first_seen=moment)),
            ],
        )
    finally:
        await producer.stop()
    return {"request_id": request_id, "status": "queued", "topic": topic, "partition": partition, "offset": offset}


async def _partitions(target: KafkaTarget, topic: str) -> int:
    metadata = KafkaMetadata(target.kafka, client_id=CLIENT_ID, timeout_seconds=SEND_SECONDS)
    answer = (await metadata.topics([topic]))[topic]
    if isinstance(answer, TopicMetadata):
        return len(answer.partitions)
    raise CommandError(
        ExitCode.UNREACHABLE,
        f"Kafka at {target.servers} cannot describe topic {topic}: {explain(answer)}; "
        "check the address and the topic's name, or create it",
    )
