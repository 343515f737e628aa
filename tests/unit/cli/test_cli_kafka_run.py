"""The messages of commands whose requests to Kafka fail."""

import pytest
from aiokafka.errors import (
    AuthenticationFailedError,
    KafkaConnectionError,
    KafkaError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.kafka.target import KafkaTarget, run_on
from fluxpool_contract.kafka.connection import KafkaConnection

TARGET = KafkaTarget(kafka=KafkaConnection(bootstrap_servers=("kafka:9092",)))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KafkaConnectionError("no route"), "does not answer"),
        (TopicAuthorizationFailedError("tasks"), "check the Kafka user and its rights"),
        (AuthenticationFailedError("SASL"), "check the Kafka user and its rights"),
        (UnknownTopicOrPartitionError("tasks"), "refuses the request"),
    ],
)
def test_an_error_response_of_the_broker_is_not_reported_as_no_answer(error: KafkaError, words: str) -> None:
    async def work() -> None:
        raise error

    with pytest.raises(CommandError, match=words) as failed:
        run_on(TARGET, work())
    assert failed.value.code is ExitCode.UNREACHABLE
    assert "kafka:9092" in str(failed.value)
