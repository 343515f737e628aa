"""What the parts agree on about Kafka: connections, topics, retry topics, and the text beside committed offsets."""

from fluxpool_contract.kafka.connection import KafkaConnection, SaslMechanism, SecurityProtocol
from fluxpool_contract.kafka.ledger import LedgerEntry, committed_topic_id, decode_ledger, encode_ledger, is_ledger
from fluxpool_contract.kafka.retries import (
    MAX_RELAYED_AHEAD,
    due_at,
    due_headers,
    due_seconds,
    former_scheduler_group,
    not_before_seconds,
    origin_topic,
    relayed_ahead,
    retry_group,
    retry_headers,
    retry_offset_text,
    strays_group,
)
from fluxpool_contract.kafka.topics import (
    LOG_APPEND_TIME,
    MAX_DEAD_LETTER_BYTES,
    MAX_MESSAGE_BYTES,
    TIMESTAMP_TYPE,
    TopicNames,
    TopicSpec,
    explain_create_time,
    topic_specs,
)

__all__ = [
    "LOG_APPEND_TIME",
    "MAX_DEAD_LETTER_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_RELAYED_AHEAD",
    "TIMESTAMP_TYPE",
    "KafkaConnection",
    "LedgerEntry",
    "SaslMechanism",
    "SecurityProtocol",
    "TopicNames",
    "TopicSpec",
    "committed_topic_id",
    "decode_ledger",
    "due_at",
    "due_headers",
    "due_seconds",
    "encode_ledger",
    "explain_create_time",
    "former_scheduler_group",
    "is_ledger",
    "not_before_seconds",
    "origin_topic",
    "relayed_ahead",
    "retry_group",
    "retry_headers",
    "retry_offset_text",
    "strays_group",
    "topic_specs",
]
