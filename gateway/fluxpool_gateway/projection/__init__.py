"""The projection of Kafka's topics into the task store: consumer, decoding, recovery of the file, metrics."""
