"""Models of Kafka, workers and queues, for state machines and simulated time."""
