"""Kafka clients: their options and tokens, administration of topics, and reading records without a consumer group."""

from fluxpool_transport.kafka.admin import KafkaUnavailableError, explain
from fluxpool_transport.kafka.client_stop import stop_consumer, stop_producer
from fluxpool_transport.kafka.clients import KafkaCredentialsError, aiokafka_options, librdkafka_options
from fluxpool_transport.kafka.metadata import KafkaMetadata, PartitionKey, TopicError, TopicMetadata
from fluxpool_transport.kafka.topic_admin import (
    ensure_topics,
    find_create_time_topics,
    keep_topics,
    set_log_append_time,
)
from fluxpool_transport.kafka.topic_layout import ClusterLayout, TopicLayout, read_layout
from fluxpool_transport.kafka.topic_scan import find_ranges, scan
from fluxpool_transport.kafka.undecodable_records import UNDECODABLE, UndecodableRecord

__all__ = [
    "UNDECODABLE",
    "ClusterLayout",
    "KafkaCredentialsError",
    "KafkaMetadata",
    "KafkaUnavailableError",
    "PartitionKey",
    "TopicError",
    "TopicLayout",
    "TopicMetadata",
    "UndecodableRecord",
    "aiokafka_options",
    "ensure_topics",
    "explain",
    "find_create_time_topics",
    "find_ranges",
    "keep_topics",
    "librdkafka_options",
    "read_layout",
    "scan",
    "set_log_append_time",
    "stop_consumer",
    "stop_producer",
]
