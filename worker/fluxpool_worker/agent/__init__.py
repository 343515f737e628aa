"""The agent: Kafka, storage, health and the engine's life. Never imports torch, never blocks its event loop."""
