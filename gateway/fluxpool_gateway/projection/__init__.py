"""The projection of Kafka's topics into the task store."""
