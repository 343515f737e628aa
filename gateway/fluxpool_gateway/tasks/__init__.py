"""One task of a client: its key, its record in Kafka, and finding it again."""

from fluxpool_gateway.tasks.producer import DeliveryError, TaskProducer

__all__ = ["DeliveryError", "TaskProducer"]
